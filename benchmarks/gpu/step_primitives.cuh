// The primitives of csrc/cuda/primitives.cuh as the persistent kernel uses them: as many blocks, threads and
// bytes of shared memory, and weights that stream into the ring meanwhile. A round is timed by the clock of
// block 0, and all rounds by events.
#pragma once

#include "../../csrc/cuda/primitives.cuh"
#include "measure.cuh"

namespace step_primitives {

constexpr int kRounds = 1000;
constexpr int kHidden = 768, kRows = 3, kSums = kRows * kHidden;
constexpr int kWarps = 12, kThreads = 32 * (kWarps + 1);  // the last warp loads
constexpr int kSharedBytes = 220 * 1024;
constexpr int kSlots = 11, kSlotBytes = 16 * 1024;
constexpr int kPeers = 8, kSlice = kHidden / kPeers;  // columns of a block of a cluster of 8
constexpr int kHeadColumns = 24;                      // of q, k and v of a head, by one of 8 blocks

struct Arguments {
  unsigned* counter;         // [64]: arrivals at 0, a flag that a wait took too long at 32
  float* sums;               // [3, kSums]
  jat::StepPacket* packets;  // [3, clusters, kHidden]; no ticket of them is that of a round
  const char* weights;       // streamed
  size_t weight_bytes;
  unsigned long long* times;  // cycles of block 0's rounds
  float* sink;
  int cluster_size;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

struct Bound {
  unsigned* flag;

