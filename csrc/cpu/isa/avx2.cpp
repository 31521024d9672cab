#include "avx2.h"
// After the vectors that it is written in.
#include "../kernels.inl"

namespace jat {

const Kernels kAvx2Kernels = kernels_named("avx2");

}  // namespace jat
