// The arithmetic's limit.
#pragma once

#include <string>

#include "kernels.h"

namespace jat {

// Multiply-adds per second of the threads together, in dot products of registers as the linear layers of a
// dtype use them; the median of some repeats.
double dot_peak(DType dtype, int num_threads, int repeats, const std::string& instruction_set);

}  // namespace jat
