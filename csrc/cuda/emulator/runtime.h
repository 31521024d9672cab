// Blocks, warps and clusters on one CPU thread: every GPU thread is a fiber.
//
// Fibers switch only where a GPU thread can wait: barriers, shuffles, mbarriers, polls of global memory. Each
// is a logical thread for ThreadSanitizer. So races between any two threads of the grid are found from the
// order that barriers, mbarriers and atomics give, whatever the order in which the fibers happened to run.
// The implementation is not instrumented; it reports that order itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace jat::emulator {

struct Geometry {
  int num_blocks, cluster_size, num_threads;
  size_t shared_bytes;
  int missing_cluster = -1;  // this cluster never runs
  uint32_t seed = 0;         // not 0: fibers run in a random order
};

// Runs kernel(argument) on every thread of the grid. Returns "" or what went wrong.
std::string launch(const Geometry& geometry, void (*kernel)(const void*), const void* argument);

int thread_index();
int block_index();
char* shared_memory();
void* peer_memory(void* pointer, int rank);

void yield();
// Shows registers of this lane to its warp; returns those of all lanes, valid until its next exchange.
constexpr int kWarpRegisters = 6;
using WarpRegisters = uint32_t[kWarpRegisters];
const WarpRegisters* exchange(const uint32_t* registers, int count);
float shuffle_xor(float value, int mask);
void warp_barrier();
void named_barrier(int id, int num_threads);
void cluster_barrier();

// An mbarrier; eight bytes, as on the GPU.
struct Mbarrier {
  int16_t expected, arrived;
  uint16_t phase;
  int16_t pending;  // units of 4 bytes that are expected less those that have come; may be negative
};
void mbarrier_init(Mbarrier* barrier, int arrivals);
void mbarrier_arrive(Mbarrier* barrier, uint32_t bytes);
void mbarrier_expect(Mbarrier* barrier, uint32_t bytes);
// Bulk copies and asynchronous stores are executed here, and not before: a kernel that forgets to wait reads
// NaN. With a seed, in random order.
bool mbarrier_test(Mbarrier* barrier, uint32_t parity);
void bulk_copy(void* target, const void* source, uint32_t bytes, Mbarrier* barrier);
// 1, 2 or 4 numbers to the memory of a cluster peer; target and barrier are own addresses.
void store_async(float* target, Mbarrier* barrier, int rank, const float* values, int count);

// For the sanitizer: what this thread did before publish(memory) is ordered before what one does after observe(memory).
void publish(void* memory);
void observe(const void* memory);

// A product of tensor cores: see primitives.cuh. count: registers of `a`, 4 or 2.
enum class MmaType { kFloat32, kBFloat16, kFloat16 };
void mma(float (&c)[4], const uint32_t* a, int count, uint32_t b0, uint32_t b1, MmaType type);

uint64_t now_ns();

}  // namespace jat::emulator
