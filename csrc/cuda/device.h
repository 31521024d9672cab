// The device that runs a step: a GPU (step.cu), or the CPU in its place (emulator/step.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "step.h"

namespace jat {

struct DeviceFacts {
  std::string reason;  // why steps cannot run here; empty if they can
  std::string name;
  int capability_major = 0, capability_minor = 0;
  int num_sms = 0;
  int shared_bytes_per_block = 0;  // opt-in
  bool cooperative_launch = false;
};

// Never throws: a missing driver or device is a `reason`. The first call of a process initialises CUDA.
DeviceFacts device_facts(int ordinal);

// Makes a device the calling thread's current one, until the guard is destroyed.
class DeviceGuard {
 public:
  explicit DeviceGuard(int ordinal);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_;
};

// The number of clusters of `model` that can be resident together, or 0 and the reason. No step with more shared
// memory can be launched than this was asked for.
int max_active_clusters(const StepModel& model, std::string& reason);

// Zeroed memory of the device; null and the reason if there is none.
void* allocate_device(size_t bytes, std::string& reason);
void free_device(void* memory);
// Both return "", or what went wrong. The first happens behind what is on the stream, the second at once.
std::string zero_device(void* memory, size_t bytes, int64_t stream);
std::string copy_to_device(void* target, const void* source, size_t bytes);

// Zeroed memory with one address for host and device; null and the reason if there is none.
void* allocate_visible(size_t bytes, std::string& reason);
void free_visible(void* memory);

struct StepLaunch {
  const StepModel& model;
  const StepInput& input;
  int64_t stream;
  bool cooperative;
  // Only for tests on the CPU: the cluster that never runs, and the order of threads.
  int missing_cluster;
  uint32_t seed;
};

// Starts a step. Returns "", or why it did not start.
std::string launch_step(const StepLaunch& launch);

enum class StreamState { kBusy, kIdle, kFailed };
StreamState stream_state(int64_t stream, std::string& reason);

// A time on the device at which a block began a phase, in builds with JAT_TRACE=1.
struct TraceEvent {
  int block, phase;
  uint64_t time_ns;
};
// Those since the last call.
std::vector<TraceEvent> take_trace();

}  // namespace jat
