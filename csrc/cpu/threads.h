// Threads that run one function together, many times a second: they spin for a while, then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace jat {

// The caller is thread 0 of `num_threads`. One call of `run` at a time. After a fork the child makes its own
// threads.
class ThreadPool {
 public:
  ThreadPool(int num_threads, int spin_us);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // Call task(thread) on every thread; returns when all have. The task must not throw.
  template <typename Task>
  void run(const Task& task) {
    run_erased([](const void* context, int thread) { (*static_cast<const Task*>(context))(thread); }, &task);
  }

  // A call of `run` is about to come: threads that sleep shall spin again.
  void wake();

  // Within a task: wait until every thread has come here.
  void barrier();

 private:
  using Function = void (*)(const void*, int);
  struct Workers;  // what dies with the process that made it

  void run_erased(Function function, const void* context);
  void start();
  static void stop(Workers& workers);
  void wait_for_all(Workers& workers);
  void work(Workers& workers, int thread);

  const int num_threads_, spin_us_;
  std::unique_ptr<Workers> workers_;
};

// Parts of a phase, handed out to whoever comes first.
class WorkQueue {
 public:
  void reset() { next_.store(0, std::memory_order_relaxed); }
  // The next range of at most `size` of `total` parts; false when there is none.
  bool take(int total, int size, int& begin, int& end) {
    begin = next_.fetch_add(size, std::memory_order_relaxed);
    if (begin >= total) return false;
    end = begin + size < total ? begin + size : total;
    return true;
  }

 private:
  alignas(64) std::atomic<int> next_{0};
};

}  // namespace jat
