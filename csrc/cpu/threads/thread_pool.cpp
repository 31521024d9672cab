#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "cores.h"
#include "event_count.h"

namespace jat {

namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kSpinsPerLook = 64;  // between looks at the clock: about a microsecond
constexpr int kMinSpinUs = 50;          // longer than the pause between two runs of a step
constexpr std::chrono::microseconds kKeepCore{kMinSpinUs};  // after that, an idle worker offers its core
constexpr int kWakes = 2;  // sleepers that one thread wakes; the woken ones wake the others

// A piece is overdue when the caller has waited for it as long as it worked itself in this run, and this much
// longer. The system takes a core away for 1 to 4 ms; interrupts and page faults are shorter than this.
constexpr std::chrono::microseconds kSpinTimeout{500};

// Backoff of a worker that was overdue, measured in working time of the caller. None if it was last overdue
// at least kReliable times the delay ago: in that time it has helped more than it delayed. Otherwise
// kFirstBackoff times the delay, and twice as long each time after that.
constexpr int kReliable = 3, kFirstBackoff = 8;
constexpr std::chrono::seconds kMaxBackoff{1};

#if defined(JAT_PLANT_RELAXED_FINISH)  // errors that the tests must find
constexpr auto kFinish = std::memory_order_relaxed;
#else
constexpr auto kFinish = std::memory_order_release;
#endif
#if defined(JAT_PLANT_RELAXED_RANGE)
constexpr auto kPublish = std::memory_order_relaxed;
#else
constexpr auto kPublish = std::memory_order_release;
#endif

std::atomic<unsigned> num_forks{0};  // between the first process and this one

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

// Fetches what the caller announces, some lines at a time. Announcing takes no lock: a thread that reads while
// another `Ahead` is written fetches a mixture, which is harmless.
class alignas(64) Fetcher {
 public:
  void announce(const Ahead& ahead) {
    for (int i = 0; i < Ahead::kChunks; ++i) chunks_[i].store(ahead.chunks[i], std::memory_order_relaxed);
    count_.store(count_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }

  // Fetch the next lines, if any are left.
  void fetch_some() {
    const uint32_t count = count_.load(std::memory_order_relaxed);
    if (count != seen_) seen_ = count, fetched_ = 0;
    constexpr size_t kBytes = kFetchLines * kLineBytes;
    if (fetched_ == Ahead::kChunks * Ahead::kChunkBytes) return;
    const uint8_t* chunk = chunks_[fetched_ / Ahead::kChunkBytes].load(std::memory_order_relaxed);
    if (chunk == nullptr) return;
    // Into the second-level cache.
    for (size_t i = 0; i < kBytes; i += kLineBytes)
      __builtin_prefetch(chunk + fetched_ % Ahead::kChunkBytes + i, 0, 2);
    fetched_ += kBytes;
  }

 private:
  static constexpr size_t kLineBytes = 64, kFetchLines = 4;

  std::atomic<const uint8_t*> chunks_[Ahead::kChunks] = {};
  std::atomic<uint32_t> count_{0};

  // Only the thread that fetches uses these.
  uint32_t seen_ = 0;
  size_t fetched_ = 0;
};

// A thread's pieces of a run: those below `end` that are left.
struct alignas(64) Range {
  std::atomic<int> left{0};
  int end = 0;

  // Take the next piece; -1 if there is none. The caller stays in its run until `finished` counts the piece,
  // so a thread that was held up in here, however long, gets a piece of the current run or none.
  int take() {
    int count = left.load(std::memory_order_relaxed);
    while (count > 0) {
      if (left.compare_exchange_weak(count, count - 1, std::memory_order_acquire, std::memory_order_relaxed))
        return end - count;
    }
    return -1;
  }
};

}  // namespace

struct alignas(64) ThreadPool::Worker {
  std::thread thread;
  Fetcher fetcher;
  EventCount wake;
  std::atomic<bool> is_asleep{false};
  std::atomic<bool> has_piece{false};
  std::atomic<bool> backs_off{false};

