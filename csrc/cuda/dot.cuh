// Products of weights in shared memory with the activations of three rows, and their sums over lanes.
#pragma once

#include "primitives.cuh"
#include "step.h"

namespace jat {

#if JAT_HAS_CLUSTERS

// Adjacent numbers that are loaded together.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

template <typename W>
constexpr int kLoad = 16 / static_cast<int>(sizeof(W));  // numbers of a 16-byte load

// Sums over the 32 lanes of four values at once: each lane gets the sum of value (lane >> 3) & 3.
JAT_DEVICE float sum_warp(const float (&v)[4], int lane) {
  const bool upper = (lane & 16) != 0, odd = (lane & 8) != 0;
  const float a = (upper ? v[2] : v[0]) + shuffle_xor(upper ? v[0] : v[2], 16);
  const float b = (upper ? v[3] : v[1]) + shuffle_xor(upper ? v[1] : v[3], 16);
  float sum = (odd ? b : a) + shuffle_xor(odd ? a : b, 8);
  for (int mask = 4; mask >= 1; mask /= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

// The same over groups of 8 lanes: each lane gets its group's sum of value (lane >> 1) & 3.
JAT_DEVICE float sum_group(const float (&v)[4], int lane) {
  const bool upper = (lane & 4) != 0, odd = (lane & 2) != 0;
  const float a = (upper ? v[2] : v[0]) + shuffle_xor(upper ? v[0] : v[2], 4);
  const float b = (upper ? v[3] : v[1]) + shuffle_xor(upper ? v[1] : v[3], 4);
  const float sum = (odd ? b : a) + shuffle_xor(odd ? a : b, 2);
  return sum + shuffle_xor(sum, 1);
}

// Sum over the 32 lanes.
JAT_DEVICE float sum_all(float value) {
  for (int mask = 16; mask >= 1; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// A warp's activations [3, H] in registers: each lane holds the columns that it multiplies. kTiles: the
// number of 16-byte loads of a warp that make up H.
template <typename W, int kTiles>
class Activations {
 public:
  JAT_DEVICE Activations(const float* rows, int hidden, int lane) : lane_(lane) {
    JAT_UNROLL
    for (int t = 0; t < kStepRows; ++t) {
      JAT_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        JAT_UNROLL
        for (int i = 0; i < kLoad<W>; i += 4) {
          const auto four =
              *reinterpret_cast<const Pack<float, 4>*>(rows + t * hidden + (tile * 32 + lane) * kLoad<W> + i);
          JAT_UNROLL
          for (int j = 0; j < 4; ++j) values_[t][tile][i + j] = four.values[j];
        }
      }
    }
  }
  // This lane's part of weight [H] . rows.
  JAT_DEVICE void dot(const W* weight, float (&sums)[4]) const {
    float part[kStepRows][2] = {};
    JAT_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const auto w = reinterpret_cast<const Pack<W, kLoad<W>>*>(weight)[tile * 32 + lane_];
      JAT_UNROLL
      for (int i = 0; i < kLoad<W>; ++i) {
        const float value = to_float(w.values[i]);
        JAT_UNROLL
        for (int t = 0; t < kStepRows; ++t) part[t][i & 1] += value * values_[t][tile][i];
      }
    }
    JAT_UNROLL
    for (int t = 0; t < kStepRows; ++t) sums[t] = part[t][0] + part[t][1];
    sums[3] = 0;
  }

 private:
  float values_[kStepRows][kTiles][kLoad<W>];
  int lane_;
};

// For any H: the activations stay in shared memory.
template <typename W>
class Activations<W, 0> {
 public:
  JAT_DEVICE Activations(const float* rows, int hidden, int lane)
      : rows_(rows), hidden_(hidden), lane_(lane) {}
  JAT_DEVICE void dot(const W* weight, float (&sums)[4]) const {
    for (int t = 0; t < 4; ++t) sums[t] = 0;
    for (int column = lane_ * kLoad<W>; column < hidden_; column += 32 * kLoad<W>) {
      const auto w = *reinterpret_cast<const Pack<W, kLoad<W>>*>(weight + column);
      JAT_UNROLL
      for (int i = 0; i < kLoad<W>; ++i) {
        const float value = to_float(w.values[i]);
        for (int t = 0; t < kStepRows; ++t) sums[t] += value * rows_[t * hidden_ + column + i];
      }
    }
  }

 private:
  const float* rows_;
  int hidden_, lane_;
};

// The same for [3, head_dim] and groups of 8 lanes: lane `member` of a group holds the 8 columns from 8
// member on, and the 8 from 64 + 8 member on.
class HeadActivations {
 public:
  JAT_DEVICE HeadActivations(const float* rows, int head_dim, int member)
      : num_packs_(head_dim / 8), member_(member) {
    JAT_UNROLL
    for (int k = 0; k < 2; ++k) {
      JAT_UNROLL
      for (int t = 0; t < kStepRows; ++t) {
        JAT_UNROLL
        for (int i = 0; i < 8; ++i) {
          const int pack = k * 8 + member;
          values_[k][t][i] = pack < num_packs_ ? rows[t * head_dim + pack * 8 + i] : 0;
        }
      }
    }
  }
  template <typename W>
  JAT_DEVICE void dot(const W* weight, float (&sums)[4]) const {
    JAT_UNROLL
    for (int t = 0; t < 4; ++t) sums[t] = 0;
    JAT_UNROLL
    for (int k = 0; k < 2; ++k) {
      const int pack = k * 8 + member_;
      if (pack >= num_packs_) continue;
      JAT_UNROLL
      for (int half = 0; half < 8; half += kLoad<W>) {
        const auto w = *reinterpret_cast<const Pack<W, kLoad<W>>*>(weight + pack * 8 + half);
        JAT_UNROLL
        for (int i = 0; i < kLoad<W>; ++i) {
          const float value = to_float(w.values[i]);
          JAT_UNROLL
          for (int t = 0; t < kStepRows; ++t) sums[t] += value * values_[k][t][half + i];
        }
      }
    }
  }

 private:
  float values_[2][kStepRows][8];
  int num_packs_, member_;
};

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
