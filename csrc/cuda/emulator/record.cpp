#include "record.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_map>

#include "runtime.h"

namespace jat::emulator::record {

namespace {

constexpr int kWarp = 32;
constexpr int kWord = 4;

enum How : int32_t { kRead, kWrite, kAtomic };

// An access to one word: how, space, word.
using Access = std::tuple<int32_t, int32_t, int32_t>;

struct Recorder {
  bool requested = false, active = false;
  std::vector<Space> global;
  Recording result;
  const char* shared = nullptr;
  size_t shared_bytes = 0;
  int threads = 0;
  std::vector<std::vector<Access>> accesses;  // of each warp since its last event
  std::vector<Event> packets;  // of each warp: sent or received since its last event and access
  std::unordered_map<const void*, int32_t> objects;
  std::vector<std::map<int32_t, int>> lanes;   // of each warp: lanes that have arrived at a barrier
  std::vector<std::map<int32_t, int>> waited;  // of each warp: the last phase it waited for
};

Recorder& recorder() {
  static Recorder instance;
  return instance;
}

int current_warp() { return block_index() * recorder().result.num_warps + thread_index() / kWarp; }

// Appends the packets that the warp has sent or received.
void flush_packets(int warp) {
  Event& packets = recorder().packets[warp];
  if (packets.ranges.empty()) return;
  recorder().result.events[warp].push_back(std::move(packets));
  packets.ranges.clear();
}

// Appends what the warp has accessed, as sorted ranges.
void flush(int warp) {
  flush_packets(warp);
  auto& accesses = recorder().accesses[warp];
  if (accesses.empty()) return;
  std::sort(accesses.begin(), accesses.end());
  Event event = {Kind::kAccess, 0, 0, {}};
  auto& ranges = event.ranges;
  for (const auto& [how, space, word] : accesses) {
    const size_t last = ranges.size() - 4;
    if (!ranges.empty() && ranges[last] == how && ranges[last + 1] == space && ranges[last + 3] >= word)
      ranges[last + 3] = std::max(ranges[last + 3], word + 1);
    else
      ranges.insert(ranges.end(), {how, space, word, word + 1});
  }
  accesses.clear();
  recorder().result.events[warp].push_back(std::move(event));
}

void add(const Event& event) {
  const int warp = current_warp();
  flush(warp);
  recorder().result.events[warp].push_back(event);
}

int32_t object(const void* pointer, const std::string& name) {
  Recorder& r = recorder();
  const auto [found, is_new] = r.objects.emplace(pointer, static_cast<int32_t>(r.result.objects.size()));
  if (is_new) r.result.objects.push_back(name);
  return found->second;
}

bool is_shared(const char* address) {
  const Recorder& r = recorder();
  return address >= r.shared && address < r.shared + r.shared_bytes * r.result.num_blocks;
}

int32_t mbarrier(const void* pointer) {
  const Recorder& r = recorder();
  const size_t offset = static_cast<const char*>(pointer) - r.shared;
  return object(pointer, "block " + std::to_string(offset / r.shared_bytes) + " mbarrier at " +
                             std::to_string(offset % r.shared_bytes));
}

// The space and the byte in it; false for memory that is not recorded, such as stacks and weights.
bool locate(const char* address, int32_t& space, size_t& offset) {
  const Recorder& r = recorder();
  if (is_shared(address)) {
    space = static_cast<int32_t>((address - r.shared) / r.shared_bytes);
    offset = (address - r.shared) % r.shared_bytes;
    return true;
  }
  for (size_t i = 0; i < r.global.size(); ++i)
    if (address >= r.global[i].begin && address < r.global[i].begin + r.global[i].bytes) {
      space = static_cast<int32_t>(r.result.num_blocks + i);
      offset = address - r.global[i].begin;
      return true;
    }
  return false;
}

void append_range(std::vector<int32_t>& ranges, int32_t how, const void* memory, uint32_t bytes) {
  int32_t space;
  size_t offset;
  if (!locate(static_cast<const char*>(memory), space, offset)) return;
  const auto first = static_cast<int32_t>(offset / kWord);
  const auto last = static_cast<int32_t>((offset + bytes + kWord - 1) / kWord);
  ranges.insert(ranges.end(), {how, space, first, last});
}

void access(How how, const void* memory, size_t bytes) {
  if (!recorder().active) return;
  int32_t space;
  size_t offset;
  if (!locate(static_cast<const char*>(memory), space, offset)) return;
  if (recorder().result.spaces[space].has_packets) return;
  flush_packets(current_warp());
  auto& accesses = recorder().accesses[current_warp()];
  for (size_t word = offset / kWord; word * kWord < offset + bytes; ++word)
    accesses.emplace_back(how, space, static_cast<int32_t>(word));
}

}  // namespace

void request(const std::vector<Space>& spaces) {
  recorder().requested = true;
  recorder().global = spaces;
}
Recording& recording() { return recorder().result; }

void begin(int num_blocks, int cluster_size, int num_threads, const char* shared, size_t shared_bytes) {
  Recorder& r = recorder();
  r.active = r.requested;
  r.requested = false;
  if (!r.active) return;
  r.result = {};
  r.result.num_blocks = num_blocks;
  r.result.cluster_size = cluster_size;
  r.result.num_warps = num_threads / kWarp;
  r.shared = shared;
  r.shared_bytes = shared_bytes;
  for (int block = 0; block < num_blocks; ++block)
    r.result.spaces.push_back(
        {"shared memory of block " + std::to_string(block), nullptr, shared_bytes, false});
  r.result.spaces.insert(r.result.spaces.end(), r.global.begin(), r.global.end());
  const int warps = num_blocks * r.result.num_warps;
  r.result.events.assign(warps, {});
  r.accesses.assign(warps, {});
  r.packets.assign(warps, {});
  r.lanes.assign(warps, {});
  r.waited.assign(warps, {});
  r.objects.clear();
}

void end() {
  Recorder& r = recorder();
  if (!r.active) return;
  for (size_t warp = 0; warp < r.accesses.size(); ++warp) flush(static_cast<int>(warp));
  r.active = false;
}

// A warp arrives when its last lane does; until then none of its lanes can leave.
void meet(const void* barrier, const std::string& name, int num_threads) {
  if (!recorder().active || num_threads <= kWarp) return;
  const int32_t id = object(barrier, name);
  int& lanes = recorder().lanes[current_warp()][id];
  if (++lanes < kWarp) return;
  lanes = 0;
  add({Kind::kMeet, id, num_threads / kWarp, {}});
}

void init(const void* pointer, int arrivals) {
  if (recorder().active) add({Kind::kInit, mbarrier(pointer), arrivals, {}});
}
void arrive(const void* pointer, uint32_t bytes) {
  if (recorder().active) add({Kind::kArrive, mbarrier(pointer), static_cast<int32_t>(bytes), {}});
}
void expect(const void* pointer, uint32_t bytes) {
  if (recorder().active) add({Kind::kExpect, mbarrier(pointer), static_cast<int32_t>(bytes), {}});
}
void wait(const void* pointer, int phase) {
  if (!recorder().active) return;
  const int32_t id = mbarrier(pointer);
  const auto [last, is_new] = recorder().waited[current_warp()].emplace(id, phase);
  if (!is_new && last->second == phase) return;  // another lane, or another look
  last->second = phase;
  add({Kind::kWait, id, phase, {}});
}
void transfer(const void* pointer, const void* target, const void* source, uint32_t bytes) {
  if (!recorder().active) return;
  Event event = {Kind::kTransfer, mbarrier(pointer), static_cast<int32_t>(bytes), {}};
  if (source != nullptr) append_range(event.ranges, kRead, source, bytes);
  append_range(event.ranges, kWrite, target, bytes);
  add(event);
}

// Packets of several lanes, or loads, are one event where nothing else of the warp comes between.
void packet(Kind kind, How how, const void* memory, uint32_t bytes, uint32_t ticket) {
  if (!recorder().active) return;
  const int warp = current_warp();
  Event& packets = recorder().packets[warp];
  if (!recorder().accesses[warp].empty() || packets.kind != kind ||
      packets.value != static_cast<int32_t>(ticket))
    flush(warp);
  packets.kind = kind;
  packets.value = static_cast<int32_t>(ticket);
  append_range(packets.ranges, how, memory, bytes);
}
void send(const void* memory, uint32_t bytes, uint32_t ticket) {
  packet(Kind::kSend, kWrite, memory, bytes, ticket);
}
void receive(const void* memory, uint32_t bytes, uint32_t ticket) {
  packet(Kind::kReceive, kRead, memory, bytes, ticket);
}
void count(const void* counter, uint32_t before) {
  if (recorder().active) add({Kind::kCount, object(counter, "counter"), static_cast<int32_t>(before), {}});
}
void phase(int number) {
  if (recorder().active && thread_index() % kWarp == 0) add({Kind::kPhase, 0, number, {}});
}

}  // namespace jat::emulator::record

