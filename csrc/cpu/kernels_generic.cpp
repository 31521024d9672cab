#include "simd_generic.h"
// after the vectors it is written in
#include "kernels.inl"

namespace jat {
extern const Kernels kGenericKernels;
const Kernels kGenericKernels = {"generic", &prepare,      &layer_norm,        &linear,
                                 &attend,   &convolve_row, &normalize_channels};
}  // namespace jat
