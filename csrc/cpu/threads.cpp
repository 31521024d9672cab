#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "bell.h"
#include "cores.h"

namespace jat {

namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kSpinsPerLook = 64;  // between looks at the clock: about a microsecond
constexpr int kMinSpinUs = 50;          // runs of one step follow each other within that
constexpr int kWakes = 2;  // sleepers that one thread wakes at a time; the woken ones wake the others

// A piece is overdue after what the caller worked for itself in this run, and this. The system takes a core
// away for 1 to 4 ms; interrupts and faults of pages stay below.
constexpr std::chrono::microseconds kPatience{500};

// A worker that was overdue may go on if the caller has worked this many times as long since it last was:
// then it has helped more than that cost. Else it sits out work of the caller: first this many times as much
// as it has delayed, later twice as much each time.
constexpr int kReliable = 3, kFirstRest = 8;
constexpr std::chrono::seconds kMaxRest{1};

#if defined(JAT_PLANT_RELAXED_FINISH)  // an error for the tests to find
constexpr auto kFinish = std::memory_order_relaxed;
#else
constexpr auto kFinish = std::memory_order_release;
#endif

std::atomic<unsigned> num_forks{0};  // that made this process

void count_forks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { num_forks.fetch_add(1); }); });
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

struct alignas(64) ThreadPool::Worker {
  std::thread thread;
  Bell bell;
  std::atomic<bool> asleep{false};
  std::atomic<bool> has_piece{false};
  std::atomic<bool> rests{false};

  // The caller's alone, in its working time:
  Clock::duration back_at{0};  // when it was last overdue, or the end of its last rest
  Clock::duration rest{0};     // how long that was
};

struct ThreadPool::Workers {
  Workers(int num_workers, const CoreSet& cores) : cores(cores), all(static_cast<size_t>(num_workers)) {}
  ~Workers() {
    stop.store(true);
    for (Worker& worker : all) worker.bell.ring();
    for (Worker& worker : all)
      if (worker.thread.joinable()) worker.thread.join();
  }

  // Take the next piece; -1 if there is none. Until `finished` counts it, the caller stays in its run: so a
  // thread that was held up here for any time gets a piece of the run that is now, or none.
  int take() {
    int left = pieces_left.load(std::memory_order_relaxed);
    while (left > 0) {
      if (pieces_left.compare_exchange_weak(left, left - 1, std::memory_order_acquire,
                                            std::memory_order_relaxed))
        return num_pieces - left;
    }
    return -1;
  }

  // Wake some of those that sleep and need not rest. One that is just falling asleep may be missed until the
  // next run.
  void wake() {
    int woken = 0;
    for (Worker& worker : all) {
      if (!worker.asleep.load(std::memory_order_relaxed) || worker.rests.load(std::memory_order_relaxed))
        continue;
      if (!worker.asleep.exchange(false)) continue;  // another thread has been faster
      worker.bell.ring();
      if (++woken == kWakes) return;
    }
  }

  void keep_off_core_of_caller() {
    const int core = current_core();
    if (core == caller_core) return;
    caller_core = core;
    for (Worker& worker : all) cores.confine(worker.thread, core);
  }

  void end_rests() {
    if (num_resting == 0) return;
    for (Worker& worker : all) {
      if (!worker.rests.load(std::memory_order_relaxed) || worker.back_at > worked) continue;
      worker.rests.store(false, std::memory_order_relaxed);
      --num_resting;
    }
  }

  // Let a worker that kept the caller waiting for that long sit out the next runs, unless it is reliable.
  void begin_rest(Worker& worker, Clock::duration waited) {
    if (worker.rests.load(std::memory_order_relaxed)) return;  // it had not noticed yet
    if (worked - worker.back_at > kReliable * waited) {
      worker.rest = Clock::duration{0};
      worker.back_at = worked;
    } else {
      worker.rest = std::min<Clock::duration>(std::max(2 * worker.rest, kFirstRest * waited), kMaxRest);
      worker.back_at = worked + worker.rest;
      worker.rests.store(true, std::memory_order_relaxed);
      ++num_resting;
    }
  }

  // Wait until the workers have finished so many pieces. own_time: of the caller's pieces in this run.
  void wait(int pieces, Clock::duration own_time) {
    const auto begin = Clock::now();
    Worker* overdue = nullptr;
    for (unsigned spins = 1; finished.load(std::memory_order_acquire) < pieces; ++spins) {
      pause();
      if (spins % kSpinsPerLook != 0 || Clock::now() - begin < own_time + kPatience) continue;
      for (Worker& worker : all)
        if (worker.has_piece.load(std::memory_order_relaxed)) overdue = &worker;
      // It may be waiting for this very core, if the caller has moved there.
      keep_off_core_of_caller();
      std::this_thread::yield();
    }
    if (overdue != nullptr) begin_rest(*overdue, Clock::now() - begin);
  }