  template <typename Condition>
  __device__ bool wait(Condition condition) const {
    const unsigned long long begin = jat::now_ns();
    for (unsigned polls = 1; !condition(); ++polls) {
      if (polls % 64 != 0) continue;
      if (jat::load_relaxed(flag) != 0) return false;
      if (jat::now_ns() - begin > kSpinLimitNs) {
        jat::store_relaxed(flag, 1);
        return false;
      }
    }
    return true;
  }
};

__device__ void consumers() { jat::consumer_barrier(32 * kWarps); }

// Where shared memory has what: mbarriers, then an inbox, then the ring.
__device__ jat::Mbarrier* mbarriers() { return reinterpret_cast<jat::Mbarrier*>(jat::shared_memory()); }
__device__ float* inbox() { return reinterpret_cast<float*>(jat::shared_memory() + 1024); }
__device__ char* slot(int index) { return jat::shared_memory() + 32 * 1024 + index * kSlotBytes; }

// Arrive at the barrier of a cluster peer.
__device__ void arrive_at_peer(jat::Mbarrier* barrier, int rank) {
  asm volatile(
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(jat::peer_address(barrier, rank))
      : "memory");
}

// Additions to device memory, and a counter of all blocks that orders them.
__device__ void add(float* target, float a) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(target), "f"(a) : "memory");
}
__device__ void add(float* target, float a, float b) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(target), "f"(a), "f"(b) : "memory");
}
__device__ void add(float* target, float a, float b, float c, float d) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target), "f"(a), "f"(b),
               "f"(c), "f"(d)
               : "memory");
}
__device__ void arrive(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ bool has_reached(const unsigned* counter, unsigned value) {
  unsigned count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  return count >= value;
}

// All blocks of the grid arrive, after they have added kSums floats by `kVector` at once; each reads the sums
// and zeroes its share of the buffer after the next.
template <int kVector>
__device__ void reduce(const Arguments& a, const Bound& bound, int round, float& total) {
  const int thread = threadIdx.x;
  float* sums = a.sums + round % 3 * kSums;
  if constexpr (kVector > 0) {
    for (int i = thread * kVector; i < kSums; i += 32 * kWarps * kVector) {
      if constexpr (kVector == 1) add(sums + i, 1.0f);
      if constexpr (kVector == 2) add(sums + i, 1.0f, 1.0f);
      if constexpr (kVector == 4) add(sums + i, 1.0f, 1.0f, 1.0f, 1.0f);
    }
  }
  consumers();
  if (thread == 0) {
    arrive(a.counter);
    bound.wait([&] { return has_reached(a.counter, (round + 1) * gridDim.x); });
  }
  consumers();
  if constexpr (kVector > 0) {
    for (int i = thread; i < kSums; i += 32 * kWarps) total += __ldcg(sums + i);
    for (int i = kSums * blockIdx.x / gridDim.x + thread; i < kSums * (blockIdx.x + 1) / gridDim.x;
         i += 32 * kWarps)
      a.sums[(round + 2) % 3 * kSums + i] = 0;
  }
}

// The cluster meets by arrivals of each block at the mbarriers of all, twice a round.
__device__ void meet(const Arguments& a, const Bound& bound, int round) {
  for (int which = 0; which < 2; ++which) {
    consumers();
    if (static_cast<int>(threadIdx.x) < a.cluster_size) arrive_at_peer(mbarriers() + which, threadIdx.x);
    bound.wait([&] { return jat::mbarrier_test_cluster(mbarriers() + which, round & 1); });
  }
}

// Each block sends kHeadColumns numbers of each row to all blocks of the cluster, by `kVector` at once, twice a
// round: the barriers alternate.
template <int kVector>
__device__ void send(const Arguments& a, const Bound& bound, int round, float& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = blockIdx.x % a.cluster_size;
  for (int which = 0; which < 2; ++which) {
    jat::Mbarrier* barrier = mbarriers() + which;
    if (threadIdx.x == 0)
      jat::mbarrier_arrive_expect(barrier, a.cluster_size * kRows * kHeadColumns * sizeof(float));
    consumers();
    float* target =
        inbox() + (which * 16 + rank) * kRows * kHeadColumns + warp * kHeadColumns + lane * kVector;
    if (warp < kRows && lane * kVector < kHeadColumns)
      for (int peer = 0; peer < a.cluster_size; ++peer) {
        if constexpr (kVector == 1) jat::store_async(target, barrier, peer, 1.0f);
        if constexpr (kVector == 2) jat::store_async(target, barrier, peer, 1.0f, 1.0f);
        if constexpr (kVector == 4) jat::store_async(target, barrier, peer, 1.0f, 1.0f, 1.0f, 1.0f);
      }
    bound.wait([&] { return jat::mbarrier_test_cluster(barrier, round & 1); });
    total +=
        inbox()[which * 16 * kRows * kHeadColumns + threadIdx.x % (a.cluster_size * kRows * kHeadColumns)];
  }
}

// The step's reduction (csrc/cuda/reduce.cuh) in its published size in clusters of 8. kParts: with the parts of an MLP.
template <bool kParts>
__device__ void exchange(const Arguments& a, const Bound& bound, int round, float& total) {
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, rank = blockIdx.x % kPeers;
  const int clusters = gridDim.x / kPeers;
  jat::Mbarrier* barriers = mbarriers() + 32;  // parts, even and odd sums
  float* parts = inbox();
  float* sums = inbox() + kSums + (round & 1) * kSums;
  jat::Mbarrier* arrived = barriers + 1 + (round & 1);
  if (thread == 0) {
    if (kParts) jat::mbarrier_arrive_expect(barriers, kSums * sizeof(float));
    jat::mbarrier_arrive_expect(arrived, kSums * sizeof(float));
  }
  consumers();
  if constexpr (kParts) {
    for (int tile = warp; tile < kHidden / 32; tile += kWarps) {
      const int row = 2 * (lane & 3);
      float* target = parts + (rank * kRows + row) * kSlice + tile % 3 * 32 + 4 * (lane >> 2);
      if (row < kRows) jat::store_async(target, barriers, tile / 3, 1.0f, 1.0f, 1.0f, 1.0f);
      if (row == 0) jat::store_async(target + kSlice, barriers, tile / 3, 1.0f, 1.0f, 1.0f, 1.0f);
    }
  }
  const uint32_t ticket = round + 1;
  jat::StepPacket* packets = a.packets + round % 3 * clusters * kHidden + rank * kSlice;
  if (thread < kSlice) {
    float sum[kRows] = {1, 1, 1};
    if constexpr (kParts) {
      bound.wait([&] { return jat::mbarrier_test_cluster(barriers, round & 1); });
      for (int peer = 0; peer < kPeers; ++peer)
        for (int row = 0; row < kRows; ++row) sum[row] += parts[(peer * kRows + row) * kSlice + thread];
    }
    jat::store_packet(packets + blockIdx.x / kPeers * kHidden + thread, sum[0], sum[1], sum[2], ticket);
  }
  const int quarter = lane & 3, quad = lane >> 2 & 3, column = thread >> 2;
  float sum = 0;
  jat::StepPacket found[4] = {};
  bool is_missing[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) is_missing[i] = quarter + 4 * i < clusters;
  bound.wait([&] {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (is_missing[i]) found[i] = jat::load_packet(packets + (quarter + 4 * i) * kHidden + column, ticket);
    bool is_any = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      is_missing[i] = is_missing[i] && found[i].ticket != ticket;
      is_any = is_any || is_missing[i];
    }
    return !is_any;
  });
#pragma unroll
  for (int i = 0; i < 4; ++i) sum += found[i].values[0] + found[i].values[1] + found[i].values[2];
  sum += jat::shuffle_xor(sum, 1);
  sum += jat::shuffle_xor(sum, 2);
  const float of[4] = {sum, jat::shuffle_xor(sum, 4), jat::shuffle_xor(sum, 8), jat::shuffle_xor(sum, 12)};
  if (quarter < kRows)
    for (int peer = quad; peer < kPeers; peer += 4)
      jat::store_async(sums + quarter * kHidden + rank * kSlice + (column & ~3), arrived, peer, of[0], of[1],
                       of[2], of[3]);
  bound.wait([&] { return jat::mbarrier_test_cluster(arrived, round >> 1 & 1); });
  for (int i = thread; i < kSums; i += 32 * kWarps) total += sums[i];
}