  // Only the caller uses these; both are working time of the caller.
  Clock::duration back_at{0};  // when it was last overdue, or when its last backoff ends
  Clock::duration backoff{0};  // length of its last backoff
};

struct ThreadPool::Workers {
  Workers(int num_threads, int num_workers, const CoreSet& cores)
      : cores(cores), all(static_cast<size_t>(num_workers)), ranges(static_cast<size_t>(num_threads)) {}
  ~Workers() {
    stop.store(true);
    for (Worker& worker : all) worker.wake.notify();
    for (Worker& worker : all)
      if (worker.thread.joinable()) worker.thread.join();
  }

  // Take the next piece of the thread's own range, or of another's; -1 if there is none.
  int take(int thread) {
    const int num_ranges = static_cast<int>(ranges.size());
    for (int i = 0; i < num_ranges; ++i) {
      const int piece = ranges[(thread + i) % num_ranges].take();
      if (piece >= 0) return piece;
    }
    return -1;
  }

  // Wake some of the sleepers that do not back off. One that is just falling asleep may be missed until the
  // next run.
  void wake() {
    int woken = 0;
    for (Worker& worker : all) {
      if (!worker.is_asleep.load(std::memory_order_relaxed) ||
          worker.backs_off.load(std::memory_order_relaxed))
        continue;
      if (!worker.is_asleep.exchange(false)) continue;  // another thread has just woken it
      worker.wake.notify();
      if (++woken == kWakes) return;
    }
  }

  void keep_off_core_of_caller() {
    const int core = current_core();
    if (core == caller_core) return;
    caller_core = core;
    for (Worker& worker : all) cores.confine(worker.thread, core);
  }

  void end_backoffs() {
    if (num_backing_off == 0) return;
    for (Worker& worker : all) {
      if (!worker.backs_off.load(std::memory_order_relaxed) || worker.back_at > worked) continue;
      worker.backs_off.store(false, std::memory_order_relaxed);
      --num_backing_off;
    }
  }

  // A worker has kept the caller waiting for `delay`: let it sit out the next runs, unless it is reliable.
  void begin_backoff(Worker& worker, Clock::duration delay) {
    if (worker.backs_off.load(std::memory_order_relaxed)) return;  // it took the piece before it noticed
    if (worked - worker.back_at > kReliable * delay) {
      worker.backoff = Clock::duration{0};
      worker.back_at = worked;
    } else {
      worker.backoff =
          std::min<Clock::duration>(std::max(2 * worker.backoff, kFirstBackoff * delay), kMaxBackoff);
      worker.back_at = worked + worker.backoff;
      worker.backs_off.store(true, std::memory_order_relaxed);
      ++num_backing_off;
    }
  }

  // Wait until the workers have finished `pieces` pieces. own_time: that the caller worked in this run.
  void wait(int pieces, Clock::duration own_time) {
    const auto begin = Clock::now();
    Worker* overdue = nullptr;
    for (unsigned spins = 1; finished.load(std::memory_order_acquire) < pieces; ++spins) {
      fetcher.fetch_some();
      pause();
      if (spins % kSpinsPerLook != 0 || Clock::now() - begin < own_time + kSpinTimeout) continue;
      for (Worker& worker : all)
        if (worker.has_piece.load(std::memory_order_relaxed)) overdue = &worker;
      // If the caller has moved to the worker's core, the worker waits for that core.
      keep_off_core_of_caller();
      std::this_thread::yield();
    }
    if (overdue != nullptr) begin_backoff(*overdue, Clock::now() - begin);
  }

  const unsigned forks = num_forks.load(std::memory_order_relaxed);
  const CoreSet cores;
  std::vector<Worker> all;
  std::atomic<bool> stop{false};

  // Only the caller uses these.
  int caller_core = -1;
  int num_backing_off = 0;
  Clock::duration worked{0};  // by the caller, in runs that were shared or would have been but for backoffs

  Fetcher fetcher;  // the caller's

  // The run. The caller writes it while there are no pieces; a thread reads it after it has taken one.
  std::vector<Range> ranges;  // of each thread
  alignas(64) Function function = nullptr;
  const void* context = nullptr;

