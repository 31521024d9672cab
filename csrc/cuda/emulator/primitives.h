// primitives.cuh for the CPU. The kernel includes it, so that its accesses to memory are instrumented like
// the kernel's own.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "runtime.h"

#define JAT_DEVICE inline
#define JAT_KERNEL
#define JAT_ARGUMENT const
#define JAT_UNROLL
#define JAT_UNROLL_BY(count)
#define JAT_HAS_CLUSTERS 1

// Planted errors, which the tests must find.
#ifndef JAT_PLANT_MISSING_BARRIER
#define JAT_PLANT_MISSING_BARRIER 0
#endif
#ifndef JAT_PLANT_RELAXED_EXCHANGE
#define JAT_PLANT_RELAXED_EXCHANGE 0
#endif

namespace jat {

// ---- numbers

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }
inline float to_float(Float16 value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Scaling by 2^112 makes the exponent right, for subnormal numbers too.
  return bits_float(float_bits(bits_float(rest << 13) * 0x1p112f) | sign);
}

template <typename W>
W from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = float_bits(value);
  if (std::isnan(value)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
inline Float16 from_float<Float16>(float value) {
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000u;
  const float size = std::fabs(value);
  if (std::isnan(value)) return {0x7fff};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (size < 0x1p-14f)  // subnormal: a multiple of 2^-24
    return {static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(size * 0x1p24f)))};
  const uint32_t rest = (bits & 0x7fffffffu) - (112u << 23);
  return {static_cast<uint16_t>(sign | (rest + 0xfffu + (rest >> 13 & 1u)) >> 13)};
}

inline float fast_exp(float x) { return std::exp(x); }
inline float inverse_sqrt(float x) { return 1 / std::sqrt(x); }

// ---- threads, clusters, mbarriers

using emulator::block_index;
using emulator::bulk_copy;
using emulator::cluster_barrier;
using emulator::Mbarrier;
using emulator::mbarrier_arrive_sibling;
using emulator::mbarrier_init;
using emulator::mbarrier_test;
using emulator::now_ns;
using emulator::shared_memory;
using emulator::shuffle_xor;
using emulator::thread_index;
using emulator::warp_barrier;

inline void consumer_barrier(int num_threads) { emulator::consumer_barrier(num_threads); }

template <typename T>
T* sibling(T* pointer, int rank) {
  return static_cast<T*>(emulator::sibling(pointer, rank));
}

inline bool mbarrier_test_cluster(Mbarrier* barrier, uint32_t parity) {
  return mbarrier_test(barrier, parity);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(Mbarrier* barrier) { emulator::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(Mbarrier* barrier, uint32_t bytes) {
  emulator::mbarrier_arrive(barrier, bytes);
}

// ---- device memory

inline void add_global(float* target, float value) {
  auto* word = reinterpret_cast<uint32_t*>(target);
  uint32_t before = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &before, float_bits(bits_float(before) + value), true,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}
inline void add_global(float* target, float first, float second) {
  add_global(target, first);
  add_global(target + 1, second);
}

// A plain load, so that one that no grid barrier orders is a data race.
inline float load_global(const float* source) { return *source; }

constexpr int kRelease = JAT_PLANT_RELAXED_EXCHANGE ? __ATOMIC_RELAXED : __ATOMIC_RELEASE;
constexpr int kAcquire = JAT_PLANT_RELAXED_EXCHANGE ? __ATOMIC_RELAXED : __ATOMIC_ACQUIRE;

inline void arrive_global(uint32_t* counter) { __atomic_fetch_add(counter, 1, kRelease); }
inline uint32_t load_acquire(const uint32_t* counter) { return __atomic_load_n(counter, kAcquire); }
inline uint32_t load_relaxed(const uint32_t* counter) { return __atomic_load_n(counter, __ATOMIC_RELAXED); }
inline void store_relaxed(uint32_t* target, uint32_t value) {
  __atomic_store_n(target, value, __ATOMIC_RELAXED);
}
inline uint32_t count_global(uint32_t* counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL); }
inline void system_fence() {}
inline void store_system(uint32_t* target, uint32_t value) {
  __atomic_store_n(target, value, __ATOMIC_RELEASE);
}

// ---- time

inline void relax() { emulator::yield(); }

}  // namespace jat
