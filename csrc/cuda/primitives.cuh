// The hardware below the step's kernel: threads, barriers, clusters, bulk copies, memory order.
// emulator/primitives.h has the same names for the CPU.
#pragma once

#ifndef __CUDACC__
#include "emulator/primitives.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "step.h"

#define JAT_DEVICE __device__ __forceinline__
#define JAT_KERNEL __global__
#define JAT_ARGUMENT const __grid_constant__
#define JAT_UNROLL _Pragma("unroll")
#define JAT_PRAGMA(text) _Pragma(#text)
#define JAT_UNROLL_BY(count) JAT_PRAGMA(unroll count)
// What trace() leaves: 0 nothing; 1 times of four blocks, for step_trace of device.h; 2 markers in SASS.
#ifndef JAT_TRACE
#define JAT_TRACE 0
#endif
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
JAT_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
// These take subnormal numbers for zero, which saves their scaling.
JAT_DEVICE float fast_exp(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.4426950408889634f * x));
  return y;
}
JAT_DEVICE float inverse_sqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
JAT_DEVICE float fast_divide(float a, float b) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
  return a * reciprocal;
}

// The same address or number. The compiler computes it here, and not where it is used, behind a wait.
template <typename T>
JAT_DEVICE T* computed(T* address) {
  asm volatile("" : "+l"(address));
  return address;
}
JAT_DEVICE int computed(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// ---- threads

JAT_DEVICE int thread_index() { return threadIdx.x; }
JAT_DEVICE int block_index() { return blockIdx.x; }
JAT_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
JAT_DEVICE void warp_barrier() { __syncwarp(); }

// The first num_threads threads of the block; the loading warp takes no part.
JAT_DEVICE void consumer_barrier(int num_threads) {
  asm volatile("barrier.cta.sync.aligned 1, %0;" ::"r"(num_threads) : "memory");
}

// The same for any num_threads threads, in whole warps. id: 2 to 15.
JAT_DEVICE void named_barrier(int id, int num_threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

JAT_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// Four registers of a tensor core's operand.
struct Words {
  uint32_t values[4];
};
// In one load; the compiler may divide that of a struct.
JAT_DEVICE Words load_words(const void* source) {
  const uint4 load = *static_cast<const uint4*>(source);
  return {{load.x, load.y, load.z, load.w}};
}

// ---- clusters

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

// Let the current phase end only when `bytes` more have been copied or stored. Not an arrival.
JAT_DEVICE void mbarrier_expect(Mbarrier* barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
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

// The address of this block's `pointer` in the shared memory of a cluster peer.
JAT_DEVICE uint32_t peer_address(const void* pointer, int rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(mapped)
               : "r"(shared_address(pointer)), "r"(rank));
  return mapped;
}

// Stores to a cluster peer that complete on its mbarrier, 4 bytes for each number. target and barrier are this
// block's own addresses of what is meant in the peer. Who waits on the barrier sees the stored numbers;
// nothing else of the writer is ordered by it.
JAT_DEVICE void store_async(float* target, Mbarrier* barrier, int rank, float a) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(
                   peer_address(target, rank)),
               "f"(a), "r"(peer_address(barrier, rank))
               : "memory");
}
JAT_DEVICE void store_async(float* target, Mbarrier* barrier, int rank, float a, float b) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
                   peer_address(target, rank)),
               "f"(a), "f"(b), "r"(peer_address(barrier, rank))
               : "memory");
}
JAT_DEVICE void store_async(float* target, Mbarrier* barrier, int rank, float a, float b, float c, float d) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          peer_address(target, rank)),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(peer_address(barrier, rank))
      : "memory");
}

// ---- tensor cores
//
// c [16, 8] += a [16, K] b [K, 8], in float32, by a warp. In units of 32-bit registers, each of which holds
// two adjacent k of a 16-bit type or one float, lane = 4 g + t holds:
//   a[0] (row g, register t), a[1] (row g + 8, t), a[2] (row g, t + 4), a[3] (row g + 8, t + 4)
//   b0 (register t, column g), b1 (register t + 4, column g)
//   c[0], c[1] (row g, columns 2 t, 2 t + 1), c[2], c[3] (row g + 8)
// So K is 16, or 8 for floats; of mma_half 8 or 4.

// A float as a sum of two numbers with 11 significant bits, which keeps 22 of its 24.
struct SplitFloat {
  uint32_t high, low;
  JAT_DEVICE explicit SplitFloat(uint32_t bits) {
    const float value = __uint_as_float(bits);
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(high) : "f"(value));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(low) : "f"(value - __uint_as_float(high)));
  }
};

JAT_DEVICE void mma_tf32(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
JAT_DEVICE void mma_tf32(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

#define JAT_MMA(type)                                                        \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#define JAT_MMA_HALF(type)                                       \
  asm("mma.sync.aligned.m16n8k8.row.col.f32." type "." type      \
      ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])           \
      : "r"(a[0]), "r"(a[1]), "r"(b))

