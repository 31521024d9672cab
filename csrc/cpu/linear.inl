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
    // A group is 32 bytes q, since the codes are the unsigned operand here, and -16 times their sum in float32.
    constexpr int kBytesWords = jat::kInt4Columns / 4;
    for (int i = 0; i < columns; i += jat::kInt4Columns, groups += jat::kInt4GroupWords) {
      uint8_t bytes[jat::kInt4Columns];
      V sum = zero;  // of whole numbers, so in any order
      for (int j = 0; j < jat::kInt4Columns; j += kLanes) {
        const float* source = i + j < full ? x + i + j : tail;
        const V q = i + j < columns && usable ? round(mul(load(source), factor)) : zero;
        store_offset_u8(bytes + j, q);
        sum = add(sum, q);
      }
      std::memcpy(groups, bytes, sizeof(bytes));
      for (int j = 0; j < kBytesWords; ++j) groups[j] ^= 0x80808080;
      const float offset = static_cast<float>(-jat::kInt4MinimumUnit * static_cast<int>(reduce_add(sum)));
      std::memcpy(groups + kBytesWords, &offset, sizeof(offset));
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

// A product, and where its results go: see Kernels::linear.
struct Product {
  const LinearView& linear;
  const Operand& operand;
  int num_tokens;
  Epilogue epilogue;
  float* out;
  int out_stride;
  const int* rows;

  float* result(int token, int row) const {
    return out + static_cast<size_t>(rows ? rows[token] : token) * out_stride + row;
  }
};

// Sums of 16 rows from `row` on -> floats; int8: scaled back.
template <typename Dot>
inline void finish(Dot, const Product& product, const typename Dot::Accumulator& acc, int token, int row,
                   V* out) {
  if constexpr (Dot::kIsInteger) {
    const LinearView& linear = product.linear;
    const V scale = broadcast(product.operand.scales[token]);
    Dot::to_float(acc, linear.correction + row, out);
    for (int i = 0; i < kVectors; ++i)
      out[i] = mul(out[i], mul(load(linear.scales + row + i * kLanes), scale));
  } else {
    (void)product, (void)token, (void)row;
    Dot::to_float(acc, out);
  }
}

// Write a tile: sums [num_tokens, num_blocks], of `token` and the block's first `row` on. Not a part of `tile`,
// which is compiled for each size.
template <typename Dot, typename Sum>
__attribute__((noinline)) void write_tile(Dot dot, const Product& product, const Sum* sums, int token,
                                          int num_tokens, int row, int num_blocks) {
  const float* bias = product.linear.bias;
  for (int t = token; t < token + num_tokens; ++t) {
    float* p = product.result(t, row);
    for (int b = 0; b < num_blocks; ++b) {
      V result[kVectors];
      finish(dot, product, *sums++, t, row + b * kBlockRows, result);
      for (int i = b * kVectors; i < (b + 1) * kVectors; ++i) {
        V v = result[i - b * kVectors];
        if (bias) v = add(v, load(bias + row + i * kLanes));
        if (product.epilogue == Epilogue::kGelu) v = gelu(v);
        if (product.epilogue == Epilogue::kAdd) v = add(load(p + i * kLanes), v);
        store(p + i * kLanes, v);
      }
    }
  }
}

// One tile of a product: `Blocks` blocks of 16 rows from `block` on, for `Tokens` tokens from `token` on. Its
// sums stay in registers while the weights stream past once.
template <int Tokens, int Blocks, typename Dot>
inline void tile(Dot dot, const Product& product, int token, int block) {
  constexpr size_t kStep = 2 * kGroupBytes;
  const LinearView& linear = product.linear;
  const uint8_t* weights =
      linear.panels + static_cast<size_t>(block / 2) * linear.num_groups * kStep + block % 2 * kGroupBytes;
  const size_t stride = static_cast<size_t>(product.operand.stride);
  const uint32_t* activations = product.operand.groups + token * stride;
  typename Dot::Accumulator acc[Tokens * Blocks];
  JAT_UNROLL
  for (int i = 0; i < Tokens * Blocks; ++i) acc[i] = Dot::zero();

  for (int g = 0; g < linear.num_groups; ++g) {
    typename Dot::Weights w[Blocks];
    JAT_UNROLL
    for (int b = 0; b < Blocks; ++b) {
      const uint8_t* p = weights + static_cast<size_t>(g) * kStep + b * kGroupBytes;
      __builtin_prefetch(p + kPrefetchBytes, 0, 3);
      w[b] = Dot::weights(p);
    }
    JAT_UNROLL
    for (int t = 0; t < Tokens; ++t) {
      const typename Dot::Activation a = Dot::activation(activations + t * stride + g);
      JAT_UNROLL
      for (int b = 0; b < Blocks; ++b) acc[t * Blocks + b] = Dot::dot(acc[t * Blocks + b], w[b], a);
    }
  }

  typename Dot::Accumulator sums[Tokens * Blocks];
  JAT_UNROLL
  for (int i = 0; i < Tokens * Blocks; ++i) sums[i] = acc[i];
  write_tile(dot, product, sums, token, Tokens, block * kBlockRows, Blocks);
}

// The tile for a number of tokens that is known at run time only, 1 to `Tokens`.
template <int Tokens, int Blocks, typename Dot>
inline void tile_of(int count, Dot dot, const Product& product, int token, int block) {
  if (count == Tokens) {
    tile<Tokens, Blocks>(dot, product, token, block);
  } else if constexpr (Tokens > 1) {
    tile_of<Tokens - 1, Blocks>(count, dot, product, token, block);
  }
}

// All tokens, in tiles of like sizes, while the weights are in the first-level cache.
template <int Blocks, typename Dot>
inline void all_tokens(Dot dot, const Product& product, int block) {
  for (int token = 0; token < product.num_tokens;) {
    const int rest = product.num_tokens - token;
    const int num_tiles = (rest + Dot::kMaxTokens - 1) / Dot::kMaxTokens;
    const int count = (rest + num_tiles - 1) / num_tiles;
    tile_of<Dot::kMaxTokens, Blocks>(count, dot, product, token, block);
    token += count;
  }
}

template <typename Dot>
void linear_blocks(Dot dot, const Product& product, int begin, int end) {
  int block = begin;
  for (; block + kMaxBlocks <= end; block += kMaxBlocks) all_tokens<kMaxBlocks>(dot, product, block);
  for (; block < end; ++block) all_tokens<1>(dot, product, block);
}

}  // namespace
