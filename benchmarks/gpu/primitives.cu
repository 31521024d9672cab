// What the hardware's own operations cost, one program, JSON on stdout. All figures in microseconds or GB/s.
//
//   nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a primitives.cu -o primitives && ./primitives
//
// Blocks wait for each other, so every kernel that spins has at most as many blocks as fit at once, launched
// cooperatively, and every spin gives up after kSpinLimitNs. A section that fails says so and the next one
// runs.
#include "measure.cuh"
#include "step_primitives.cuh"

constexpr int kRounds = 2000;
constexpr int kPayload = 3 * 768;  // floats: three tokens of the residual stream
constexpr int kClusterSize = 8;
constexpr int kChunkBytes = 12 * 1024;
constexpr size_t kWeightBytes = size_t{170} << 20;
constexpr int kRepeats = 300;

// ---- device helpers

__device__ void red_release(unsigned* address) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(address) : "memory");
}

__device__ unsigned load_acquire(const unsigned* address) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

__device__ unsigned load_system(const unsigned* address) {
  unsigned value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  return value;
}

__device__ void store_system(unsigned* address, unsigned value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// One thread arrives and waits until all blocks of the round have; the others wait for it. Bounded.
__device__ void exchange(unsigned* counter, unsigned* abort_flag, unsigned target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    red_release(counter);
    const unsigned long long begin = global_timer();
    unsigned polls = 0;
    while (load_acquire(counter) < target) {
      if ((++polls & 255) == 0 && (load_acquire(abort_flag) || global_timer() - begin > kSpinLimitNs)) {
        atomicExch(abort_flag, 1u);
        break;
      }
    }
  }
  __syncthreads();
}

__device__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- (a) exchange among all blocks

// times: [rounds] nanoseconds of block 0's rounds.
__global__ void exchange_rounds(unsigned* counter, unsigned* abort_flag, int rounds,
                                unsigned long long* times) {
  for (int round = 0; round < rounds; ++round) {
    const unsigned long long begin = clock64();
    exchange(counter, abort_flag, (round + 1) * gridDim.x);
    if (blockIdx.x == 0 && threadIdx.x == 0) times[round] = clock64() - begin;
  }
}

// Every block adds kPayload floats into one of three buffers, all exchange, every block reads the sums back
// and clears its share of the buffer of the round before (no block reads or adds there until the exchange after
// next).
__global__ void payload_rounds(unsigned* counter, unsigned* abort_flag, int rounds, float* buffers,
                               unsigned long long* times, float* sink) {
  float total = 0;
  for (int round = 0; round < rounds; ++round) {
    const unsigned long long begin = clock64();
    float* buffer = buffers + (round % 3) * kPayload;
    float* previous = buffers + ((round + 2) % 3) * kPayload;
    for (int i = threadIdx.x; i < kPayload; i += blockDim.x) {
      asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(buffer + i), "f"(1.0f) : "memory");
    }
    exchange(counter, abort_flag, (round + 1) * gridDim.x);
    for (int i = threadIdx.x; i < kPayload; i += blockDim.x) total += __ldcg(buffer + i);
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < kPayload; i += gridDim.x * blockDim.x)
      previous[i] = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0) times[round] = clock64() - begin;
  }
  sink[blockIdx.x * blockDim.x + threadIdx.x] = total;
}

// ---- (b) clusters

__device__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__global__ void cluster_rounds(int rounds, bool with_payload, unsigned long long* times, float* sink) {
#if __CUDA_ARCH__ >= 900
  __shared__ float inbox[2][kClusterSize][64];
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  float total = 0;
  cluster_barrier();
  for (int round = 0; round < rounds; ++round) {
    const unsigned long long begin = clock64();
    const int half = round & 1;
    if (with_payload) {  // 64 floats to each of the cluster's blocks
      for (int i = threadIdx.x; i < kClusterSize * 64; i += blockDim.x) {
        uint32_t remote;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                     : "=r"(remote)
                     : "r"(shared_address(&inbox[half][rank][i % 64])), "r"(i / 64));
        asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote), "f"(1.0f * i) : "memory");
      }
    }
    cluster_barrier();
    if (with_payload) {
      for (int i = threadIdx.x; i < kClusterSize * 64; i += blockDim.x) total += inbox[half][i / 64][i % 64];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) times[round] = clock64() - begin;
  }
  cluster_barrier();  // no block ends while its shared memory may still be written
  sink[blockIdx.x * blockDim.x + threadIdx.x] = total;
