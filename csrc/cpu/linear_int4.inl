// Linear layers of 4 bits: activations, and tiles of dot products. int4.h has the meaning of the codes,
// kernels.h the layout.
#pragma once

#include "linear.inl"

namespace {

using jat::kInt4Columns;
using jat::kInt4GroupWords;
using jat::kInt4PanelBytes;

// One tile of the product, like `tile`: the codes of a group are unpacked in registers and multiplied by
// bytes of activations; the sum of a group times its scale, less its minimum times the sum of the activations, is
// added in float32.
template <int Tokens, int Blocks>
inline void tile_int4(const LinearView& linear, const Operand& operand, int token, int block,
                      Epilogue epilogue, float* out, int out_stride, const int* rows) {
  const uint8_t* weights =
      linear.panels + static_cast<size_t>(block / 2) * linear.num_groups * kInt4PanelBytes;
  const uint32_t* activations = operand.groups + static_cast<size_t>(token) * operand.stride;
  const int side = block % 2;  // of the panel, where the tile begins

  V acc[Blocks][Tokens][kVectors];
  for (int b = 0; b < Blocks; ++b)
    for (int t = 0; t < Tokens; ++t)
      for (int i = 0; i < kVectors; ++i) acc[b][t][i] = broadcast(0.0F);

  for (int g = 0; g < linear.num_groups; ++g) {
    const uint8_t* group = weights + static_cast<size_t>(g) * kInt4PanelBytes;
    const uint32_t* words = activations + static_cast<size_t>(g) * kInt4GroupWords;
    DotI4::Accumulator dots[Blocks][Tokens];
    for (int b = 0; b < Blocks; ++b)
      for (int t = 0; t < Tokens; ++t) dots[b][t] = DotI4::zero();

    for (int w = 0; w < kInt4Columns / 8; ++w) {
      for (int b = 0; b < Blocks; ++b) {
        const uint8_t* p = group + (2 * w + side + b) * kGroupBytes;
        __builtin_prefetch(p + kPrefetchBytes, 0, 3);
        const DotI4::Weights codes = DotI4::weights(p);
        for (int t = 0; t < Tokens; ++t)
          dots[b][t] = DotI4::dot(dots[b][t], codes, words + static_cast<size_t>(t) * operand.stride + 2 * w);
      }
    }

    const uint8_t* scales = group + 2 * (kInt4Columns / 8) * kGroupBytes + side * kBlockRows;
    __builtin_prefetch(scales + kPrefetchBytes, 0, 3);
    for (int b = 0; b < Blocks; ++b) {
      V scale[kVectors], minimum[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        scale[i] = load_u8(scales + b * kBlockRows + i * kLanes);
        minimum[i] = load_u8(scales + 2 * kBlockRows + b * kBlockRows + i * kLanes);
      }
      for (int t = 0; t < Tokens; ++t) {
        V sums[kVectors];
        DotI4::to_float(dots[b][t], sums);
        float offset;
        std::memcpy(&offset, words + static_cast<size_t>(t) * operand.stride + kInt4Columns / 4,
                    sizeof(offset));
        for (int i = 0; i < kVectors; ++i)
          acc[b][t][i] = fma(minimum[i], broadcast(offset), fma(sums[i], scale[i], acc[b][t][i]));
      }
    }
  }

  for (int b = 0; b < Blocks; ++b) {
    const int row = (block + b) * kBlockRows;
    for (int t = 0; t < Tokens; ++t) {
      V result[kVectors];
      for (int i = 0; i < kVectors; ++i)
        result[i] = mul(acc[b][t][i],
                        mul(load(linear.scales + row + i * kLanes), broadcast(operand.scales[token + t])));
      write_result(linear, result, row, epilogue,
                   out + static_cast<size_t>(rows ? rows[token + t] : token + t) * out_stride + row);
    }
  }
}

template <int Blocks, int Tokens>
inline void tokens_int4(const LinearView& linear, const Operand& operand, int token, int count, int block,
                        Epilogue epilogue, float* out, int out_stride, const int* rows) {
  if (count == Tokens) {
    tile_int4<Tokens, Blocks>(linear, operand, token, block, epilogue, out, out_stride, rows);
  } else if constexpr (Tokens > 1) {
    tokens_int4<Blocks, Tokens - 1>(linear, operand, token, count, block, epilogue, out, out_stride, rows);
  }
}

template <int Blocks>
inline void all_tokens_int4(const LinearView& linear, const Operand& operand, int num_tokens, int block,
                            Epilogue epilogue, float* out, int out_stride, const int* rows) {
  for (int token = 0; token < num_tokens; token += kMaxInt4Tokens) {
    const int count = num_tokens - token < kMaxInt4Tokens ? num_tokens - token : kMaxInt4Tokens;
    tokens_int4<Blocks, kMaxInt4Tokens>(linear, operand, token, count, block, epilogue, out, out_stride,
                                        rows);
  }
}

void linear_int4(const LinearView& linear, const Operand& operand, int num_tokens, int begin, int end,
                 Epilogue epilogue, float* out, int out_stride, const int* rows) {
  int block = begin;
  for (; block + kMaxBlocks <= end; block += kMaxBlocks)
    all_tokens_int4<kMaxBlocks>(linear, operand, num_tokens, block, epilogue, out, out_stride, rows);
  for (; block < end; ++block)
    all_tokens_int4<1>(linear, operand, num_tokens, block, epilogue, out, out_stride, rows);
}

void linear(const LinearView& linear, const Operand& operand, int num_tokens, int begin, int end,
            Epilogue epilogue, float* out, int out_stride, const int* rows) {
  switch (linear.dtype) {
    case DType::kFloat32:
      return linear_blocks<DotF32>(linear, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
    case DType::kBFloat16:
      return linear_blocks<DotBF16>(linear, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
    case DType::kInt8:
      return linear_blocks<DotI8>(linear, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
    case DType::kInt4:
      return linear_int4(linear, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
  }
}

}  // namespace
