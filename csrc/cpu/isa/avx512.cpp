#include "avx512.h"
// After the vectors that it is written in.
#include "../kernels.inl"

namespace jat {

const Kernels kAvx512Kernels = kernels_named("avx512");

}  // namespace jat
