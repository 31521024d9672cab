// Linear layers of 4 bits: activations, and tiles of dot products. int4.h has the meaning of the codes,
// kernels.h the layout.
#pragma once

#include "linear.inl"

namespace {

using jat::kInt4Columns;
using jat::kInt4GroupWords;
using jat::kInt4PanelBytes;

// The sum of a row's groups in float32.
struct Int4Sum {
  V part[kVectors];
};

inline void finish(DotI4, const Product& product, const Int4Sum& sum, int token, int row, V* out) {
  const V scale = broadcast(product.operand.scales[token]);
  for (int i = 0; i < kVectors; ++i)
    out[i] = mul(sum.part[i], mul(load(product.linear.scales + row + i * kLanes), scale));
}

// The codes of a group are unpacked in registers and multiplied by bytes of activations; the sum of a group times
// its scale, less its minimum times the sum of the activations, is added in float32.
template <int Tokens, int Blocks>
inline void tile(DotI4 dot, const Product& product, int token, int block) {
  const LinearView& linear = product.linear;
  const uint8_t* weights =
      linear.panels + static_cast<size_t>(block / 2) * linear.num_groups * kInt4PanelBytes;
  const size_t stride = static_cast<size_t>(product.operand.stride);
  const uint32_t* activations = product.operand.groups + token * stride;
  const int side = block % 2;  // of the panel, where the tile begins

  Int4Sum acc[Tokens * Blocks];
  JAT_UNROLL
  for (int i = 0; i < Tokens * Blocks; ++i)
    for (int j = 0; j < kVectors; ++j) acc[i].part[j] = broadcast(0.0F);

  for (int g = 0; g < linear.num_groups; ++g) {
    const uint8_t* group = weights + static_cast<size_t>(g) * kInt4PanelBytes;
    const uint32_t* words = activations + static_cast<size_t>(g) * kInt4GroupWords;
    DotI4::Accumulator dots[Tokens * Blocks];
    JAT_UNROLL
    for (int i = 0; i < Tokens * Blocks; ++i) dots[i] = DotI4::zero();

    JAT_UNROLL
    for (int w = 0; w < kInt4Columns / 8; ++w) {
      DotI4::Weights codes[Blocks];
      JAT_UNROLL
      for (int b = 0; b < Blocks; ++b) {
        const uint8_t* p = group + (2 * w + side + b) * kGroupBytes;
        __builtin_prefetch(p + kPrefetchBytes, 0, 3);
        codes[b] = DotI4::weights(p);
      }
      JAT_UNROLL
      for (int t = 0; t < Tokens; ++t) {
        const DotI4::Activation a = DotI4::activation(words + t * stride + 2 * w);
        JAT_UNROLL
        for (int b = 0; b < Blocks; ++b) dots[t * Blocks + b] = DotI4::dot(dots[t * Blocks + b], codes[b], a);
      }
    }

    const uint8_t* scales = group + 2 * (kInt4Columns / 8) * kGroupBytes + side * kBlockRows;
    __builtin_prefetch(scales + kPrefetchBytes, 0, 3);
    JAT_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      V scale[kVectors], minimum[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        scale[i] = load_u8(scales + b * kBlockRows + i * kLanes);
        minimum[i] = load_u8(scales + 2 * kBlockRows + b * kBlockRows + i * kLanes);
      }
      JAT_UNROLL
      for (int t = 0; t < Tokens; ++t) {
        V sums[kVectors];
        DotI4::to_float(dots[t * Blocks + b], sums);
        float offset;
        std::memcpy(&offset, words + t * stride + kInt4Columns / 4, sizeof(offset));
        V* part = acc[t * Blocks + b].part;
        for (int i = 0; i < kVectors; ++i)
          part[i] = fma(minimum[i], broadcast(offset), fma(sums[i], scale[i], part[i]));
      }
    }
  }

  Int4Sum sums[Tokens * Blocks];
  JAT_UNROLL
  for (int i = 0; i < Tokens * Blocks; ++i) sums[i] = acc[i];
  write_tile(dot, product, sums, token, Tokens, block * kBlockRows, Blocks);
}

void linear(const LinearView& linear, const Operand& operand, int num_tokens, int begin, int end,
            Epilogue epilogue, float* out, int out_stride, const int* rows) {
  const Product product{linear, operand, num_tokens, epilogue, out, out_stride, rows};
  switch (linear.dtype) {
    case DType::kFloat32:
      return linear_blocks(DotF32(), product, begin, end);
    case DType::kBFloat16:
      return linear_blocks(DotBF16(), product, begin, end);
    case DType::kInt8:
      return linear_blocks(DotI8(), product, begin, end);
    case DType::kInt4:
      return linear_blocks(DotI4(), product, begin, end);
  }
}

}  // namespace