enum class What {
  kNothing,
  kBarrier,
  kNamedBarrier,
  kMeet,
  kSend1,
  kSend2,
  kSend4,
  kGrid,
  kReduce1,
  kReduce2,
  kReduce4,
  kPackets,
  kPartsAndPackets,
  kFence,
  kFenceAfterAdds,
  kSystemFence
};

template <What kWhat>
__device__ void play(const Arguments& a, const Bound& bound, int round, float& total) {
  if constexpr (kWhat == What::kBarrier) consumers();
  if constexpr (kWhat == What::kNamedBarrier) jat::named_barrier(2 + threadIdx.x / 128, 128);
  if constexpr (kWhat == What::kMeet) meet(a, bound, round);
  if constexpr (kWhat == What::kSend1) send<1>(a, bound, round, total);
  if constexpr (kWhat == What::kSend2) send<2>(a, bound, round, total);
  if constexpr (kWhat == What::kSend4) send<4>(a, bound, round, total);
  if constexpr (kWhat == What::kGrid) reduce<0>(a, bound, round, total);
  if constexpr (kWhat == What::kReduce1) reduce<1>(a, bound, round, total);
  if constexpr (kWhat == What::kReduce2) reduce<2>(a, bound, round, total);
  if constexpr (kWhat == What::kReduce4) reduce<4>(a, bound, round, total);
  if constexpr (kWhat == What::kPackets) exchange<false>(a, bound, round, total);
  if constexpr (kWhat == What::kPartsAndPackets) exchange<true>(a, bound, round, total);
  if constexpr (kWhat == What::kFence) __threadfence();
  if constexpr (kWhat == What::kFenceAfterAdds) {
    add(a.sums + threadIdx.x % (kSums / 4) * 4, 1.0f, 1.0f, 1.0f, 1.0f);
    __threadfence();
  }
  if constexpr (kWhat == What::kSystemFence) {
    a.sink[blockIdx.x * blockDim.x + threadIdx.x] = total;
    jat::system_fence();
  }
}