// ---- what the compiler calls in the instrumented kernel

using jat::emulator::record::access;
using jat::emulator::record::kAtomic;
using jat::emulator::record::kRead;
using jat::emulator::record::kWrite;

#define JAT_HOOKS(bytes)                                                    \
  void __tsan_read##bytes(void* p) { access(kRead, p, bytes); }             \
  void __tsan_write##bytes(void* p) { access(kWrite, p, bytes); }           \
  void __tsan_unaligned_read##bytes(void* p) { access(kRead, p, bytes); }   \
  void __tsan_unaligned_write##bytes(void* p) { access(kWrite, p, bytes); } \
  void __tsan_volatile_read##bytes(void* p) { access(kRead, p, bytes); }    \
  void __tsan_volatile_write##bytes(void* p) { access(kWrite, p, bytes); }

#define JAT_ATOMICS(bits, type)                                                                            \
  type __tsan_atomic##bits##_load(const volatile type* p, int order) {                                     \
    access(kAtomic, const_cast<const type*>(p), bits / 8);                                                 \
    (void)order;                                                                                           \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                           \
  }                                                                                                        \
  void __tsan_atomic##bits##_store(volatile type* p, type value, int order) {                              \
    access(kAtomic, const_cast<const type*>(p), bits / 8);                                                 \
    (void)order;                                                                                           \
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                          \
  }                                                                                                        \
  type __tsan_atomic##bits##_fetch_add(volatile type* p, type value, int order) {                          \
    access(kAtomic, const_cast<const type*>(p), bits / 8);                                                 \
    (void)order;                                                                                           \
    return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type value, int order, \
                                                  int failure) {                                           \
    access(kAtomic, const_cast<const type*>(p), bits / 8);                                                 \
    (void)order;                                                                                           \
    (void)failure;                                                                                         \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);     \
  }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* p, unsigned long bytes) { access(kRead, p, bytes); }
void __tsan_write_range(void* p, unsigned long bytes) { access(kWrite, p, bytes); }
JAT_HOOKS(1)
JAT_HOOKS(2)
JAT_HOOKS(4)
JAT_HOOKS(8)
JAT_HOOKS(16)
JAT_ATOMICS(32, uint32_t)
JAT_ATOMICS(64, uint64_t)
}