template <typename W>
JAT_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<W, BFloat16>) {
    JAT_MMA("bf16");
  } else if constexpr (std::is_same_v<W, Float16>) {
    JAT_MMA("f16");
  } else {
    const SplitFloat s0(a[0]), s1(a[1]), s2(a[2]), s3(a[3]), t0(b0), t1(b1);
    mma_tf32(c, s0.high, s1.high, s2.high, s3.high, t0.low, t1.low);
    mma_tf32(c, s0.low, s1.low, s2.low, s3.low, t0.high, t1.high);
    mma_tf32(c, s0.high, s1.high, s2.high, s3.high, t0.high, t1.high);
  }
}

template <typename W>
JAT_DEVICE void mma_half(float (&c)[4], const uint32_t (&a)[2], uint32_t b) {
  if constexpr (std::is_same_v<W, BFloat16>) {
    JAT_MMA_HALF("bf16");
  } else if constexpr (std::is_same_v<W, Float16>) {
    JAT_MMA_HALF("f16");
  } else {
    const SplitFloat s0(a[0]), s1(a[1]), t(b);
    mma_tf32(c, s0.high, s1.high, t.low);
    mma_tf32(c, s0.low, s1.low, t.high);
    mma_tf32(c, s0.high, s1.high, t.high);
  }
}
#undef JAT_MMA
#undef JAT_MMA_HALF

// ---- device memory

// The sums of a column and their ticket, as one number of 128 bits: whoever loads a packet sees one that was stored,
// and no mixture of two. Relaxed, since a packet publishes nothing but itself. Both bypass the L1 cache.
JAT_DEVICE void store_packet(StepPacket* target, float a, float b, float c, uint32_t ticket) {
  asm volatile(
      "{\n"
      ".reg .b128 packet;\n"
      ".reg .b64 low, high;\n"
      "mov.b64 low, {%1, %2};\n"
      "mov.b64 high, {%3, %4};\n"
      "mov.b128 packet, {low, high};\n"
      "st.relaxed.gpu.global.b128 [%0], packet;\n"
      "}" ::"l"(target),
      "f"(a), "f"(b), "f"(c), "r"(ticket)
      : "memory");
}
// ticket: the one that is waited for. The caller compares.
JAT_DEVICE StepPacket load_packet(const StepPacket* source, uint32_t /*ticket*/) {
  StepPacket packet;
  asm volatile(
      "{\n"
      ".reg .b128 packet;\n"
      ".reg .b64 low, high;\n"
      "ld.relaxed.gpu.global.b128 packet, [%4];\n"
      "mov.b128 {low, high}, packet;\n"
      "mov.b64 {%0, %1}, low;\n"
      "mov.b64 {%2, %3}, high;\n"
      "}"
      : "=f"(packet.values[0]), "=f"(packet.values[1]), "=f"(packet.values[2]), "=r"(packet.ticket)
      : "l"(source)
      : "memory");
  return packet;
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

// A number for the host and the ticket that says of which step it is, in one store: neither needs a fence.
JAT_DEVICE void store_prediction(uint64_t* target, float value, uint32_t ticket) {
  const uint64_t pair = static_cast<uint64_t>(ticket) << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(target), "l"(pair) : "memory");
}

// ---- time

JAT_DEVICE uint64_t now_ns() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}
JAT_DEVICE void relax() {}

#if JAT_TRACE == 1
constexpr int kTracedBlocks = 4, kTraceEvents = 1024;
struct TraceBuffer {
  uint32_t count[kTracedBlocks];
  struct Event {
    uint64_t time_ns;
    uint32_t phase, block;
  } events[kTracedBlocks][kTraceEvents];
};
__device__ TraceBuffer trace_buffer;
#endif

// Marks where a phase (0 to 15) of the step begins.
JAT_DEVICE void trace(int phase) {
#if JAT_TRACE == 1
  // Thread 0 of four blocks spread over the grid, of which one is the last. The number of events is kept in shared
  // memory, which is read sooner, and written to the buffer by the last phase.
  __shared__ uint32_t count;
  const uint32_t spread = gridDim.x < kTracedBlocks ? 1 : gridDim.x / kTracedBlocks;
  const uint32_t index = (gridDim.x - 1 - blockIdx.x) / spread;
  if (threadIdx.x != 0 || (gridDim.x - 1 - blockIdx.x) % spread != 0 || index >= kTracedBlocks) return;
  if (phase == 0) count = 0;
  if (count < kTraceEvents)
    trace_buffer.events[index][count++] = {now_ns(), static_cast<uint32_t>(phase), blockIdx.x};
  if (phase == 15) trace_buffer.count[index] = count;
#elif JAT_TRACE == 2
#define JAT_MARK(number)                  \
  case number:                            \
    asm volatile("pmevent " #number ";"); \
    break
  switch (phase) {  // an immediate operand
    JAT_MARK(0);
    JAT_MARK(1);
    JAT_MARK(2);
    JAT_MARK(3);
    JAT_MARK(4);
    JAT_MARK(5);
    JAT_MARK(6);
    JAT_MARK(7);
    JAT_MARK(8);
    JAT_MARK(9);
    JAT_MARK(10);
    JAT_MARK(11);
    JAT_MARK(12);
    JAT_MARK(13);
    JAT_MARK(14);
    JAT_MARK(15);
  }
#undef JAT_MARK
#endif
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
#endif  // __CUDACC__
