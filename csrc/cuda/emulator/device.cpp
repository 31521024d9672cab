// Memory and facts of the CPU in the place of a GPU.
#include "../device.h"

#include <cstdlib>
#include <cstring>

namespace jat {

DeviceFacts device_facts(int) {
  DeviceFacts facts;
  facts.name = "host";
  facts.capability_major = 9;
  facts.num_sms = 4;
  facts.shared_bytes_per_block = 227 * 1024;
  facts.cooperative_launch = true;
  return facts;
}

DeviceGuard::DeviceGuard(int ordinal) : before_(ordinal) {}
DeviceGuard::~DeviceGuard() { (void)before_; }

int max_active_clusters(const StepModel&, std::string&) { return 2; }

void* allocate_device(size_t bytes) {
  const size_t rounded = (bytes + 127) / 128 * 128;
  void* memory = std::aligned_alloc(128, rounded);
  if (memory != nullptr) std::memset(memory, 0, rounded);
  return memory;
}
void free_device(void* memory) { std::free(memory); }
void zero_device(void* memory, size_t bytes, int64_t) { std::memset(memory, 0, bytes); }
void* allocate_visible(size_t bytes) { return allocate_device(bytes); }
void free_visible(void* memory) { std::free(memory); }

// A launch returns when the kernel has run.
StreamState stream_state(int64_t, std::string&) { return StreamState::kIdle; }

}  // namespace jat
