// Dot products of registers: what a processor computes at most.
#pragma once

#include "linear.inl"

namespace {

// About `count` dot products of a group of weights. As many independent sums as the largest tile has, so that
// none waits for its last product. out: [kBlockRows], so that they are not optimised away.
template <typename Dot>
void repeat_dots_as(int count, float* out) {
  constexpr int kSums = Dot::kMaxTokens * kMaxBlocks;
  uint8_t group[kGroupBytes];
  uint32_t words[kSums];  // any numbers that are ordinary ones in each format
  std::memset(group, 0x3c, sizeof(group));
  std::memset(words, 0x3c, sizeof(words));
  asm volatile("" : "+m"(group), "+m"(words));  // not constants

  const typename Dot::Weights w = Dot::weights(group);
  typename Dot::Accumulator acc[kSums];
  JAT_UNROLL
  for (int i = 0; i < kSums; ++i) acc[i] = Dot::dot(Dot::zero(), w, Dot::activation(words + i));
  for (int n = kSums; n < count; n += kSums) {
    asm volatile("" : "+m"(words));  // not the same each time
    const typename Dot::Activation a = Dot::activation(words);
    JAT_UNROLL
    for (int i = 0; i < kSums; ++i) acc[i] = Dot::dot(acc[i], w, a);
  }

  const int32_t correction[kBlockRows] = {};
  V sum[kVectors], part[kVectors];
  for (V& v : sum) v = broadcast(0.0F);
  JAT_UNROLL
  for (int i = 0; i < kSums; ++i) {
    if constexpr (Dot::kIsInteger)
      Dot::to_float(acc[i], correction, part);
    else
      Dot::to_float(acc[i], part);
    for (int j = 0; j < kVectors; ++j) sum[j] = add(sum[j], part[j]);
  }
  for (int j = 0; j < kVectors; ++j) store(out + j * kLanes, sum[j]);
}

void repeat_dots(DType dtype, int count, float* out) {
  switch (dtype) {
    case DType::kFloat32:
      return repeat_dots_as<DotF32>(count, out);
    case DType::kBFloat16:
      return repeat_dots_as<DotBF16>(count, out);
    case DType::kInt8:
    case DType::kInt4:  // the same instructions
      return repeat_dots_as<DotI8>(count, out);
  }
}

}  // namespace
