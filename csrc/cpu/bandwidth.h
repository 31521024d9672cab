// What the memory allows: the limit that a step's time is compared with.
#pragma once

#include <cstddef>

namespace jat {

// Bytes per second that `num_threads` read together from `num_bytes` of memory, a contiguous part each; the
// median of `repeats` passes. `num_bytes` should be many times the caches' size.
double read_bandwidth(size_t num_bytes, int num_threads, int repeats);

}  // namespace jat
