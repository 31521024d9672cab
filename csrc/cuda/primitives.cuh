// The hardware below the step's kernel: threads, barriers, clusters, bulk copies, memory order.
// emulator/primitives.h has the same names for the CPU.
#pragma once

#ifndef __CUDACC__
#include "emulator/primitives.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define JAT_DEVICE __device__ __forceinline__
#define JAT_KERNEL __global__
#define JAT_ARGUMENT const __grid_constant__
#define JAT_UNROLL _Pragma("unroll")
#define JAT_PRAGMA(text) _Pragma(#text)
#define JAT_UNROLL_BY(count) JAT_PRAGMA(unroll count)
// Clusters, mbarriers and bulk copies exist from sm_90 on.
#define JAT_HAS_CLUSTERS (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)

namespace jat {

using BFloat16 = __nv_bfloat16;
using Float16 = __half;

#if JAT_HAS_CLUSTERS

// ---- numbers

template <typename W>
JAT_DEVICE float to_float(W value) {
  return static_cast<float>(value);
}
template <typename W>
JAT_DEVICE W from_float(float value) {
  return static_cast<W>(value);
}
JAT_DEVICE float fast_exp(float x) { return __expf(x); }
JAT_DEVICE float inverse_sqrt(float x) { return rsqrtf(x); }

// ---- threads

JAT_DEVICE int thread_index() { return threadIdx.x; }
JAT_DEVICE int block_index() { return blockIdx.x; }
JAT_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
JAT_DEVICE void warp_barrier() { __syncwarp(); }

// The first num_threads threads of the block; the loading warp takes no part.
JAT_DEVICE void consumer_barrier(int num_threads) {
  asm volatile("barrier.cta.sync 1, %0;" ::"r"(num_threads) : "memory");
}

JAT_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// ---- clusters

// The same address in the shared memory of a cluster peer, the block of that rank.
template <typename T>
JAT_DEVICE T* sibling(T* pointer, int rank) {
  uint64_t mapped;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
  return reinterpret_cast<T*>(mapped);
}

// All threads of all blocks of the cluster.
JAT_DEVICE void cluster_barrier() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// ---- mbarriers and bulk copies

using Mbarrier = uint64_t;

JAT_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

JAT_DEVICE void mbarrier_init(Mbarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}

// Makes initialised barriers visible to bulk copies and to the cluster.
JAT_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

JAT_DEVICE void mbarrier_arrive(Mbarrier* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrive, and let the phase end only when `bytes` have been copied.
JAT_DEVICE void mbarrier_arrive_expect(Mbarrier* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Arrive at the barrier of a cluster peer.
JAT_DEVICE void mbarrier_arrive_sibling(Mbarrier* barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// Returns whether the phase of this parity has ended. The hardware may wait a little before it answers.
JAT_DEVICE bool mbarrier_test(Mbarrier* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// The same for a barrier at which cluster peers arrive. It invalidates the L1 cache, which the test above
// avoids.
JAT_DEVICE bool mbarrier_test_cluster(Mbarrier* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// From global to this block's shared memory; addresses and size are multiples of 16. Completes on the
// barrier.
JAT_DEVICE void bulk_copy(void* target, const void* source, uint32_t bytes, Mbarrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(target)),
      "l"(source), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// ---- device memory

// Relaxed additions; the counter of the grid barrier orders them.
JAT_DEVICE void add_global(float* target, float value) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(target), "f"(value) : "memory");
}
JAT_DEVICE void add_global(float* target, float first, float second) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(target), "f"(first), "f"(second)
               : "memory");
}

// Reads what other blocks wrote before a grid barrier, so it bypasses the L1 cache.
JAT_DEVICE float load_global(const float* source) { return __ldcg(source); }

JAT_DEVICE void arrive_global(uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
JAT_DEVICE uint32_t load_acquire(const uint32_t* counter) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}
JAT_DEVICE uint32_t load_relaxed(const uint32_t* counter) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}
JAT_DEVICE void store_relaxed(uint32_t* target, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(target), "r"(value) : "memory");
}
// Increments the counter and returns the value before. Orders what comes before it and what comes after.
JAT_DEVICE uint32_t count_global(uint32_t* counter) {
  uint32_t value;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(value) : "l"(counter) : "memory");
  return value;
}

// Orders this thread's writes, for the host too.
JAT_DEVICE void system_fence() { __threadfence_system(); }
JAT_DEVICE void store_system(uint32_t* target, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(target), "r"(value) : "memory");
}

// ---- time

JAT_DEVICE uint64_t now_ns() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}
JAT_DEVICE void relax() {}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
#endif  // __CUDACC__