  alignas(64) std::atomic<int> finished{0};  // pieces that workers have finished
};

ThreadPool::ThreadPool(int num_threads, int spin_us)
    : num_threads_(num_threads), spin_us_(std::max(spin_us, kMinSpinUs)) {
  count_forks();
  start();
}

ThreadPool::~ThreadPool() {
  // In a forked child these threads do not exist, and joining them would hang.
  if (workers_->forks != num_forks.load(std::memory_order_relaxed)) workers_.release();  // NOLINT
}

void ThreadPool::start() {
  const CoreSet cores = CoreSet::allowed();
  // With a single core, workers would only take time from the caller.
  const int num_workers = cores.size() == 1 ? 0 : num_threads_ - 1;
  auto workers = std::make_unique<Workers>(num_threads_, num_workers, cores);
  // If the system has no more threads, this throws, and `workers` ends those that were started.
  for (int thread = 1; thread <= num_workers; ++thread) {
    std::thread& worker = workers->all[thread - 1].thread;
    worker = std::thread([this, thread, w = workers.get()] { work(*w, thread); });
    set_name(worker, "jat-worker");
  }
  workers_.release();  // NOLINT: empty, or the parent's, whose threads do not exist in a forked child
  workers_ = std::move(workers);
}

void ThreadPool::work(Workers& workers, int thread) {
  Worker& self = workers.all[thread - 1];
  const std::chrono::microseconds spin(spin_us_);
  auto idle_since = Clock::now();
  for (unsigned spins = 1; !workers.stop.load(std::memory_order_relaxed); ++spins) {
    bool has_worked = false;
    while (!self.backs_off.load(std::memory_order_relaxed)) {
      const int piece = workers.take(thread);
      if (piece < 0) break;
      self.has_piece.store(true, std::memory_order_relaxed);
      workers.function(workers.context, piece, thread);
      self.has_piece.store(false, std::memory_order_relaxed);
      workers.finished.fetch_add(1, kFinish);
      has_worked = true;
    }
    if (has_worked) idle_since = Clock::now();
    self.fetcher.fetch_some();
    pause();
    const bool backs_off = self.backs_off.load(std::memory_order_relaxed);
    if (!backs_off) {
      if (spins % kSpinsPerLook != 0) continue;
      const auto idle = Clock::now() - idle_since;
      if (idle < spin) {
        // Between two steps another thread may need the core, such as one that passes the results on.
        if (idle > kKeepCore) std::this_thread::yield();
        continue;
      }
    }

    const uint32_t count = self.wake.count();
    self.is_asleep.store(true);
    if (workers.stop.load()) return;
    self.wake.wait(count);
    workers.wake();
    idle_since = Clock::now();
  }
}

void ThreadPool::run_pieces(int num_pieces, Function function, const void* context, const Ahead* ahead) {
  const bool is_forked = workers_->forks != num_forks.load(std::memory_order_relaxed);
  if (is_forked) start();
  Workers& workers = *workers_;
  workers.end_backoffs();

  // Nothing to share, or no worker to share it with.
  const int num_ready = static_cast<int>(workers.all.size()) - workers.num_backing_off;
  if (num_ready == 0 || num_pieces < 2) {
    const bool is_timed = workers.num_backing_off > 0;
    const auto begin = is_timed ? Clock::now() : Clock::time_point{};
    for (int piece = 0; piece < num_pieces; ++piece) function(context, piece, 0);
    if (is_timed) workers.worked += Clock::now() - begin;
    return;
  }

  workers.keep_off_core_of_caller();
  workers.function = function;
  workers.context = context;
  workers.finished.store(0, std::memory_order_relaxed);
  for (int thread = num_threads_ - 1; thread >= 0; --thread) {
    Range& range = workers.ranges[thread];
    range.end = first_piece(num_pieces, thread + 1);
    range.left.store(range.end - first_piece(num_pieces, thread), kPublish);
  }
  workers.wake();
  if (ahead != nullptr) {
    workers.fetcher.announce(ahead[0]);
    for (size_t i = 0; i < workers.all.size(); ++i) workers.all[i].fetcher.announce(ahead[i + 1]);
  }

  const auto begin = Clock::now();
  int num_own = 0;
  for (int piece; (piece = workers.take(0)) >= 0; ++num_own) function(context, piece, 0);
  const auto own_time = Clock::now() - begin;
  workers.worked += own_time;
  if (num_own < num_pieces) workers.wait(num_pieces - num_own, own_time);
}

}  // namespace jat
