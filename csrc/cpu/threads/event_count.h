// An event count: one thread sleeps until others notify it. Notifying takes no lock, since with a mutex the
// notifier would wait for a sleeper that lost its core while it held the mutex.
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

class EventCount {
 public:
  // The number of notifications so far. Read it before checking for a reason not to sleep, then pass it to
  // `wait`: a notification in between is not lost.
  uint32_t count() const { return count_.load(std::memory_order_acquire); }

#if defined(__linux__)
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is 32 bits");

  // Sleep until there have been more than `count` notifications.
  void wait(uint32_t count) {
    while (this->count() == count)
      syscall(SYS_futex, &count_, FUTEX_WAIT_PRIVATE, count, nullptr, nullptr, 0);
  }

  void notify() {
    count_.fetch_add(1, std::memory_order_release);
    syscall(SYS_futex, &count_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
#else
  void wait(uint32_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return this->count() != count; });
  }

  void notify() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      count_.fetch_add(1, std::memory_order_release);
    }
    changed_.notify_one();
  }
#endif

 private:
  std::atomic<uint32_t> count_{0};
#if !defined(__linux__)
  std::mutex mutex_;
  std::condition_variable changed_;
#endif
};

}  // namespace jat