#endif
}

// ---- (c) streaming weights

// Blocks take chunks round robin; thread 0 keeps `depth` bulk copies in flight, 256 threads add them up.
__global__ void stream_bulk(const char* data, int num_chunks, int depth, float* sink, unsigned* abort_flag) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char ring[];
  __shared__ __align__(8) uint64_t full[16];
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < depth; ++slot) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[slot])) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  const int mine = (num_chunks - static_cast<int>(blockIdx.x) + gridDim.x - 1) / gridDim.x;
  auto fetch = [&](int index) {
    const int slot = index % depth;
    const uint32_t barrier = shared_address(&full[slot]);
    const char* source =
        data + (static_cast<size_t>(blockIdx.x) + static_cast<size_t>(index) * gridDim.x) * kChunkBytes;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(kChunkBytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(ring + slot * kChunkBytes)),
        "l"(source), "r"(kChunkBytes), "r"(barrier)
        : "memory");
  };
  if (threadIdx.x == 0) {
    for (int index = 0; index < min(depth, mine); ++index) fetch(index);
  }
  float4 total = make_float4(0, 0, 0, 0);
  for (int index = 0; index < mine; ++index) {
    const int slot = index % depth;
    const uint32_t parity = (index / depth) & 1;
    uint32_t done = 0;
    for (int tries = 0; !done; ++tries) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(shared_address(&full[slot])), "r"(parity)
          : "memory");
      if (tries > 100'000) {
        atomicExch(abort_flag, 1u);
        break;
      }
    }
    const float4* chunk = reinterpret_cast<const float4*>(ring + slot * kChunkBytes);
    for (int i = threadIdx.x; i < kChunkBytes / 16; i += blockDim.x) {
      const float4 value = chunk[i];
      total.x += value.x, total.y += value.y, total.z += value.z, total.w += value.w;
    }
    __syncthreads();  // all have read the slot
    if (threadIdx.x == 0 && index + depth < mine) fetch(index + depth);
  }
  sink[blockIdx.x * blockDim.x + threadIdx.x] = total.x + total.y + total.z + total.w;
#endif
}

template <int kUnroll>
__global__ void stream_loads(const float4* data, size_t count, float* sink) {
  float4 total = make_float4(0, 0, 0, 0);
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    float4 value[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) value[u] = __ldcs(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      total.x += value[u].x, total.y += value[u].y, total.z += value[u].z, total.w += value[u].w;
    }
  }
  for (; i < count; i += stride) total.x += data[i].x;
  sink[blockIdx.x * blockDim.x + threadIdx.x] = total.x + total.y + total.z + total.w;
}

// ---- (d), (e) launches

__global__ void empty_kernel() {}

__global__ void empty_dependent_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

__global__ void write_word(unsigned* word, unsigned value) { store_system(word, value); }

// Answers each ring of a mapped doorbell in a mapped word, `rounds` times or until it has waited too long.
__global__ void answer_doorbell(const unsigned* doorbell, unsigned* answer, int rounds) {
  for (int round = 1; round <= rounds; ++round) {
    const unsigned long long begin = global_timer();
    while (load_system(doorbell) < static_cast<unsigned>(round)) {
      if (global_timer() - begin > kSpinLimitNs) return;
    }
    store_system(answer, round);
  }
}

// ---- host

void launch_dependent(cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  CHECK(cudaLaunchKernelEx(&config, empty_dependent_kernel));
}

