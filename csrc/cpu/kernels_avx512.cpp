#include "simd_avx512.h"
// after the vectors it is written in
#include "kernels.inl"

namespace jat {
extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = {"avx512", &prepare,      &layer_norm,        &linear,
                                &attend,  &convolve_row, &normalize_channels};
}  // namespace jat
