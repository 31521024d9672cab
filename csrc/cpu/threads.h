// Threads that share the work of one caller, many times a second. The caller waits for pieces of work that a
// thread has taken, never for a thread: one that comes late helps late, and without any the caller does all
// of it.
#pragma once

#include <memory>

namespace jat {

// `num_threads` are the caller and its workers. One call of `run` at a time. After a fork the child starts
// workers of its own.
//
// Workers spin for `spin_us` after their last piece, then sleep. They are kept off the core that the caller
// runs on: Linux would put a woken thread there, where it could not run. A worker that loses its core with a
// piece in hand, to another program, delays the run until it is back; it then sits out some runs, and more
// each time.
class ThreadPool {
 public:
  ThreadPool(int num_threads, int spin_us);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // Call task(begin, end, thread) for the parts [0, num_parts) in pieces of `piece_size`, each part once;
  // returns when all are done. `thread` is below size(), and no two pieces run at the same time with the same
  // one. The task must not throw.
  template <typename Task>
  void run(int num_parts, int piece_size, const Task& task) {
    const auto run_piece = [&](int piece, int thread) {
      const int begin = piece * piece_size, rest = num_parts - begin;
      task(begin, begin + (rest < piece_size ? rest : piece_size), thread);
    };
    run_pieces((num_parts + piece_size - 1) / piece_size,
               [](const void* context, int piece, int thread) {
                 (*static_cast<const decltype(run_piece)*>(context))(piece, thread);
               },
               &run_piece);
  }

 private:
  using Function = void (*)(const void* context, int piece, int thread);
  struct Worker;
  struct Workers;  // what dies with the process that made it

  void run_pieces(int num_pieces, Function function, const void* context);
  void start();
  void work(Workers& workers, int thread);

  const int num_threads_, spin_us_;
  std::unique_ptr<Workers> workers_;
};

}  // namespace jat