std::string measure_exchange(int num_blocks, bool with_payload) {
  DeviceBuffer<unsigned> words(64);  // counter at 0, abort flag at 32: lines of their own
  DeviceBuffer<float> buffers(3 * kPayload), sink(static_cast<size_t>(num_blocks) * 256);
  DeviceBuffer<unsigned long long> times(kRounds);
  Stream stream;
  double kernel_us = 0;
  for (int repeat = 0; repeat < 2; ++repeat) {  // the first is warm-up
    CHECK(cudaMemset(words.data, 0, 64 * sizeof(unsigned)));
    CHECK(cudaDeviceSynchronize());
    unsigned *counter = words.data, *abort_flag = words.data + 32;
    int rounds = kRounds;
    void* plain[] = {&counter, &abort_flag, &rounds, &times.data};
    void* loaded[] = {&counter, &abort_flag, &rounds, &buffers.data, &times.data, &sink.data};
    Event begin, end;
    CHECK(cudaEventRecord(begin.event, stream.stream));
    CHECK(cudaLaunchCooperativeKernel(
        with_payload ? reinterpret_cast<void*>(payload_rounds) : reinterpret_cast<void*>(exchange_rounds),
        dim3(num_blocks), dim3(256), with_payload ? loaded : plain, 0, stream.stream));
    CHECK(cudaEventRecord(end.event, stream.stream));
    CHECK(cudaEventSynchronize(end.event));
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, begin.event, end.event));
    kernel_us = milliseconds * 1e3;
  }
  not_aborted(words.data + 32);
  std::vector<unsigned long long> cycles(kRounds);
  CHECK(cudaMemcpy(cycles.data(), times.data, kRounds * sizeof(cycles[0]), cudaMemcpyDeviceToHost));
  return rounds_json(cycles, kernel_us);
}

std::string measure_cluster(int num_blocks, bool with_payload) {
  DeviceBuffer<float> sink(static_cast<size_t>(num_blocks) * 256);
  DeviceBuffer<unsigned long long> times(kRounds);
  Stream stream;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(num_blocks / kClusterSize * kClusterSize);
  config.blockDim = dim3(256);
  config.stream = stream.stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kClusterSize;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  CHECK(cudaOccupancyMaxActiveClusters(&clusters, reinterpret_cast<void*>(cluster_rounds), &config));
  if (clusters < 1) throw std::runtime_error("no cluster of 8 blocks fits");
  const std::vector<double> kernel = device_times(stream.stream, 3, [&](int) {
    CHECK(cudaLaunchKernelEx(&config, cluster_rounds, kRounds, with_payload, times.data, sink.data));
  });
  std::vector<unsigned long long> cycles(kRounds);
  CHECK(cudaMemcpy(cycles.data(), times.data, kRounds * sizeof(cycles[0]), cudaMemcpyDeviceToHost));
  std::string text = rounds_json(cycles, kernel.back());
  text.pop_back();
  return text + ", \"max_active_clusters\": " + std::to_string(clusters) + "}";
}

std::string rates_json(const std::vector<double>& times, double bytes) {
  const Summary s = summary(times);
  char text[200];
  std::snprintf(
      text, sizeof text,
      "{\"GB/s\": %.1f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"min_us\": %.3f, \"n\": %zu, \"MB\": %.2f}",
      bytes / s.p50 * 1e-3, s.p50, s.p99, s.least, times.size(), bytes * 1e-6);
  return text;
}

// Three buffers of 170 MB take turns: what is read next was pushed out of the L2.
struct Weights {
  DeviceBuffer<char> bytes{3 * kWeightBytes};
  const char* turn(int i) const { return bytes.data + (i % 3) * kWeightBytes; }
};

