// Memory and facts of the CPU in the place of a GPU.
#include "device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../device.h"

namespace jat {

EmulatedDevice& emulated_device() {
  static EmulatedDevice device;
  return device;
}

std::string next_refusal() {
  int& refused = emulated_device().refused_launches;
  if (refused == 0) return "";
  --refused;
  return "the launch was refused";
}

DeviceFacts device_facts(int) {
  DeviceFacts facts;
  facts.name = "host";
  facts.capability_major = 9;
  facts.num_sms = emulated_device().num_sms;
  facts.shared_bytes_per_block = 227 * 1024;
  facts.cooperative_launch = true;
  return facts;
}

DeviceGuard::DeviceGuard(int ordinal) : before_(ordinal) {}
DeviceGuard::~DeviceGuard() { (void)before_; }

int max_active_clusters(const StepModel& model, std::string&) {
  int& allowed = emulated_device().allowed_shared_bytes;
  allowed = std::max(allowed, model.shared.bytes);
  const int most = emulated_device().max_blocks;
  return (most > 0 ? most : model.num_blocks) / model.cluster_size;
}

void* allocate_device(size_t bytes, std::string& reason) {
  const size_t rounded = (bytes + 127) / 128 * 128;
  void* memory = bytes <= emulated_device().memory_bytes ? std::aligned_alloc(128, rounded) : nullptr;
  if (memory == nullptr) {
    reason = "out of memory";
    return nullptr;
  }
  std::memset(memory, 0, rounded);
  return memory;
}
void free_device(void* memory) { std::free(memory); }
std::string zero_device(void* memory, size_t bytes, int64_t) {
  std::memset(memory, 0, bytes);
  return "";
}
std::string copy_to_device(void* target, const void* source, size_t bytes) {
  std::memcpy(target, source, bytes);
  return "";
}
void* allocate_visible(size_t bytes, std::string& reason) { return allocate_device(bytes, reason); }
void free_visible(void* memory) { std::free(memory); }

// A launch returns when the kernel has run, unless it hangs.
StreamState stream_state(int64_t, std::string&) {
  return emulated_device().hangs ? StreamState::kBusy : StreamState::kIdle;
}

std::vector<TraceEvent> take_trace() { return {}; }

}  // namespace jat