  const unsigned forks = num_forks.load(std::memory_order_relaxed);
  const CoreSet cores;
  std::vector<Worker> all;
  std::atomic<bool> stop{false};

  // The caller's alone:
  int caller_core = -1;
  int num_resting = 0;
  Clock::duration worked{0};  // in runs that were shared or, for rests, could have been

  // The run. Written by the caller while there are no pieces, read by who has taken one.
  alignas(64) std::atomic<int> pieces_left{0};
  int num_pieces = 0;
  Function function = nullptr;
  const void* context = nullptr;

  alignas(64) std::atomic<int> finished{0};  // pieces, by workers
};

ThreadPool::ThreadPool(int num_threads, int spin_us)
    : num_threads_(num_threads), spin_us_(std::max(spin_us, kMinSpinUs)) {
  count_forks();
  start();
}

ThreadPool::~ThreadPool() {
  // A forked child: these threads do not exist here, and joining them would hang.
  if (workers_->forks != num_forks.load(std::memory_order_relaxed)) workers_.release();  // NOLINT
}

void ThreadPool::start() {
  const CoreSet cores = CoreSet::allowed();
  // On the only core workers could but take the caller's time.
  const int num_workers = cores.size() == 1 ? 0 : num_threads_ - 1;
  auto workers = std::make_unique<Workers>(num_workers, cores);
  // If the system has no more threads to give, those that there are end with `workers`.
  for (int thread = 1; thread <= num_workers; ++thread) {
    std::thread& worker = workers->all[thread - 1].thread;
    worker = std::thread([this, thread, w = workers.get()] { work(*w, thread); });
    set_name(worker, "jat-worker");
  }
  workers_.release();  // NOLINT: none, or a forked child's, whose threads do not exist here
  workers_ = std::move(workers);
}

void ThreadPool::work(Workers& workers, int thread) {
  Worker& self = workers.all[thread - 1];
  const std::chrono::microseconds spin(spin_us_);
  auto sleep_at = Clock::now() + spin;
  for (unsigned spins = 1; !workers.stop.load(std::memory_order_relaxed); ++spins) {
    bool has_worked = false;
    while (!self.rests.load(std::memory_order_relaxed)) {
      const int piece = workers.take();
      if (piece < 0) break;
      self.has_piece.store(true, std::memory_order_relaxed);
      workers.function(workers.context, piece, thread);
      self.has_piece.store(false, std::memory_order_relaxed);
      workers.finished.fetch_add(1, kFinish);
      has_worked = true;
    }
    if (has_worked) sleep_at = Clock::now() + spin;
    pause();
    const bool rests = self.rests.load(std::memory_order_relaxed);
    if (!rests && (spins % kSpinsPerLook != 0 || Clock::now() < sleep_at)) continue;

    const uint32_t rings = self.bell.rings();
    self.asleep.store(true);
    if (workers.stop.load()) return;
    self.bell.sleep(rings);
    workers.wake();
    sleep_at = Clock::now() + spin;
  }
}

void ThreadPool::run_pieces(int num_pieces, Function function, const void* context) {
  const bool is_forked = workers_->forks != num_forks.load(std::memory_order_relaxed);
  if (is_forked) start();
  Workers& workers = *workers_;
  workers.end_rests();
  const int num_ready = static_cast<int>(workers.all.size()) - workers.num_resting;
  if (num_ready == 0 || num_pieces < 2) {
    const bool is_timed = workers.num_resting > 0;
    const auto begin = is_timed ? Clock::now() : Clock::time_point{};
    for (int piece = 0; piece < num_pieces; ++piece) function(context, piece, 0);
    if (is_timed) workers.worked += Clock::now() - begin;
    return;
  }

  workers.keep_off_core_of_caller();
  workers.num_pieces = num_pieces;
  workers.function = function;
  workers.context = context;
  workers.finished.store(0, std::memory_order_relaxed);
  workers.pieces_left.store(num_pieces - 1, std::memory_order_release);  // the first one is the caller's
  workers.wake();

  const auto begin = Clock::now();
  int num_own = 0;
  for (int piece = 0; piece >= 0; piece = workers.take(), ++num_own) function(context, piece, 0);
  const auto own_time = Clock::now() - begin;
  workers.worked += own_time;
  if (num_own < num_pieces) workers.wait(num_pieces - num_own, own_time);
}

}  // namespace jat
