// Elementwise functions on vectors, and the constants that several families of kernels share.
#pragma once

#include "kernels.h"

// Before a loop over accumulators: an array stays in registers only if its indices are constants.
#if defined(__clang__)
#define JAT_UNROLL _Pragma("unroll")
#else
#define JAT_UNROLL _Pragma("GCC unroll 64")
#endif

namespace {

constexpr int kVectors = jat::kBlockRows / kLanes;  // of a block's 16 rows
constexpr float kNormEpsilon = 1e-5F;

// e^x with a relative error of about 1e-7 (Cephes' polynomial); 0 below -87.3.
inline V exponential(V x) {
  // x is the second operand of max, so that a NaN stays NaN.
  x = max(broadcast(-87.3365479F), min(broadcast(88.3762626F), x));
  // e^x = 2^n e^r, with ln 2 in two parts for an exact r.
  const V n = round(mul(x, broadcast(1.44269504F)));
  V r = fma(n, broadcast(-0.693359375F), x);
  r = fma(n, broadcast(2.12194440e-4F), r);

  V p = broadcast(1.9875691500e-4F);
  p = fma(p, r, broadcast(1.3981999507e-3F));
  p = fma(p, r, broadcast(8.3334519073e-3F));
  p = fma(p, r, broadcast(4.1665795894e-2F));
  p = fma(p, r, broadcast(1.6666665459e-1F));
  p = fma(p, r, broadcast(5.0000001201e-1F));
  p = fma(mul(p, r), r, add(r, broadcast(1.0F)));
  return scale_by_power(p, n);
}

// gelu_new: x / 2 (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline V gelu(V x) {
  const V cubic = fma(mul(mul(x, x), x), broadcast(0.044715F), x);
  const V e = exponential(mul(cubic, broadcast(-1.5957691216F)));
  return div(x, add(broadcast(1.0F), e));
}

}  // namespace
