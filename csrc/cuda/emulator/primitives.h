// primitives.cuh for the CPU. The kernel includes it, so that its accesses to memory are instrumented like
// the kernel's own.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../step.h"
#include "numbers.h"
#include "record.h"
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
#ifndef JAT_PLANT_UNCHECKED_TICKET
#define JAT_PLANT_UNCHECKED_TICKET 0
#endif

namespace jat {

// ---- numbers

inline float fast_exp(float x) { return std::exp(x); }
inline float inverse_sqrt(float x) { return 1 / std::sqrt(x); }
struct Words {
  uint32_t values[4];
};
inline Words load_words(const void* source) { return *static_cast<const Words*>(source); }
inline float fast_divide(float a, float b) { return a / b; }

template <typename T>
T computed(T value) {
  return value;
}

// ---- threads, clusters, mbarriers

using emulator::block_index;
using emulator::bulk_copy;
using emulator::cluster_barrier;
using emulator::Mbarrier;
using emulator::mbarrier_expect;
using emulator::mbarrier_init;
using emulator::mbarrier_test;
using emulator::named_barrier;
using emulator::now_ns;
using emulator::shared_memory;
using emulator::shuffle_xor;
using emulator::thread_index;
using emulator::warp_barrier;

inline void consumer_barrier(int num_threads) { emulator::named_barrier(1, num_threads); }

inline bool mbarrier_test_cluster(Mbarrier* barrier, uint32_t parity) {
  return mbarrier_test(barrier, parity);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(Mbarrier* barrier) { emulator::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(Mbarrier* barrier, uint32_t bytes) {
  emulator::mbarrier_arrive(barrier, bytes);
}

inline void store_async(float* target, Mbarrier* barrier, int rank, float a) {
  emulator::store_async(target, barrier, rank, &a, 1);
}
inline void store_async(float* target, Mbarrier* barrier, int rank, float a, float b) {
  const float values[] = {a, b};
  emulator::store_async(target, barrier, rank, values, 2);
}
inline void store_async(float* target, Mbarrier* barrier, int rank, float a, float b, float c, float d) {
  const float values[] = {a, b, c, d};
  emulator::store_async(target, barrier, rank, values, 4);
}

// ---- tensor cores

template <typename W>
constexpr emulator::MmaType kMmaType = std::is_same_v<W, BFloat16>  ? emulator::MmaType::kBFloat16
                                       : std::is_same_v<W, Float16> ? emulator::MmaType::kFloat16
                                                                    : emulator::MmaType::kFloat32;

template <typename W>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma(c, a, 4, b0, b1, kMmaType<W>);
}
template <typename W>
void mma_half(float (&c)[4], const uint32_t (&a)[2], uint32_t b) {
  emulator::mma(c, a, 2, b, 0, kMmaType<W>);
}

// ---- device memory

// Plain accesses, which the ticket orders: a packet that is read without it, or stored while it may still be read, is a
// data race. For the sanitizer a ticket publishes all that its thread did before, which a relaxed store does not;
// tests/helpers/schedule.py knows the difference.
inline void store_packet(StepPacket* target, float a, float b, float c, uint32_t ticket) {
  emulator::record::send(target, sizeof(StepPacket), ticket);
  target->values[0] = a;
  target->values[1] = b;
  target->values[2] = c;
  emulator::publish(target);
  __atomic_store_n(&target->ticket, ticket, __ATOMIC_RELAXED);
}
inline StepPacket load_packet(const StepPacket* source, uint32_t ticket) {
  const uint32_t found = __atomic_load_n(&source->ticket, __ATOMIC_RELAXED);
  if (!JAT_PLANT_UNCHECKED_TICKET) {
    if (found != ticket) return {{}, found};
    emulator::observe(source);
  }
  emulator::record::receive(source, sizeof(StepPacket), ticket);
  return {{source->values[0], source->values[1], source->values[2]}, ticket};
}
inline uint32_t load_relaxed(const uint32_t* counter) { return __atomic_load_n(counter, __ATOMIC_RELAXED); }
inline void store_relaxed(uint32_t* target, uint32_t value) {
  __atomic_store_n(target, value, __ATOMIC_RELAXED);
}
inline uint32_t count_global(uint32_t* counter) {
  const uint32_t before = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
  emulator::record::count(counter, before);
  return before;
}
inline void system_fence() {}
inline void store_system(uint32_t* target, uint32_t value) {
  __atomic_store_n(target, value, __ATOMIC_RELEASE);
}

inline void store_prediction(uint64_t* target, float value, uint32_t ticket) {
  __atomic_store_n(target, static_cast<uint64_t>(ticket) << 32 | float_bits(value), __ATOMIC_RELAXED);
}

// ---- time

inline void relax() { emulator::yield(); }
inline void trace(int phase) { emulator::record::phase(phase); }

}  // namespace jat
