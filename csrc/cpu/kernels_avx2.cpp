#include "simd_avx2.h"
// after the vectors it is written in
#include "kernels.inl"

namespace jat {
extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = {"avx2",  &prepare,      &layer_norm,        &linear,
                              &attend, &convolve_row, &normalize_channels};
}  // namespace jat