// Streams the weights through the ring and reads none of them, until the other warps have finished.
__device__ void stream(const Arguments& a, const Bound& bound, const volatile int* finished) {
  jat::Mbarrier* full = mbarriers() + 2;
  const size_t per_block = a.weight_bytes / gridDim.x / kSlotBytes;
  const char* source = a.weights + blockIdx.x * per_block * kSlotBytes;
  size_t filled = 0;
  for (; *finished == 0; ++filled) {
    const int index = filled % kSlots;
    const uint32_t parity = (filled / kSlots & 1) ^ 1;
    if (!bound.wait([&] { return jat::mbarrier_test(full + index, parity); })) break;
    jat::mbarrier_arrive_expect(full + index, kSlotBytes);
    jat::bulk_copy(slot(index), source + filled % per_block * kSlotBytes, kSlotBytes, full + index);
  }
  for (int index = 0; index < kSlots; ++index) {  // no copy may be under way when the block ends
    const uint32_t rounds = (filled + kSlots - 1 - index) / kSlots;
    if (rounds > 0) bound.wait([&] { return jat::mbarrier_test(full + index, (rounds - 1) & 1); });
  }
}

#endif

template <What kWhat, bool kStreams>
__global__ void __launch_bounds__(kThreads, 1) rounds(Arguments a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const Bound bound = {a.counter + 32};
  __shared__ volatile int finished;
  if (threadIdx.x == 0) {
    constexpr bool kSends = kWhat == What::kSend1 || kWhat == What::kSend2 || kWhat == What::kSend4;
    for (int i = 0; i < 2; ++i) jat::mbarrier_init(mbarriers() + i, kSends ? 1 : a.cluster_size);
    for (int i = 0; i < kSlots; ++i) jat::mbarrier_init(mbarriers() + 2 + i, 1);
    for (int i = 0; i < 3; ++i) jat::mbarrier_init(mbarriers() + 32 + i, 1);
    jat::mbarrier_init_fence();
    finished = 0;
  }
  jat::cluster_barrier();
  float total = 0;
  if (threadIdx.x >= 32 * kWarps) {
    if (kStreams && threadIdx.x == 32 * kWarps) stream(a, bound, &finished);
  } else {
    for (int round = 0; round < kRounds; ++round) {
      const unsigned long long begin = clock64();
      play<kWhat>(a, bound, round, total);
      if (blockIdx.x == 0 && threadIdx.x == 0) a.times[round] = clock64() - begin;
    }
    consumers();
    if (threadIdx.x == 0) finished = 1;
  }
  __syncwarp();
  jat::cluster_barrier();
  a.sink[blockIdx.x * blockDim.x + threadIdx.x] = total;
#endif
}

// ---- host

inline cudaLaunchConfig_t config_of(cudaLaunchAttribute (&attributes)[2], int blocks, int cluster_size,
                                    int shared) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster_size), 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  config.attrs = attributes;
  config.numAttrs = 1;
  return config;
}

template <typename Kernel>
int resident_clusters(Kernel kernel, int blocks, int cluster_size) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attributes[2] = {};
  const cudaLaunchConfig_t config =
      config_of(attributes, blocks / cluster_size * cluster_size, cluster_size, kSharedBytes);
  int clusters = 0;
  CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  return clusters;
}

template <What kWhat, bool kStreams>
std::string measure(int multiprocessors, int cluster_size, const DeviceBuffer<char>& weights,
                    size_t weight_bytes) {
  const auto kernel = rounds<kWhat, kStreams>;
  const int clusters = resident_clusters(kernel, multiprocessors, cluster_size),
            blocks = clusters * cluster_size;
  if (clusters < 1) throw std::runtime_error("no cluster is resident");
  DeviceBuffer<unsigned> words(64);
  DeviceBuffer<jat::StepPacket> packets(size_t{3} * clusters * kHidden);
  DeviceBuffer<float> sums(3 * kSums), sink(static_cast<size_t>(blocks) * kThreads);
  DeviceBuffer<unsigned long long> times(kRounds);
  Stream stream;
  double kernel_us = 0;
  for (int repeat = 0; repeat < 2; ++repeat) {  // the first is warm-up
    CHECK(cudaMemset(words.data, 0, 64 * sizeof(unsigned)));
    CHECK(cudaMemset(packets.data, 0, size_t{3} * clusters * kHidden * sizeof(jat::StepPacket)));
    CHECK(cudaDeviceSynchronize());
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = config_of(attributes, blocks, cluster_size, kSharedBytes);
    config.stream = stream.stream;
    config.numAttrs = 2;
    const Arguments arguments = {words.data,   sums.data,  packets.data, weights.data,
                                 weight_bytes, times.data, sink.data,    cluster_size};
    Event begin, end;
    CHECK(cudaEventRecord(begin.event, stream.stream));
    cudaError_t launched = cudaLaunchKernelEx(&config, kernel, arguments);
    if (launched != cudaSuccess) {  // a driver may refuse cooperative launches of clusters
      cudaGetLastError();
      config.numAttrs = 1;
      launched = cudaLaunchKernelEx(&config, kernel, arguments);
    }
    CHECK(launched);
    CHECK(cudaEventRecord(end.event, stream.stream));
    CHECK(cudaEventSynchronize(end.event));
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, begin.event, end.event));
    kernel_us = milliseconds * 1e3;
  }
  not_aborted(words.data + 32);
  std::vector<unsigned long long> cycles(kRounds);
  CHECK(cudaMemcpy(cycles.data(), times.data, kRounds * sizeof(cycles[0]), cudaMemcpyDeviceToHost));
  std::string text = rounds_json(cycles, kernel_us);
  text.pop_back();
  return text + ", \"blocks\": " + std::to_string(blocks) + "}";
}

