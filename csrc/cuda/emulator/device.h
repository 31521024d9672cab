// What the CPU says of itself in the place of a GPU; tests change it.
#pragma once

#include <cstddef>
#include <string>

namespace jat {

struct EmulatedDevice {
  int num_sms = 4;
  int max_blocks = 0;                // that are resident together; 0: as many as are asked for
  size_t memory_bytes = 1ull << 40;  // of one allocation
  int refused_launches = 0;          // the next launches that fail
  bool hangs = false;                // launches never run
  int allowed_shared_bytes = 0;      // of a block: the most that occupancy was asked for
};
EmulatedDevice& emulated_device();

// Why the next launch fails; empty if it does not.
std::string next_refusal();

}  // namespace jat
