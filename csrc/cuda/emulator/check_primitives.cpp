// What the primitives do, each in a small kernel: cuda_primitives NAME prints what went wrong, or "ok".
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../primitives.cuh"

namespace jat {
namespace {

// Runs a kernel on blocks of one cluster.
std::string run(int num_blocks, int num_threads, uint32_t seed, const std::function<void()>& kernel) {
  const emulator::Geometry geometry = {num_blocks, num_blocks, num_threads, 1024, -1, seed};
  return emulator::launch(
      geometry, [](const void* argument) { (*static_cast<const std::function<void()>*>(argument))(); },
      &kernel);
}

std::string expect_all(const std::vector<float>& actual, const std::vector<float>& expected,
                       double tolerance) {
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::fabs(actual[i] - expected[i]) <= tolerance))
      return "number " + std::to_string(i) + ": expected " + std::to_string(expected[i]) + ", got " +
             std::to_string(actual[i]);
  return "";
}

void wait(Mbarrier* barrier, uint32_t parity) {
  while (!mbarrier_test(barrier, parity)) relax();
}

// ---- tensor cores

// The register that holds numbers [first, first + count) of a row or column.
template <typename W>
uint32_t pack(const float* numbers) {
  W values[4 / sizeof(W)];
  for (size_t i = 0; i < 4 / sizeof(W); ++i) values[i] = from_float<W>(numbers[i]);
  uint32_t bits;
  std::memcpy(&bits, values, 4);
  return bits;
}

// c = a [16, K] b [K, 8] twice, against sums in double. kRegisters: 4 for mma, 2 for mma_half.
template <typename W, int kRegisters>
std::string check_mma(double tolerance) {
  constexpr int kPacked = 4 / sizeof(W), kSize = 2 * kRegisters * kPacked;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> a(16 * kSize), b(8 * kSize), c(16 * 8), expected(16 * 8);  // b: [column, k]
  for (float& value : a) value = to_float(from_float<W>(normal(random)));
  for (float& value : b) value = to_float(from_float<W>(normal(random)));
  for (int i = 0; i < 16 * 8; ++i) {
    double sum = 0;
    for (int k = 0; k < kSize; ++k) sum += 2.0 * a[i / 8 * kSize + k] * b[i % 8 * kSize + k];
    expected[i] = static_cast<float>(sum);
  }
  const std::string fault = run(1, 32, 3, [&] {
    const int lane = thread_index(), group = lane / 4, t = lane % 4;
    uint32_t registers[kRegisters];
    for (int i = 0; i < kRegisters; ++i)
      registers[i] = pack<W>(&a[(group + i % 2 * 8) * kSize + (t + i / 2 * 4) * kPacked]);
    const uint32_t b0 = pack<W>(&b[group * kSize + t * kPacked]);
    float sums[4] = {};
    for (int repeat = 0; repeat < 2; ++repeat) {
      if constexpr (kRegisters == 4)
        mma<W>(sums, registers, b0, pack<W>(&b[group * kSize + (t + 4) * kPacked]));
      else
        mma_half<W>(sums, registers, b0);
    }
    for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
  });
  return fault.empty() ? expect_all(c, expected, tolerance) : fault;
}

// ---- asynchronous stores

// Block 0 stores 1, 2 and 4 numbers to block 1, twice. `expected`: whether block 1 expects the bytes; `waits`:
// whether it waits for them before it reads.
std::string check_store(bool expects, bool waits) {
  std::vector<float> seen(14, -1), wanted(14);
  const std::string fault = run(2, 32, 5, [&] {
    auto* barrier = reinterpret_cast<Mbarrier*>(shared_memory());
    auto* target = reinterpret_cast<float*>(shared_memory() + 128);
    if (thread_index() == 0) {
      mbarrier_init(barrier, 1);
      mbarrier_init_fence();
    }
    cluster_barrier();
    for (int round = 0; round < 2; ++round) {
      const float base = 10.0f * static_cast<float>(round);
      if (thread_index() != 0) {
      } else if (block_index() == 0) {
        store_async(target, barrier, 1, base);
        store_async(target + 2, barrier, 1, base + 1, base + 2);
        store_async(target + 4, barrier, 1, base + 3, base + 4, base + 5, base + 6);
      } else {
        if (expects) mbarrier_expect(barrier, 7 * 4);
        mbarrier_arrive(barrier);
        if (waits) wait(barrier, round);
        for (int i = 0; i < 7; ++i) seen[round * 7 + i] = target[i == 0 ? 0 : i + 1];
      }
      cluster_barrier();
    }
  });
  for (int i = 0; i < 14; ++i) wanted[i] = static_cast<float>(i / 7 * 10 + i % 7);
  return fault.empty() ? expect_all(seen, wanted, 0) : fault;
}

// The stores of two rounds reach the barrier together: the first round must not end by bytes of the second.
std::string check_negative_count() {
  bool ended = true;
  const std::string fault = run(2, 32, 0, [&] {
    auto* barrier = reinterpret_cast<Mbarrier*>(shared_memory());
    auto* target = reinterpret_cast<float*>(shared_memory() + 128);
    if (thread_index() == 0) mbarrier_init(barrier, 1);
    cluster_barrier();
    if (block_index() == 0 && thread_index() == 0) store_async(target, barrier, 1, 1, 2);
    cluster_barrier();
    if (block_index() == 1 && thread_index() == 0) {
      ended = mbarrier_test(barrier, 0);  // the bytes come before they are expected, and before the arrival
      mbarrier_arrive_expect(barrier, 8);
      wait(barrier, 0);
    }
  });
  return !fault.empty() ? fault : ended ? "the phase ended without its arrival" : "";
}

