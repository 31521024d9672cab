// Where one thread sleeps until others ring. Ringing takes no lock: with a mutex it would wait for a sleeper
// that lost its core while it held that.
#pragma once

#include <atomic>
#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

namespace jat {

class Bell {
 public:
  // How often it has rung. Read before looking for a reason not to sleep: a ring in between is then not lost.
  uint32_t rings() const { return rings_.load(std::memory_order_acquire); }

#if defined(__linux__)
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is 32 bits");

  // Sleep until it has rung more often than that.
  void sleep(uint32_t rings) {
    while (this->rings() == rings)
      syscall(SYS_futex, &rings_, FUTEX_WAIT_PRIVATE, rings, nullptr, nullptr, 0);
  }

  void ring() {
    rings_.fetch_add(1, std::memory_order_release);
    syscall(SYS_futex, &rings_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
#else
  void sleep(uint32_t rings) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return this->rings() != rings; });
  }

  void ring() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      rings_.fetch_add(1, std::memory_order_release);
    }
    changed_.notify_one();
  }
#endif

 private:
  std::atomic<uint32_t> rings_{0};
#if !defined(__linux__)
  std::mutex mutex_;
  std::condition_variable changed_;
#endif
};

}  // namespace jat
