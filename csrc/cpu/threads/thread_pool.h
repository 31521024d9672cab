// Threads that share the work of one caller, thousands of times a second.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace jat {

// Memory that a thread reads first in the run after this one. It fetches it while it waits for the other threads,
// instead of letting the memory idle. An address need not be valid.
struct Ahead {
  static constexpr int kChunks = 16;
  static constexpr size_t kChunkBytes = 4096;
  const uint8_t* chunks[kChunks] = {};  // null from the last one on
};

// The caller and its workers, `num_threads` together. One call of `run` at a time.
//
// A run is cut into pieces. Each thread has a range of them, which it reads as one stream; then it takes pieces
// of the others' ranges until none is left. The caller waits for pieces that were taken, never for a thread: a
// worker that is late helps late, and without workers the caller does everything.
//
// Workers spin for `spin_us` after their last piece, then sleep. They are kept off the caller's core: Linux
// would place a woken thread there, where it could not run. A worker that loses its core to another program
// while it holds a piece delays the run until it is back, and then sits out some runs, longer each time.
// After a fork the child starts workers of its own.
class ThreadPool {
 public:
  ThreadPool(int num_threads, int spin_us);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // The first part of a thread's range in a run.
  int first_part(int num_parts, int piece_size, int thread) const {
    return first_piece((num_parts + piece_size - 1) / piece_size, thread) * piece_size;
  }

  // Call task(begin, end, thread) for the parts [0, num_parts) in pieces of `piece_size` parts, and return
  // when all are done. `thread` is below size(); pieces that run at the same time have different ones. The
  // task must not throw. ahead: of each thread, or null.
  template <typename Task>
  void run(int num_parts, int piece_size, const Task& task, const Ahead* ahead = nullptr) {
    const auto run_piece = [&](int piece, int thread) {
      const int begin = piece * piece_size, rest = num_parts - begin;
      task(begin, begin + (rest < piece_size ? rest : piece_size), thread);
    };
    run_pieces((num_parts + piece_size - 1) / piece_size,
               [](const void* context, int piece, int thread) {
                 (*static_cast<const decltype(run_piece)*>(context))(piece, thread);
               },
               &run_piece, ahead);
  }

 private:
  using Function = void (*)(const void* context, int piece, int thread);
  struct Worker;
  struct Workers;  // the threads of one process; a forked child makes new ones

  int first_piece(int num_pieces, int thread) const {
    return static_cast<int>(static_cast<int64_t>(num_pieces) * thread / num_threads_);
  }
  void run_pieces(int num_pieces, Function function, const void* context, const Ahead* ahead);
  void start();
  void work(Workers& workers, int thread);

  const int num_threads_, spin_us_;
  std::unique_ptr<Workers> workers_;
};

}  // namespace jat