// A bulk copy that is waited for, or not.
std::string check_copy(bool waits) {
  alignas(16) static const float source[4] = {1, 2, 3, 4};
  std::vector<float> seen(4, -1);
  const std::string fault = run(1, 32, 0, [&] {
    auto* barrier = reinterpret_cast<Mbarrier*>(shared_memory());
    auto* target = reinterpret_cast<float*>(shared_memory() + 128);
    if (thread_index() != 0) return;
    mbarrier_init(barrier, 1);
    mbarrier_arrive_expect(barrier, sizeof source);
    bulk_copy(target, source, sizeof source, barrier);
    if (waits) wait(barrier, 0);
    for (int i = 0; i < 4; ++i) seen[i] = target[i];
  });
  return fault.empty() ? expect_all(seen, {1, 2, 3, 4}, 0) : fault;
}

// ---- barriers of some warps

// Warps 0 and 1 meet at barrier 2, warps 2 and 3 at barrier 3. Each thread reads what its partner wrote.
// id: of the second pair; with 2 all four warps share a barrier for 64 threads, which is right only by chance.
std::string check_named_barrier(bool waits) {
  std::vector<float> seen(128), wanted(128);
  const std::string fault = run(1, 128, 7, [&] {
    auto* values = reinterpret_cast<float*>(shared_memory());
    const int thread = thread_index();
    values[thread] = static_cast<float>(thread);
    if (waits) named_barrier(2 + thread / 64, 64);
    seen[thread] = values[thread ^ 32];
  });
  for (int i = 0; i < 128; ++i) wanted[i] = static_cast<float>(i ^ 32);
  return fault.empty() ? expect_all(seen, wanted, 0) : fault;
}

std::string check_different_counts() {
  return run(1, 64, 0, [] { named_barrier(2, thread_index() < 32 ? 64 : 32); });
}

// ---- device memory

// Block 0 stores packets of three rounds to one place, and block 1 waits for each and answers by a packet.
std::string check_packet() {
  static StepPacket packets[2];
  std::memset(packets, 0, sizeof packets);
  std::vector<float> seen(9, -1), wanted(9);
  const std::string fault = run(2, 32, 9, [&] {
    if (thread_index() != 0) return;
    for (int round = 0; round < 3; ++round) {
      const uint32_t ticket = 100 + round;
      const float base = static_cast<float>(3 * round);
      const auto receive = [&](int from) {
        for (;;) {
          const StepPacket found = load_packet(packets + from, ticket);
          if (found.ticket == ticket) return found;
          relax();
        }
      };
      if (block_index() == 0) {
        store_packet(packets, base, base + 1, base + 2, ticket);
        receive(1);
      } else {
        const StepPacket found = receive(0);
        for (int i = 0; i < 3; ++i) seen[3 * round + i] = found.values[i];
        store_packet(packets + 1, 0, 0, 0, ticket);
      }
    }
  });
  for (int i = 0; i < 9; ++i) wanted[i] = static_cast<float>(i);
  return fault.empty() ? expect_all(seen, wanted, 0) : fault;
}

std::string check_prediction() {
  uint64_t pair = 0;
  const std::string fault = run(1, 32, 0, [&] {
    if (thread_index() == 0) store_prediction(&pair, -2.5f, 77);
  });
  if (!fault.empty()) return fault;
  return pair >> 32 == 77 && bits_float(static_cast<uint32_t>(pair)) == -2.5f ? ""
                                                                              : "another pair was stored";
}

const std::map<std::string, std::function<std::string()>> kChecks = {
    {"mma float32", [] { return check_mma<float, 4>(3e-6); }},
    {"mma bfloat16", [] { return check_mma<BFloat16, 4>(1e-5); }},
    {"mma float16", [] { return check_mma<Float16, 4>(1e-5); }},
    {"mma_half float32", [] { return check_mma<float, 2>(3e-6); }},
    {"mma_half bfloat16", [] { return check_mma<BFloat16, 2>(1e-5); }},
    {"mma_half float16", [] { return check_mma<Float16, 2>(1e-5); }},
    {"store_async", [] { return check_store(true, true); }},
    {"store_async without expect_tx", [] { return check_store(false, true); }},
    {"store_async without a wait", [] { return check_store(true, false); }},
    {"store_async before expect_tx", check_negative_count},
    {"bulk_copy", [] { return check_copy(true); }},
    {"bulk_copy without a wait", [] { return check_copy(false); }},
    {"named_barrier", [] { return check_named_barrier(true); }},
    {"named_barrier left out", [] { return check_named_barrier(false); }},
    {"named_barrier of different counts", check_different_counts},
    {"packet", check_packet},
    {"store_prediction", check_prediction},
};

}  // namespace
}  // namespace jat

int main(int argc, char** argv) {
  const auto check = argc == 2 ? jat::kChecks.find(argv[1]) : jat::kChecks.end();
  if (check == jat::kChecks.end()) {
    for (const auto& [name, run] : jat::kChecks) std::printf("%s\n", name.c_str());
    return argc == 1 ? 0 : 2;
  }
  const std::string reason = check->second();
  std::printf("%s\n", reason.empty() ? "ok" : reason.c_str());
  return 0;
}
