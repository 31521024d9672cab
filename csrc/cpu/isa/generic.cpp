#include "generic.h"
// After the vectors that it is written in.
#include "../kernels.inl"

namespace jat {

const Kernels kGenericKernels = kernels_named("generic");

}  // namespace jat
