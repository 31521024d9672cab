// Linear layers: activations in the weights' format, and tiles of dot products. kernels.h has the layout.
#pragma once

#include <cstring>

#include "math.inl"

namespace {

using jat::DType;
using jat::Epilogue;
using jat::kBlockRows;
using jat::kGroupBytes;
using jat::LinearView;
using jat::Operand;

constexpr int kPrefetchBytes = 6144;  // ahead of the weights that are being multiplied

// Bytes q + 128 of 32 columns -> the group of an int4 layer: 32 bytes q, since the codes are the unsigned
// operand there, and -16 times their sum in float32.
inline void store_int4_group(const uint8_t* bytes, uint32_t* group) {
  int8_t* signed_bytes = reinterpret_cast<int8_t*>(group);
  int32_t sum = 0;
  for (int i = 0; i < jat::kInt4Columns; ++i) {
    const int8_t q = static_cast<int8_t>(bytes[i] ^ 0x80);
    signed_bytes[i] = q;
    sum += q;
  }
  const float offset = static_cast<float>(-jat::kInt4MinimumUnit * sum);
  std::memcpy(group + jat::kInt4Columns / 4, &offset, sizeof(offset));
}

// x [columns] -> groups of 4 bytes: 1 float32, 2 bfloat16 or 4 int8; int4: groups of 32 columns. Padding is
// zero.
//
// int8 and int4: x is about *scale * q, with scale = max |x| / 127 and q = round(x / scale). int8 stores
// q + 128: the instructions multiply unsigned activations by signed weights.
void prepare(DType dtype, const float* x, int columns, uint32_t* groups, float* scale) {
  if (dtype == DType::kFloat32) {
    std::memcpy(groups, x, sizeof(float) * static_cast<size_t>(columns));
    return;
  }

  const int full = columns / kLanes * kLanes;
  float tail[kLanes] = {};
  std::memcpy(tail, x + full, sizeof(float) * static_cast<size_t>(columns - full));
  if (dtype == DType::kBFloat16) {
    uint16_t* out = reinterpret_cast<uint16_t*>(groups);
    for (int i = 0; i < full; i += kLanes) store_bf16(out + i, load(x + i));
    if (full < columns) {
      uint16_t last[kLanes];
      store_bf16(last, load(tail));
      std::memcpy(out + full, last, sizeof(uint16_t) * static_cast<size_t>((columns - full + 1) / 2 * 2));
    }
    return;
  }

  const V zero = broadcast(0.0F);
  V largest = max(load(tail), sub(zero, load(tail)));
  for (int i = 0; i < full; i += kLanes) largest = max(largest, max(load(x + i), sub(zero, load(x + i))));
  const float limit = reduce_max(largest);
  *scale = limit / 127.0F;
  const float inverse = limit > 0 ? 127.0F / limit : 0.0F;

  // Not finite, or too small to invert: bytes would be meaningless, so the result becomes NaN, which the
  // engine refuses.
  const bool usable = inverse <= 3.4e38F && limit <= 3.4e38F;
  if (!usable) *scale = __builtin_nanf("");
  const V factor = broadcast(usable ? inverse : 0.0F);
  if (dtype == DType::kInt4) {
    for (int i = 0; i < columns; i += jat::kInt4Columns, groups += jat::kInt4GroupWords) {
      uint8_t bytes[jat::kInt4Columns];
      for (int j = 0; j < jat::kInt4Columns; j += kLanes) {
        const float* source = i + j < full ? x + i + j : tail;
        const V q = i + j < columns && usable ? round(mul(load(source), factor)) : zero;
        store_offset_u8(bytes + j, q);
      }
      store_int4_group(bytes, groups);
    }
    return;
  }

  uint8_t* out = reinterpret_cast<uint8_t*>(groups);
  if (!usable) {
    std::memset(out, 128, static_cast<size_t>(jat::round_up(columns, 4)));
    return;
  }

  for (int i = 0; i < full; i += kLanes) store_offset_u8(out + i, round(mul(load(x + i), factor)));
  if (full < columns) {
    uint8_t last[kLanes];
    store_offset_u8(last, round(mul(load(tail), factor)));
    std::memcpy(out + full, last, static_cast<size_t>(jat::round_up(columns, 4) - full));
  }
}

// Accumulators of 16 rows -> floats; int8: scaled back.
template <typename Dot>
inline void finish(const LinearView& linear, const typename Dot::Accumulator& acc, int row, float scale,
                   V* out) {
  if constexpr (Dot::kIsInteger) {
    Dot::to_float(acc, linear.correction + row, out);
    for (int i = 0; i < kVectors; ++i)
      out[i] = mul(out[i], mul(load(linear.scales + row + i * kLanes), broadcast(scale)));
  } else {
    (void)linear, (void)row, (void)scale;
    Dot::to_float(acc, out);
  }
}

// p[0, 16) = epilogue(result + bias), of the block whose first row is `row`.
inline void write_result(const LinearView& linear, const V* result, int row, Epilogue epilogue, float* p) {
  for (int i = 0; i < kVectors; ++i) {
    V v = result[i];
    if (linear.bias) v = add(v, load(linear.bias + row + i * kLanes));
    if (epilogue == Epilogue::kGelu) v = gelu(v);
    if (epilogue == Epilogue::kAdd) v = add(load(p + i * kLanes), v);
    store(p + i * kLanes, v);
  }
}

// One tile of the product: `Blocks` blocks of 16 rows from `block` on, for `Tokens` tokens from `token` on.
// Its accumulators stay in registers while the weights stream past once.
template <typename Dot, int Tokens, int Blocks>
inline void tile(const LinearView& linear, const Operand& operand, int token, int block, Epilogue epilogue,
                 float* out, int out_stride, const int* rows) {
  constexpr size_t kStep = 2 * kGroupBytes;
  const uint8_t* weights =
      linear.panels + static_cast<size_t>(block / 2) * linear.num_groups * kStep + block % 2 * kGroupBytes;
  const uint32_t* activations = operand.groups + static_cast<size_t>(token) * operand.stride;
  typename Dot::Accumulator acc[Blocks][Tokens];
  for (int b = 0; b < Blocks; ++b)
    for (int t = 0; t < Tokens; ++t) acc[b][t] = Dot::zero();

  for (int g = 0; g < linear.num_groups; ++g) {
    typename Dot::Weights w[Blocks];
    for (int b = 0; b < Blocks; ++b) {
      const uint8_t* p = weights + static_cast<size_t>(g) * kStep + b * kGroupBytes;
      __builtin_prefetch(p + kPrefetchBytes, 0, 3);
      w[b] = Dot::weights(p);
    }
    for (int t = 0; t < Tokens; ++t) {
      const typename Dot::Activation a =
          Dot::activation(activations + static_cast<size_t>(t) * operand.stride + g);
      for (int b = 0; b < Blocks; ++b) acc[b][t] = Dot::dot(acc[b][t], w[b], a);
    }
  }

  for (int b = 0; b < Blocks; ++b) {
    const int row = (block + b) * kBlockRows;
    for (int t = 0; t < Tokens; ++t) {
      V result[kVectors];
      finish<Dot>(linear, acc[b][t], row, Dot::kIsInteger ? operand.scales[token + t] : 0.0F, result);
      const int target = rows ? rows[token + t] : token + t;
      write_result(linear, result, row, epilogue, out + static_cast<size_t>(target) * out_stride + row);
    }
  }
}

// The tile for a number of tokens that is known at run time only, 1 to `Tokens`.
template <typename Dot, int Blocks, int Tokens>
inline void tokens(const LinearView& linear, const Operand& operand, int token, int count, int block,
                   Epilogue epilogue, float* out, int out_stride, const int* rows) {
  if (count == Tokens) {
    tile<Dot, Tokens, Blocks>(linear, operand, token, block, epilogue, out, out_stride, rows);
  } else if constexpr (Tokens > 1) {
    tokens<Dot, Blocks, Tokens - 1>(linear, operand, token, count, block, epilogue, out, out_stride, rows);
  }
}

template <typename Dot, int Blocks>
inline void all_tokens(const LinearView& linear, const Operand& operand, int num_tokens, int block,
                       Epilogue epilogue, float* out, int out_stride, const int* rows) {
  for (int token = 0; token < num_tokens; token += kMaxTokens) {
    const int count = num_tokens - token < kMaxTokens ? num_tokens - token : kMaxTokens;
    tokens<Dot, Blocks, kMaxTokens>(linear, operand, token, count, block, epilogue, out, out_stride, rows);
  }
}

template <typename Dot>
void linear_blocks(const LinearView& linear, const Operand& operand, int num_tokens, int begin, int end,
                   Epilogue epilogue, float* out, int out_stride, const int* rows) {
  int block = begin;
  for (; block + kMaxBlocks <= end; block += kMaxBlocks)
    all_tokens<Dot, kMaxBlocks>(linear, operand, num_tokens, block, epilogue, out, out_stride, rows);
  for (; block < end; ++block)
    all_tokens<Dot, 1>(linear, operand, num_tokens, block, epilogue, out, out_stride, rows);
}

}  // namespace
