// The kernel for GPUs: its launch, and facts about the device.
#include <cuda_runtime.h>

#include <cstring>
#include <memory>

#include "device.h"
#include "dispatch.h"
#include "step.cuh"

namespace jat {

namespace {

using Kernel = void (*)(StepModel, StepInput);

struct KernelOf {
  template <typename W, int kHidden>
  Kernel operator()() const {
    return step_kernel<W, kHidden>;
  }
};

Kernel kernel_of(const StepModel& model) { return dispatch<float, BFloat16, Float16>(model, KernelOf{}); }

std::string describe(cudaError_t error) {
  cudaGetLastError();  // clears the error, which would stay until it is read
  return error == cudaSuccess ? "" : std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

struct Launch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};

  Launch(const StepModel& model, int64_t stream, bool cooperative) {
    config.gridDim = dim3(model.num_blocks);
    config.blockDim = dim3(32 * (model.num_warps + 1));
    config.dynamicSmemBytes = model.shared.bytes;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(model.cluster_size), 1, 1};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = 1;
    config.attrs = attributes;
    config.numAttrs = cooperative ? 2 : 1;
  }
};

// Raises the kernel's limits of shared memory and cluster size; never lowers them, since other engines share
// the kernel.
cudaError_t allow(const StepModel& model) {
  const auto kernel = reinterpret_cast<const void*>(kernel_of(model));
  cudaFuncAttributes now;
  cudaError_t error = cudaFuncGetAttributes(&now, kernel);
  if (error == cudaSuccess && now.maxDynamicSharedSizeBytes < model.shared.bytes)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, model.shared.bytes);
  // Before any question about occupancy, which may depend on it.
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

}  // namespace

DeviceFacts device_facts(int ordinal) {
  DeviceFacts facts;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    facts.reason = describe(error);
    return facts;
  }
  if (ordinal < 0 || ordinal >= count) {
    facts.reason = "no device " + std::to_string(ordinal) + ": there are " + std::to_string(count);
    return facts;
  }
  cudaDeviceProp properties;
  if (const cudaError_t failed = cudaGetDeviceProperties(&properties, ordinal); failed != cudaSuccess) {
    facts.reason = describe(failed);
    return facts;
  }
  facts.name = properties.name;
  facts.capability_major = properties.major;
  facts.capability_minor = properties.minor;
  facts.num_sms = properties.multiProcessorCount;
  facts.shared_bytes_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
  facts.cooperative_launch = properties.cooperativeLaunch != 0;
  if (properties.major < 9)
    facts.reason = facts.name + " has compute capability " + std::to_string(properties.major) + "." +
                   std::to_string(properties.minor) + "; the persistent kernel needs 9.0 (sm_90) or newer";
  return facts;
}

DeviceGuard::DeviceGuard(int ordinal) : before_(ordinal) {
  cudaGetDevice(&before_);
  if (before_ != ordinal) cudaSetDevice(ordinal);
  if (before_ == ordinal) before_ = -1;
}
DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

int max_active_clusters(const StepModel& model, std::string& reason) {
  cudaError_t error = allow(model);
  int clusters = 0;
  if (error == cudaSuccess) {
    Launch launch(model, 0, false);
    error = cudaOccupancyMaxActiveClusters(&clusters, reinterpret_cast<const void*>(kernel_of(model)),
                                           &launch.config);
  }
  reason = describe(error);
  return error == cudaSuccess ? clusters : 0;
}

void* allocate_device(size_t bytes, std::string& reason) {
  void* memory = nullptr;
  cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaSuccess) error = cudaMemset(memory, 0, bytes);
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error == cudaSuccess) return memory;
  reason = describe(error);
  if (memory != nullptr) free_device(memory);
  return nullptr;
}
void free_device(void* memory) { describe(cudaFree(memory)); }
std::string zero_device(void* memory, size_t bytes, int64_t stream) {
  return describe(cudaMemsetAsync(memory, 0, bytes, reinterpret_cast<cudaStream_t>(stream)));
}
std::string copy_to_device(void* target, const void* source, size_t bytes) {
  return describe(cudaMemcpy(target, source, bytes, cudaMemcpyHostToDevice));
}

void* allocate_visible(size_t bytes, std::string& reason) {
  void* memory = nullptr;
  const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
  if (error != cudaSuccess) {
    reason = describe(error);
    return nullptr;
  }
  std::memset(memory, 0, bytes);
  return memory;
}
void free_visible(void* memory) { describe(cudaFreeHost(memory)); }

std::string launch_step(const StepLaunch& step) {
  Launch launch(step.model, step.stream, step.cooperative);
  const cudaError_t error = cudaLaunchKernelEx(&launch.config, kernel_of(step.model), step.model, step.input);
  // cudaLaunchKernelEx may also return an error of earlier work; neither has started this step.
  return describe(error);
}

StreamState stream_state(int64_t stream, std::string& reason) {
  const cudaError_t error = cudaStreamQuery(reinterpret_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return StreamState::kIdle;
  if (error == cudaErrorNotReady) {
    cudaGetLastError();
    return StreamState::kBusy;
  }
  reason = describe(error);
  return StreamState::kFailed;
}

std::vector<TraceEvent> take_trace() {
  std::vector<TraceEvent> events;
#if JAT_TRACE == 1
  auto buffer = std::make_unique<TraceBuffer>();
  if (cudaMemcpyFromSymbol(buffer.get(), trace_buffer, sizeof(TraceBuffer)) != cudaSuccess) return events;
  for (int i = 0; i < kTracedBlocks; ++i)
    for (uint32_t k = 0; k < buffer->count[i]; ++k) {
      const auto& event = buffer->events[i][k];
      events.push_back({static_cast<int>(event.block), static_cast<int>(event.phase), event.time_ns});
    }
  const uint32_t zeros[kTracedBlocks] = {};
  cudaMemcpyToSymbol(trace_buffer, zeros, sizeof zeros);  // the counts come first
#endif
  return events;
}

}  // namespace jat