// Resident clusters of 1 to 16 blocks, each with nearly all of a multiprocessor's shared memory.
inline std::string occupancy(int multiprocessors) {
  std::string text = "{";
  for (int size = 1; size <= 16; ++size) {
    int clusters = 0;
    try {
      clusters = resident_clusters(rounds<What::kNothing, false>, multiprocessors, size);
    } catch (const std::exception&) {
      cudaGetLastError();  // this device has no such clusters
    }
    text += (size > 1 ? ", \"" : "\"") + std::to_string(size) + "\": " + std::to_string(clusters);
  }
  return text + "}";
}

}  // namespace step_primitives

// Adds what the step's primitives cost to the report.
inline void measure_step_primitives(Report& report, int multiprocessors) {
  using namespace step_primitives;
  report.part("step: resident clusters by size, 220 KB a block", [=] { return occupancy(multiprocessors); });
  report.part("step: primitives", [&report, multiprocessors] {
    const size_t bytes = size_t{128} << 20;
    DeviceBuffer<char> weights(bytes);
    const auto add = [&](const std::string& name, auto measured) {
      report.part("step: " + name, [&] { return measured(); });
    };
#define JAT_MEASURE(name, what, streams) \
  add(name, [&] { return measure<What::what, streams>(multiprocessors, 8, weights, bytes); })
    JAT_MEASURE("barrier of 12 warps", kBarrier, false);
    JAT_MEASURE("barriers of 4 warps each", kNamedBarrier, false);
    JAT_MEASURE("two cluster barriers by mbarriers", kMeet, false);
    JAT_MEASURE("st.async of 72 floats to 8 blocks, twice", kSend1, false);
    JAT_MEASURE("st.async.v2 of 72 floats to 8 blocks, twice", kSend2, false);
    JAT_MEASURE("st.async.v4 of 72 floats to 8 blocks, twice", kSend4, false);
    JAT_MEASURE("st.async.v4 of 72 floats to 8 blocks, twice, while weights stream", kSend4, true);
    JAT_MEASURE("grid barrier", kGrid, false);
    JAT_MEASURE("grid barrier while weights stream", kGrid, true);
    JAT_MEASURE("grid barrier with 9 KB by red.f32", kReduce1, false);
    JAT_MEASURE("grid barrier with 9 KB by red.v2", kReduce2, false);
    JAT_MEASURE("grid barrier with 9 KB by red.v4", kReduce4, false);
    JAT_MEASURE("grid barrier with 9 KB by red.v4, while weights stream", kReduce4, true);
    JAT_MEASURE("sums by packets", kPackets, false);
    JAT_MEASURE("sums by packets, with parts of the cluster", kPartsAndPackets, false);
    JAT_MEASURE("sums by packets, with parts of the cluster, while weights stream", kPartsAndPackets, true);
    JAT_MEASURE("fence for the GPU", kFence, false);
    JAT_MEASURE("fence for the GPU behind a red.v4 of each thread", kFenceAfterAdds, false);
    JAT_MEASURE("fence for the host behind a store of each thread", kSystemFence, false);
#undef JAT_MEASURE
    return std::string("\"done\"");
  });
}
