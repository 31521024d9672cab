#include "threads.h"

#include <unistd.h>

#include <chrono>

namespace jat {

namespace {

constexpr int kSpinsBeforeYield = 4000;  // some tens of microseconds

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

struct ThreadPool::Workers {
  const pid_t process = getpid();
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake;
  int sleepers = 0;     // under `mutex`
  unsigned alarms = 0;  // under `mutex`: calls of wake()
  bool stop = false;

  Function function = nullptr;
  const void* context = nullptr;
  alignas(64) std::atomic<unsigned> round{0};  // of run(): a new one starts the threads
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<unsigned> phase{0};
};

ThreadPool::ThreadPool(int num_threads, int spin_us) : num_threads_(num_threads), spin_us_(spin_us) {
  start();
}

ThreadPool::~ThreadPool() {
  if (workers_->process != getpid()) {  // a forked child: these threads do not exist here
    workers_.release();                 // NOLINT: joining or destroying them would hang
    return;
  }
  stop(*workers_);
}

void ThreadPool::stop(Workers& workers) {
  {
    // The round under the lock: else a worker that has just looked at it could go to sleep for good.
    const std::lock_guard<std::mutex> lock(workers.mutex);
    workers.stop = true;
    workers.round.fetch_add(1, std::memory_order_release);
  }
  workers.wake.notify_all();
  for (std::thread& thread : workers.threads) thread.join();
}

void ThreadPool::start() {
  auto workers = std::make_unique<Workers>();
  try {
    for (int thread = 1; thread < num_threads_; ++thread)
      workers->threads.emplace_back([this, thread, w = workers.get()] { work(*w, thread); });
  } catch (...) {  // the system has no more threads to give
    stop(*workers);
    throw;
  }
  workers_.release();  // NOLINT: none, or a forked child's, whose threads do not exist here
  workers_ = std::move(workers);
}

void ThreadPool::work(Workers& workers, int thread) {
  unsigned seen = 0;
  while (true) {
    auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us_);
    for (int spins = 0; workers.round.load(std::memory_order_acquire) == seen; ++spins) {
      pause();
      if (spins % 64 == 63 && std::chrono::steady_clock::now() > deadline) {
        std::unique_lock<std::mutex> lock(workers.mutex);
        ++workers.sleepers;
        workers.wake.wait(lock, [&, alarms = workers.alarms] {
          return workers.round.load(std::memory_order_acquire) != seen || workers.alarms != alarms;
        });
        --workers.sleepers;
        deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us_);
      }
    }
    seen = workers.round.load(std::memory_order_acquire);
    if (workers.stop) return;
    workers.function(workers.context, thread);
    wait_for_all(workers);
  }
}

void ThreadPool::run_erased(Function function, const void* context) {
  if (workers_->process != getpid()) {
    start();
  }
  Workers& workers = *workers_;
  if (num_threads_ > 1) {
    workers.function = function;
    workers.context = context;
    bool asleep;
    {
      const std::lock_guard<std::mutex> lock(workers.mutex);
      workers.round.fetch_add(1, std::memory_order_release);
      asleep = workers.sleepers > 0;
    }
    if (asleep) workers.wake.notify_all();
  }
  function(context, 0);
  barrier();  // the context is the caller's: nobody may still use it
}

void ThreadPool::wake() {
  Workers& workers = *workers_;
  if (workers.process != getpid()) return;
  {
    const std::lock_guard<std::mutex> lock(workers.mutex);
    if (workers.sleepers == 0) return;
    ++workers.alarms;
  }
  workers.wake.notify_all();
}

void ThreadPool::barrier() { wait_for_all(*workers_); }

void ThreadPool::wait_for_all(Workers& workers) {
  if (num_threads_ == 1) return;
  const unsigned phase = workers.phase.load(std::memory_order_relaxed);
  if (workers.arrived.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    workers.arrived.store(0, std::memory_order_relaxed);
    workers.phase.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; workers.phase.load(std::memory_order_acquire) == phase; ++spins) {
    if (spins < kSpinsBeforeYield)
      pause();
    else
      std::this_thread::yield();  // more threads than idle cores: let them come
  }
}

}  // namespace jat