std::string measure_bulk(const Weights& weights, int num_blocks, int depth) {
  DeviceBuffer<float> sink(static_cast<size_t>(num_blocks) * 256);
  DeviceBuffer<unsigned> abort_flag(1);
  Stream stream;
  const int shared = depth * kChunkBytes, chunks = static_cast<int>(kWeightBytes / kChunkBytes);
  CHECK(cudaFuncSetAttribute(stream_bulk, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const auto times = device_times(stream.stream, kRepeats, [&](int i) {
    stream_bulk<<<num_blocks, 256, shared, stream.stream>>>(weights.turn(i), chunks, depth, sink.data,
                                                            abort_flag.data);
  });
  not_aborted(abort_flag.data);
  return rates_json(times, static_cast<double>(chunks) * kChunkBytes);
}

std::string measure_loads(const Weights& weights, int num_blocks, int num_threads) {
  DeviceBuffer<float> sink(static_cast<size_t>(num_blocks) * num_threads);
  Stream stream;
  const auto times = device_times(stream.stream, kRepeats, [&](int i) {
    stream_loads<8><<<num_blocks, num_threads, 0, stream.stream>>>(
        reinterpret_cast<const float4*>(weights.turn(i)), kWeightBytes / 16, sink.data);
  });
  return rates_json(times, static_cast<double>(kWeightBytes));
}

std::string measure_copy(const Weights& weights) {
  DeviceBuffer<char> target(kWeightBytes);
  Stream stream;
  const auto times = device_times(stream.stream, kRepeats, [&](int i) {
    CHECK(
        cudaMemcpyAsync(target.data, weights.turn(i), kWeightBytes, cudaMemcpyDeviceToDevice, stream.stream));
  });
  return rates_json(times, 2.0 * kWeightBytes);
}

std::string host_json(const std::function<void(int)>& call) {
  const auto times = host_times(kRepeats, call);
  return json(summary(times), times.size());
}

std::string device_json(cudaStream_t stream, const std::function<void(int)>& enqueue) {
  const auto times = device_times(stream, kRepeats, enqueue);
  return json(summary(times), times.size());
}

void host_side(Report& report) {
  report.part("launch that writes a mapped word, until the host sees it", [] {
    MappedWord word;
    Stream stream;
    return host_json([&](int i) {
      write_word<<<1, 1, 0, stream.stream>>>(word.device, i + 1);
      CHECK(cudaGetLastError());
      if (!word.wait(i + 1)) throw std::runtime_error("the word never came");
    });
  });
  report.part("running kernel answers a mapped doorbell, round trip", [] {
    MappedWord doorbell, answer;
    Stream stream;
    const int rounds = kRepeats + 5;
    answer_doorbell<<<1, 1, 0, stream.stream>>>(doorbell.device, answer.device, rounds);
    CHECK(cudaGetLastError());
    std::string text = host_json([&](int i) {
      *doorbell.host = i + 1;
      if (!answer.wait(i + 1)) throw std::runtime_error("no answer to the doorbell");
    });
    CHECK(cudaStreamSynchronize(stream.stream));
    return text;
  });
  report.part("launch of an empty kernel + stream synchronize", [] {
    Stream stream;
    return host_json([&](int) {
      empty_kernel<<<1, 32, 0, stream.stream>>>();
      CHECK(cudaStreamSynchronize(stream.stream));
    });
  });
  report.part("stream synchronize, nothing to wait for", [] {
    Stream stream;
    return host_json([&](int) { CHECK(cudaStreamSynchronize(stream.stream)); });
  });
  for (int nodes : {1, 64}) {
    for (bool dependent : {false, true}) {
      const std::string name =
          "graph of " + std::to_string(nodes) + " empty nodes" + (dependent ? ", programmatic edges" : "");
      auto record = [=](cudaStream_t stream) {
        for (int i = 0; i < nodes; ++i) {
          if (dependent) {
            launch_dependent(stream);
          } else {
            empty_kernel<<<1, 32, 0, stream>>>();
            CHECK(cudaGetLastError());
          }
        }
      };
      report.part(name + ", launch + synchronize", [=] {
        Stream stream;
        Graph graph(stream.stream, [&] { record(stream.stream); });
        return host_json([&](int) {
          CHECK(cudaGraphLaunch(graph.exec, stream.stream));
          CHECK(cudaStreamSynchronize(stream.stream));
        });
      });
      report.part(name + ", device time", [=] {
        Stream stream;
        Graph graph(stream.stream, [&] { record(stream.stream); });
        return device_json(stream.stream, [&](int) { CHECK(cudaGraphLaunch(graph.exec, stream.stream)); });
      });
    }
  }
  for (bool to_device : {true, false}) {
    const std::string name = to_device ? "copy of 1 KB to the device" : "copy of 1 KB to the host";
    auto copy = [=](void* device, void* host, cudaStream_t stream) {
      CHECK(to_device ? cudaMemcpyAsync(device, host, 1024, cudaMemcpyHostToDevice, stream)
                      : cudaMemcpyAsync(host, device, 1024, cudaMemcpyDeviceToHost, stream));
    };
    auto with_buffers = [=](const std::function<std::string(void*, void*, cudaStream_t)>& measure) {
      DeviceBuffer<char> device(1024);
      void* host = nullptr;
      CHECK(cudaMallocHost(&host, 1024));
      std::string text;
      try {
        Stream stream;
        text = measure(device.data, host, stream.stream);
      } catch (...) {
        cudaFreeHost(host);
        throw;
      }
      CHECK(cudaFreeHost(host));
      return text;
    };
    report.part(name + ", call + synchronize", [=] {
      return with_buffers([=](void* device, void* host, cudaStream_t stream) {
        return host_json([=](int) {
          copy(device, host, stream);
          CHECK(cudaStreamSynchronize(stream));
        });
      });
    });
    report.part(name + ", 64 graph nodes, device time", [=] {
      return with_buffers([=](void* device, void* host, cudaStream_t stream) {
        Graph graph(stream, [=] {
          for (int i = 0; i < 64; ++i) copy(device, host, stream);
        });
        return device_json(stream, [&](int) { CHECK(cudaGraphLaunch(graph.exec, stream)); });
      });
    });
  }
}

int main() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess || count == 0) {
    const std::string reason = code == cudaSuccess ? "no device" : cudaGetErrorString(code);
    std::printf("{\"skipped\": %s}\n", quoted(reason).c_str());
    return 0;
  }
  Report report;
  cudaDeviceProp device{};
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess) {
    std::printf("{\"skipped\": \"the device's properties cannot be read\"}\n");
    return 0;
  }
  report.add("device", quoted(device.name));
  report.add("multiprocessors", std::to_string(device.multiProcessorCount));
  report.add("L2 MB", std::to_string(device.l2CacheSize / 1e6));
  report.add("cooperative launch", device.cooperativeLaunch ? "true" : "false");
  const int blocks = device.multiProcessorCount;
  const bool has_clusters = device.major >= 9;
  report.part("exchange of all blocks, a round", [=] { return measure_exchange(blocks, false); });
  report.part("exchange of 128 blocks, a round",
              [=] { return measure_exchange(std::min(blocks, 128), false); });
  report.part("exchange of all blocks with 9 KB summed, a round",
              [=] { return measure_exchange(blocks, true); });
  report.part("exchange of 128 blocks with 9 KB summed, a round",
              [=] { return measure_exchange(std::min(blocks, 128), true); });
  if (has_clusters) {
    report.part("cluster barrier, 8 blocks", [=] { return measure_cluster(std::min(blocks, 128), false); });
    report.part("cluster barrier with 64 floats to each block",
                [=] { return measure_cluster(std::min(blocks, 128), true); });
  } else {
    report.add("cluster barrier, 8 blocks", "{\"error\": \"needs sm_90\"}");
  }
  report.part("streams", [&report, blocks, has_clusters] {
    Weights weights;
    for (int depth : {4, 8, 16}) {
      if (has_clusters) {
        report.part("170 MB by bulk copies, one block a multiprocessor, ring of " + std::to_string(depth) +
                        " x 12 KB",
                    [&] { return measure_bulk(weights, blocks, depth); });
      }
    }
    report.part("170 MB by 16-byte loads, one block of 256 a multiprocessor",
                [&] { return measure_loads(weights, blocks, 256); });
    report.part("170 MB by 16-byte loads, one block of 1024 a multiprocessor",
                [&] { return measure_loads(weights, blocks, 1024); });
    report.part("170 MB by 16-byte loads, 8 blocks of 256 a multiprocessor",
                [&] { return measure_loads(weights, blocks * 8, 256); });
    report.part("device-to-device copy of 170 MB, bytes read and written",
                [&] { return measure_copy(weights); });
    return std::string("\"done\"");
  });
  if (has_clusters) measure_step_primitives(report, blocks);
  host_side(report);
  std::printf("{%s}\n", report.body.c_str());
  return 0;
}
