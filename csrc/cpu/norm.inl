// LayerNorm of one token.
#pragma once

#include "math.inl"

namespace {

constexpr float kLargest = 3.40282347e38F;

// out = (x - mean) / sqrt(variance + epsilon) * weight + bias, of `columns` numbers.
void layer_norm(const float* x, const float* weight, const float* bias, int columns, float* out) {
  const int full = columns / kLanes * kLanes;
  V sum = broadcast(0.0F);
  for (int i = 0; i < full; i += kLanes) sum = add(sum, load(x + i));
  float total = reduce_add(sum);
  for (int i = full; i < columns; ++i) total += x[i];
  const float mean = total / static_cast<float>(columns);

  V squares = broadcast(0.0F);
  for (int i = 0; i < full; i += kLanes) {
    const V centred = sub(load(x + i), broadcast(mean));
    squares = fma(centred, centred, squares);
  }
  float variance = reduce_add(squares);
  for (int i = full; i < columns; ++i) variance += (x[i] - mean) * (x[i] - mean);
  variance /= static_cast<float>(columns);

  // An overflow must not end as an ordinary number: 1 / infinity would be 0.
  const bool finite = variance <= kLargest;
  const float inverse = finite ? 1.0F / __builtin_sqrtf(variance + kNormEpsilon) : __builtin_nanf("");

  for (int i = 0; i < full; i += kLanes) {
    const V normal = mul(sub(load(x + i), broadcast(mean)), broadcast(inverse));
    store(out + i, fma(normal, load(weight + i), load(bias + i)));
  }
  for (int i = full; i < columns; ++i) out[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
}

}  // namespace
