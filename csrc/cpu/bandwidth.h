// Memory bandwidth: the physical limit of a step, which reads all weights once.
#pragma once

#include <cstddef>

namespace jat {

// Returns the bytes per second that `num_threads` threads read together from a buffer of `num_bytes`, the
// median of `repeats` passes. `num_bytes` should be many times the size of the caches.
double read_bandwidth(size_t num_bytes, int num_threads, int repeats);

}  // namespace jat
