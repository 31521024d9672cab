#include "runtime.h"

#ifndef JAT_TSAN
#define JAT_TSAN 0
#endif

#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <unordered_map>
#include <vector>

#include "numbers.h"
#include "record.h"

#if JAT_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_read_range(void* address, unsigned long size);
void __tsan_write_range(void* address, unsigned long size);
}
#endif

// Saves the callee-saved registers on the stack and switches to another stack.
#if defined(__x86_64__)
extern "C" void jat_switch_stack(void** from, void* to);
asm(R"(
.text
.globl jat_switch_stack
.hidden jat_switch_stack
.type jat_switch_stack, @function
jat_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size jat_switch_stack, .-jat_switch_stack
)");
#else
#include <ucontext.h>
#endif

namespace jat::emulator {

namespace {

constexpr int kWarp = 32;
constexpr int kNamedBarriers = 16;
constexpr size_t kStackBytes = 128 * 1024;

// ---- what ThreadSanitizer is told

#if JAT_TSAN
void acquire(void* tag) { __tsan_acquire(tag); }
void release(void* tag) { __tsan_release(tag); }
#else
void acquire(void*) {}
void release(void*) {}
#endif

// A barrier of fibers. It has two tags, so that a fiber that leaves one phase late is not ordered after
// arrivals at the next.
struct Fiber;
struct Barrier {
  int arrived = 0, expected = 0;
  unsigned phase = 0;
  char tags[2] = {};
  std::vector<Fiber*> waiting;
};

// A bulk copy, or an asynchronous store of up to 16 bytes, which has no source.
struct Transfer {
  char* target;
  const char* source;
  uint32_t bytes;
  float values[4];
};

struct MbarrierState {
  char tags[2] = {};
  std::vector<Transfer> transfers;  // not executed yet
};

struct Warp {
  Barrier barrier;
  Barrier shuffle;
  WarpRegisters registers[2][kWarp];
};

struct Cluster {
  Barrier barrier;
};

struct Block {
  int index, rank;
  Cluster* cluster;
  Block* blocks;  // of the grid
  char* shared;
  std::vector<Warp> warps;
  Barrier named[kNamedBarriers];
  std::unordered_map<const void*, MbarrierState> mbarriers;
};

struct Fiber {
  Block* block;
  int thread;
  bool done = false;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
#if JAT_TSAN
  void* tsan = nullptr;
#endif
};

struct Grid {
  Geometry geometry;
  void (*kernel)(const void*);
  const void* argument;
  std::vector<Block> blocks;
  std::vector<Cluster> clusters;
  std::vector<Fiber> fibers;
  std::deque<Fiber*> ready;
  std::minstd_rand random;
  Fiber scheduler;
  Fiber* current = nullptr;
  std::string fault;  // a misuse of the hardware, which ends the launch
  char start_tag = 0, end_tag = 0;
};

std::mutex one_at_a_time;
Grid* grid = nullptr;

void go_to(Fiber* next) {
  Fiber* before = grid->current;
  if (next == before) return;
  grid->current = next;
#if JAT_TSAN
  __tsan_switch_to_fiber(next->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  jat_switch_stack(&before->stack_pointer, next->stack_pointer);
#else
  swapcontext(&before->context, &next->context);
#endif
}

// Switches to another fiber, or to the scheduler when none can run.
void run_next() {
  std::deque<Fiber*>& ready = grid->ready;
  if (ready.empty()) return go_to(&grid->scheduler);
  if (grid->geometry.seed != 0) std::swap(ready.front(), ready[grid->random() % ready.size()]);
  Fiber* next = ready.front();
  ready.pop_front();
  go_to(next);
}

// Ends the launch. All fibers stay where they are.
[[noreturn]] void fail(const std::string& fault) {
  grid->fault = fault + " (block " + std::to_string(grid->current->block->index) + ", thread " +
                std::to_string(grid->current->thread) + ")";
  go_to(&grid->scheduler);
  std::abort();
}

void enter_fiber() {
  acquire(&grid->start_tag);
  grid->kernel(grid->argument);
  release(&grid->end_tag);
  grid->current->done = true;
  run_next();
  std::abort();  // a finished fiber is never resumed
}

// Waits until `expected` fibers have arrived. ordered: each of them then sees what the others wrote before.
void meet(Barrier& barrier, int expected, bool ordered) {
  if (barrier.arrived == 0) barrier.expected = expected;
  if (barrier.expected != expected)
    fail("barrier: expected the " + std::to_string(barrier.expected) + " threads of earlier arrivals, got " +
         std::to_string(expected));
  char* tag = &barrier.tags[barrier.phase & 1];
  if (ordered) release(tag);
  if (++barrier.arrived < expected) {
    barrier.waiting.push_back(grid->current);
    run_next();
  } else {
    barrier.arrived = 0;
    ++barrier.phase;
    for (Fiber* fiber : barrier.waiting) grid->ready.push_back(fiber);
    barrier.waiting.clear();
  }
  if (ordered) acquire(tag);
}

Block& block() { return *grid->current->block; }
Warp& warp() { return block().warps[grid->current->thread / kWarp]; }

// The block whose shared memory holds the pointer.
Block& owner(const void* pointer) {
  for (Block& candidate : grid->blocks)
    if (pointer >= candidate.shared && pointer < candidate.shared + grid->geometry.shared_bytes)
      return candidate;
  std::abort();
}

// Not memcpy, which ThreadSanitizer would attribute to the fiber that waits.
void execute(const Transfer& transfer) {
  auto* target = reinterpret_cast<uint32_t*>(transfer.target);
  const auto* source = reinterpret_cast<const uint32_t*>(
      transfer.source != nullptr ? transfer.source : reinterpret_cast<const char*>(transfer.values));
  for (uint32_t i = 0; i < transfer.bytes / 4; ++i) target[i] = source[i];
}

MbarrierState& state_of(Mbarrier* barrier) {
  auto& states = owner(barrier).mbarriers;
  const auto found = states.find(barrier);
  if (found == states.end()) fail("mbarrier: not initialised");
  return found->second;
}

// The phase ends when all have arrived and all bytes have come.
void end_phase(Mbarrier* barrier) {
  if (barrier->arrived != barrier->expected || barrier->pending != 0) return;
  barrier->arrived = 0;
  ++barrier->phase;
}

void expect_bytes(Mbarrier* barrier, uint32_t bytes) {
  barrier->pending = static_cast<int16_t>(barrier->pending + static_cast<int>(bytes / 4));
}

// For the sanitizer a transfer happens when it is asked for, in the thread that asks, and the barrier
// publishes it. Vector clocks cannot say that it publishes nothing else; tests/helpers/schedule.py can.
void start(Mbarrier* barrier, const Transfer& transfer) {
  MbarrierState& state = state_of(barrier);
  record::transfer(barrier, transfer.target, transfer.source, transfer.bytes);
#if JAT_TSAN
  if (transfer.source != nullptr) __tsan_read_range(const_cast<char*>(transfer.source), transfer.bytes);
  __tsan_write_range(transfer.target, transfer.bytes);
  release(&state.tags[barrier->phase & 1]);
#endif
  state.transfers.push_back(transfer);
}

class Stacks {
 public:
  explicit Stacks(size_t count) : bytes_(count * kStackBytes) {
    memory_ =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  ~Stacks() {
    if (ok()) munmap(memory_, bytes_);
  }
  bool ok() const { return memory_ != MAP_FAILED; }
  char* at(size_t index) { return static_cast<char*>(memory_) + index * kStackBytes; }

 private:
  size_t bytes_;
  void* memory_;
};

void prepare(Fiber& fiber, char* stack) {
#if defined(__x86_64__)
  // Aligned as after a call instruction: 8 more than a multiple of 16.
  void** top = reinterpret_cast<void**>(stack + kStackBytes - 56);
  top[0] = nullptr;  // the return address of enter_fiber
  top[-1] = reinterpret_cast<void*>(&enter_fiber);
  for (int i = 2; i <= 7; ++i) top[-i] = nullptr;
  fiber.stack_pointer = &top[-7];
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter_fiber, 0);
#endif
}

}  // namespace

std::string launch(const Geometry& geometry, void (*kernel)(const void*), const void* argument) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  auto made = std::make_unique<Grid>();
  grid = made.get();
  grid->geometry = geometry;
  grid->kernel = kernel;
  grid->argument = argument;
  grid->random.seed(geometry.seed);
  const size_t shared_bytes = (geometry.shared_bytes + 127) / 128 * 128;
  char* shared = static_cast<char*>(std::aligned_alloc(128, shared_bytes * geometry.num_blocks));
  std::memset(shared, 0xff, shared_bytes * geometry.num_blocks);  // NaN
  record::begin(geometry.num_blocks, geometry.cluster_size, geometry.num_threads, shared, shared_bytes);
  grid->clusters.resize(geometry.num_blocks / geometry.cluster_size);
  grid->blocks.resize(geometry.num_blocks);
  grid->fibers.resize(static_cast<size_t>(geometry.num_blocks) * geometry.num_threads);
  Stacks stacks(grid->fibers.size());
  if (!stacks.ok()) {
    std::free(shared);
    return "no memory for " + std::to_string(grid->fibers.size()) + " stacks";
  }
#if JAT_TSAN
  grid->scheduler.tsan = __tsan_get_current_fiber();
#endif
  release(&grid->start_tag);
  for (int b = 0; b < geometry.num_blocks; ++b) {
    Block& block = grid->blocks[b];
    const int cluster = b / geometry.cluster_size;
    block.index = b;
    block.rank = b % geometry.cluster_size;
    block.cluster = &grid->clusters[cluster];
    block.blocks = grid->blocks.data();
    block.shared = shared + shared_bytes * b;
    block.warps.resize((geometry.num_threads + kWarp - 1) / kWarp);
    for (int t = 0; t < geometry.num_threads; ++t) {
      const size_t index = static_cast<size_t>(b) * geometry.num_threads + t;
      Fiber& fiber = grid->fibers[index];
      fiber.block = &block;
      fiber.thread = t;
      if (cluster == geometry.missing_cluster) {
        fiber.done = true;
        continue;
      }
      prepare(fiber, stacks.at(index));
#if JAT_TSAN
      fiber.tsan = __tsan_create_fiber(0);
#endif
      grid->ready.push_back(&fiber);
    }
  }
  grid->current = &grid->scheduler;
  run_next();  // returns when no fiber can run
  acquire(&grid->end_tag);
  record::end();
  // A block must not end while its memory is written. Asynchronous stores that an aborted kernel no longer waits
  // for are left to the time that it gives them.
  bool is_copying = false;
  for (const Block& block : grid->blocks)
    for (const auto& [barrier, state] : block.mbarriers)
      for (const Transfer& transfer : state.transfers) is_copying |= transfer.source != nullptr;
  size_t stuck = 0;
  for (Fiber& fiber : grid->fibers) {
    if (!fiber.done) ++stuck;
#if JAT_TSAN
    if (fiber.tsan != nullptr) __tsan_destroy_fiber(fiber.tsan);
#endif
  }
  std::free(shared);
  grid = nullptr;
  if (!made->fault.empty()) return made->fault;
  if (stuck > 0) return "deadlock: " + std::to_string(stuck) + " threads wait for others that will not come";
  if (is_copying) return "a bulk copy is under way to a block that has ended";
  return "";
}

int thread_index() { return grid->current->thread; }
int block_index() { return block().index; }
char* shared_memory() { return block().shared; }

void* peer_memory(void* pointer, int rank) {
  const Block& own = block();
  const Block& other = own.blocks[own.index - own.rank + rank];
  return other.shared + (static_cast<char*>(pointer) - own.shared);
}

void yield() {
  grid->ready.push_back(grid->current);
  run_next();
}

// A lane cannot be two exchanges ahead of another, so two sets of registers suffice. As on the GPU, an
// exchange does not order memory.
const WarpRegisters* exchange(const uint32_t* registers, int count) {
  Warp& own = warp();
  auto* all = own.registers[own.shuffle.phase & 1];
  std::memcpy(all[grid->current->thread % kWarp], registers, count * sizeof(uint32_t));
  meet(own.shuffle, kWarp, false);
  return all;
}

float shuffle_xor(float value, int mask) {
  const uint32_t bits = float_bits(value);
  return bits_float(exchange(&bits, 1)[(grid->current->thread % kWarp) ^ mask][0]);
}

void warp_barrier() { meet(warp().barrier, kWarp, true); }
void named_barrier(int id, int num_threads) {
  if (id < 0 || id >= kNamedBarriers || num_threads < kWarp || num_threads % kWarp != 0)
    fail("named_barrier: expected an id of 0 to 15 and whole warps, got " + std::to_string(id) + " and " +
         std::to_string(num_threads) + " threads");
  Barrier& barrier = block().named[id];
  record::meet(&barrier, "named barrier", num_threads);
  meet(barrier, num_threads, true);
}
void cluster_barrier() {
  Barrier& barrier = block().cluster->barrier;
  const int num_threads = grid->geometry.cluster_size * grid->geometry.num_threads;
  record::meet(&barrier, "cluster barrier", num_threads);
  meet(barrier, num_threads, true);
}

void mbarrier_init(Mbarrier* barrier, int arrivals) {
  *barrier = {static_cast<int16_t>(arrivals), 0, 0, 0};
  owner(barrier).mbarriers[barrier];
  record::init(barrier, arrivals);
}

void mbarrier_arrive(Mbarrier* barrier, uint32_t bytes) {
  MbarrierState& state = state_of(barrier);
  record::arrive(barrier, bytes);
  // The copies follow the arrival. The phase stays open until they have been issued and completed.
  expect_bytes(barrier, bytes);
  if (barrier->arrived == barrier->expected) fail("mbarrier: more arrivals than expected in a phase");
  release(&state.tags[barrier->phase & 1]);
  ++barrier->arrived;
  end_phase(barrier);
}

void mbarrier_expect(Mbarrier* barrier, uint32_t bytes) {
  state_of(barrier);
  record::expect(barrier, bytes);
  expect_bytes(barrier, bytes);
  end_phase(barrier);
}

bool mbarrier_test(Mbarrier* barrier, uint32_t parity) {
  MbarrierState& state = state_of(barrier);
  while ((barrier->phase & 1) == parity && !state.transfers.empty()) {
    std::vector<Transfer>& transfers = state.transfers;
    const size_t chosen = grid->geometry.seed != 0 ? grid->random() % transfers.size() : 0;
    const Transfer transfer = transfers[chosen];
    transfers.erase(transfers.begin() + static_cast<std::ptrdiff_t>(chosen));
    execute(transfer);
    barrier->pending = static_cast<int16_t>(barrier->pending - static_cast<int>(transfer.bytes / 4));
    end_phase(barrier);
  }
  if ((barrier->phase & 1) == parity) return false;
  acquire(&state.tags[parity]);
  record::wait(barrier, static_cast<int>(barrier->phase) - 1);
  return true;
}

void bulk_copy(void* target, const void* source, uint32_t bytes, Mbarrier* barrier) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (!aligned(target) || !aligned(source) || bytes % 16 != 0 || bytes == 0)
    fail("bulk_copy: expected addresses and a size that are multiples of 16");
  start(barrier, {static_cast<char*>(target), static_cast<const char*>(source), bytes, {}});
}

void store_async(float* target, Mbarrier* barrier, int rank, const float* values, int count) {
  const uint32_t bytes = static_cast<uint32_t>(count) * 4;
  if (reinterpret_cast<uintptr_t>(target) % bytes != 0)
    fail("store_async: expected an address that is a multiple of " + std::to_string(bytes));
  Transfer transfer = {static_cast<char*>(peer_memory(target, rank)), nullptr, bytes, {}};
  for (int i = 0; i < count; ++i) transfer.values[i] = values[i];
  start(static_cast<Mbarrier*>(peer_memory(barrier, rank)), transfer);
}

void publish(void* memory) { release(memory); }
void observe(const void* memory) { acquire(const_cast<void*>(memory)); }

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace jat::emulator
