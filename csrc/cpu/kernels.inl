// Body of kernels_*.cpp: included after a simd_*.h. No standard containers or algorithms here: their inline
// functions would be compiled for this instruction set and could be linked into code that runs everywhere.
#include <cstring>

#include "kernels.h"

namespace {

using jat::AttentionItem;
using jat::ConvView;
using jat::DType;
using jat::Epilogue;
using jat::kBlockRows;
using jat::kGroupBytes;
using jat::kMaxQueries;
using jat::kPageSize;
using jat::LinearView;
using jat::Operand;

constexpr int kVectors = kBlockRows / kLanes;  // of a block's 16 rows
constexpr float kNegativeInfinity = -__builtin_inff();
constexpr float kNormEpsilon = 1e-5F;
constexpr float kLargest = 3.40282347e38F;
constexpr int kPrefetchBytes = 6144;

// e^x to about 1e-7 (Cephes' polynomial); 0 below -87.3.
inline V exponential(V x) {
  // x as the second operand: so a NaN stays one.
  x = max(broadcast(-87.3365479F), min(broadcast(88.3762626F), x));
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

// ---- activations
// ---------------------------------------------------------------------------------------------------

void prepare(DType dtype, const float* x, int columns, uint32_t* groups, float* scale) {
  const int full = columns / kLanes * kLanes;
  if (dtype == DType::kFloat32) {
    std::memcpy(groups, x, sizeof(float) * static_cast<size_t>(columns));
    return;
  }
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
  // Not finite or too small to invert: bytes would be meaningless, so the result is made NaN, and refused
  // later.
  const bool usable = inverse <= 3.4e38F && limit <= 3.4e38F;
  if (!usable) *scale = __builtin_nanf("");
  const V factor = broadcast(usable ? inverse : 0.0F);
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

// ---- linear layers
// -------------------------------------------------------------------------------------------------

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

// A tile: `Blocks` blocks of rows from `block` on, `Tokens` tokens.
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
      float* p = out + static_cast<size_t>(target) * out_stride + row;
      for (int i = 0; i < kVectors; ++i) {
        V v = result[i];
        if (linear.bias) v = add(v, load(linear.bias + row + i * kLanes));
        if (epilogue == Epilogue::kGelu) v = gelu(v);
        if (epilogue == Epilogue::kAdd) v = add(load(p + i * kLanes), v);
        store(p + i * kLanes, v);
      }
    }
  }
}

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

void linear(const LinearView& linear, const Operand& operand, int num_tokens, int begin, int end,
            Epilogue epilogue, float* out, int out_stride, const int* rows) {
  switch (linear.dtype) {
    case DType::kFloat32:
      return linear_blocks<DotF32>(linear, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
    case DType::kBFloat16:
      return linear_blocks<DotBF16>(linear, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
    case DType::kInt8:
      return linear_blocks<DotI8>(linear, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
  }
}

// ---- attention
// -----------------------------------------------------------------------------------------------------

// Slot `slot` counts tokens from the start of the session's first page.
inline uint8_t* page_of(const AttentionItem& item, int slot) {
  return item.pool + static_cast<size_t>(item.page_table[slot / kPageSize]) * item.page_bytes;
}

template <typename Element>
inline void to_element(float x, Element* out) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    *out = x;
  } else {
    float lanes[kLanes] = {x};
    uint16_t bits[kLanes];
    store_bf16(bits, load(lanes));
    *out = bits[0];
  }
}

template <typename Element>
inline V load_values(const Element* p) {
  if constexpr (sizeof(Element) == sizeof(float))
    return load(p);
  else
    return load_bf16(p);
}

template <typename Element>
inline void store_values(Element* p, V v) {
  if constexpr (sizeof(Element) == sizeof(float))
    store(p, v);
  else
    store_bf16(p, v);
}

// A page of one head: keys [padded_head_dim / c, 16 tokens, c] (c = 1, or 2 in bfloat16: a block of a linear
// layer whose rows are tokens), then values [16 tokens, padded_head_dim].
template <typename Element>
void append(const AttentionItem& item) {
  constexpr int kColumns = sizeof(float) / sizeof(Element);
  for (int i = 0; i < item.num_new; ++i) {
    const int slot = item.start_offset + item.context_len + i;
    uint8_t* page = page_of(item, slot);
    const float* k = item.k + static_cast<size_t>(i) * item.qkv_stride;
    const float* v = item.v + static_cast<size_t>(i) * item.qkv_stride;
    Element* keys = reinterpret_cast<Element*>(page) + slot % kPageSize * kColumns;
    Element* values =
        reinterpret_cast<Element*>(page + item.values_offset) + slot % kPageSize * item.padded_head_dim;
    for (int d = 0; d < item.padded_head_dim; d += kLanes) {
      float padded[kLanes] = {};
      const int count = item.head_dim - d < kLanes ? item.head_dim - d : kLanes;
      if (count > 0) std::memcpy(padded, v + d, sizeof(float) * static_cast<size_t>(count));
      store_values(values + d, load(padded));
      std::memset(padded, 0, sizeof(padded));
      if (count > 0) std::memcpy(padded, k + d, sizeof(float) * static_cast<size_t>(count));
      Element converted[kLanes];
      store_values(converted, load(padded));
      for (int j = 0; j < kLanes; ++j)
        keys[static_cast<size_t>((d + j) / kColumns) * kPageSize * kColumns + (d + j) % kColumns] =
            converted[j];
    }
  }
}

template <typename Dot, int Queries>
inline void score_page(const uint8_t* keys, int num_groups, const uint32_t* queries, int stride,
                       float* scores, int scores_stride) {
  typename Dot::Accumulator acc[Queries];
  for (int q = 0; q < Queries; ++q) acc[q] = Dot::zero();
  for (int g = 0; g < num_groups; ++g) {
    const typename Dot::Weights w = Dot::weights(keys + static_cast<size_t>(g) * kGroupBytes);
    for (int q = 0; q < Queries; ++q) acc[q] = Dot::dot(acc[q], w, Dot::activation(queries + q * stride + g));
  }
  for (int q = 0; q < Queries; ++q) {
    V result[kVectors];
    Dot::to_float(acc[q], result);
    for (int i = 0; i < kVectors; ++i)
      store(scores + static_cast<size_t>(q) * scores_stride + i * kLanes, result[i]);
  }
}

// Of `slots` scores: those outside [low, high) become 0, the others e^(score - largest). Returns the sum's
// inverse.
inline float softmax(float* scores, int slots, int low, int high) {
  for (int i = 0; i < low; ++i) scores[i] = kNegativeInfinity;
  for (int i = high; i < slots; ++i) scores[i] = kNegativeInfinity;
  V largest = load(scores);
  for (int i = kLanes; i < slots; i += kLanes) largest = max(largest, load(scores + i));
  const V shift = broadcast(reduce_max(largest));
  V sum = broadcast(0.0F);
  for (int i = 0; i < slots; i += kLanes) {
    const V e = exponential(sub(load(scores + i), shift));
    store(scores + i, e);
  }
  for (int i = 0; i < low; ++i) scores[i] = 0;
  for (int i = high; i < slots; ++i) scores[i] = 0;
  for (int i = 0; i < slots; i += kLanes) sum = add(sum, load(scores + i));
  return 1.0F / reduce_add(sum);
}

// out[q, d..d + Vectors * lanes) = sum over slots [low, high) of scores[q, slot] * values[slot, d..]
template <typename Element, int Queries, int Vectors>
inline void weigh_values(const AttentionItem& item, int first_page, int low, int high, const float* scores,
                         const float* inverse, int d, float* out) {
  V acc[Queries][Vectors];
  for (int q = 0; q < Queries; ++q)
    for (int i = 0; i < Vectors; ++i) acc[q][i] = broadcast(0.0F);
  for (int begin = low; begin < high;) {
    const int slot_end = (begin / kPageSize + 1) * kPageSize;
    const int end = slot_end < high ? slot_end : high;
    const Element* values = reinterpret_cast<const Element*>(page_of(item, begin) + item.values_offset) + d;
    for (int slot = begin; slot < end; ++slot) {
      const Element* row = values + static_cast<size_t>(slot % kPageSize) * item.padded_head_dim;
      V v[Vectors];
      for (int i = 0; i < Vectors; ++i) v[i] = load_values(row + i * kLanes);
      for (int q = 0; q < Queries; ++q) {
        const V p =
            broadcast(scores[static_cast<size_t>(q) * item.scratch_stride + slot - first_page * kPageSize]);
        for (int i = 0; i < Vectors; ++i) acc[q][i] = fma(p, v[i], acc[q][i]);
      }
    }
    begin = end;
  }
  for (int q = 0; q < Queries; ++q) {
    float* target = out + static_cast<size_t>(q) * item.out_stride + d;
    for (int i = 0; i < Vectors; ++i) {
      const V result = mul(acc[q][i], broadcast(inverse[q]));
      const int count = item.head_dim - d - i * kLanes;
      if (count >= kLanes) {
        store(target + i * kLanes, result);
      } else if (count > 0) {
        float padded[kLanes];
        store(padded, result);
        std::memcpy(target + i * kLanes, padded, sizeof(float) * static_cast<size_t>(count));
      }
    }
  }
}

template <typename Dot, typename Element, int Queries>
void attend_queries(const AttentionItem& item, int first) {
  constexpr int kColumns = sizeof(float) / sizeof(Element);
  // Queries are prepared in pieces of the largest head that fits on the stack.
  const int groups = item.padded_head_dim / kColumns;
  uint32_t queries[Queries * jat::kMaxHeadDim];
  for (int q = 0; q < Queries; ++q) {
    float unused;
    uint32_t* target = queries + q * groups;
    std::memset(target, 0, sizeof(uint32_t) * static_cast<size_t>(groups));
    prepare(item.kv_dtype, item.q + static_cast<size_t>(first + q) * item.qkv_stride, item.head_dim, target,
            &unused);
  }
  const int index = item.context_len + first;  // of the first query, in the cache and the new tokens
  const int origin = item.start_offset;
  int low[Queries], high[Queries];
  for (int q = 0; q < Queries; ++q) {
    const int oldest = index + q - item.window + 1;
    low[q] = origin + (oldest > 0 ? oldest : 0);
    high[q] = origin + index + q + 1;
  }
  const int first_page = low[0] / kPageSize, end_page = (high[Queries - 1] + kPageSize - 1) / kPageSize;
  const int slots = (end_page - first_page) * kPageSize, base = first_page * kPageSize;
  for (int page = first_page; page < end_page; ++page) {
    if (page + 1 < end_page) __builtin_prefetch(page_of(item, (page + 1) * kPageSize), 0, 3);
    score_page<Dot, Queries>(page_of(item, page * kPageSize), groups, queries, groups,
                             item.scratch + (page - first_page) * kPageSize, item.scratch_stride);
  }
  float inverse[Queries];
  for (int q = 0; q < Queries; ++q)
    inverse[q] = softmax(item.scratch + static_cast<size_t>(q) * item.scratch_stride, slots, low[q] - base,
                         high[q] - base);
  constexpr int kPiece = 64 / kLanes < 4 ? 64 / kLanes : 4;  // vectors of values at a time
  float* out = item.out + static_cast<size_t>(first) * item.out_stride;
  int d = 0;
  for (; d + kPiece * kLanes <= item.padded_head_dim; d += kPiece * kLanes)
    weigh_values<Element, Queries, kPiece>(item, first_page, low[0], high[Queries - 1], item.scratch, inverse,
                                           d, out);
  for (; d < item.padded_head_dim; d += kLanes)
    weigh_values<Element, Queries, 1>(item, first_page, low[0], high[Queries - 1], item.scratch, inverse, d,
                                      out);
}

template <typename Dot, typename Element>
void attend_as(const AttentionItem& item) {
  append<Element>(item);
  switch (item.num_new - item.first_query) {
    case 1:
      return attend_queries<Dot, Element, 1>(item, item.first_query);
    case 2:
      return attend_queries<Dot, Element, 2>(item, item.first_query);
    case 3:
      return attend_queries<Dot, Element, 3>(item, item.first_query);
    case 4:
      return attend_queries<Dot, Element, 4>(item, item.first_query);
    default:
      return;
  }
}

void attend(const AttentionItem& item) {
  if (item.kv_dtype == DType::kFloat32)
    attend_as<DotF32, float>(item);
  else
    attend_as<DotBF16, uint16_t>(item);
}

// ---- image encoder
// -------------------------------------------------------------------------------------------------

template <int Pixels>
inline void convolve_pixels(const ConvView& conv, const float* in, int y, int x, float* out) {
  const int width = conv.in_size + 2;
  const size_t step = 2 * static_cast<size_t>(conv.in_channels);  // stride 2
  for (int block = 0; block < conv.out_channels / kBlockRows; ++block) {
    const float* w = conv.weight + static_cast<size_t>(block) * 9 * conv.in_channels * kBlockRows;
    V acc[Pixels][kVectors];
    for (int p = 0; p < Pixels; ++p)
      for (int i = 0; i < kVectors; ++i) acc[p][i] = broadcast(0.0F);
    for (int ky = 0; ky < 3; ++ky) {
      for (int kx = 0; kx < 3; ++kx) {
        const float* source = in + (static_cast<size_t>(2 * y + ky) * width + 2 * x + kx) * conv.in_channels;
        for (int c = 0; c < conv.in_channels; ++c, w += kBlockRows) {
          V weights[kVectors];
          for (int i = 0; i < kVectors; ++i) weights[i] = load(w + i * kLanes);
          for (int p = 0; p < Pixels; ++p) {
            const V value = broadcast(source[p * step + c]);
            for (int i = 0; i < kVectors; ++i) acc[p][i] = fma(value, weights[i], acc[p][i]);
          }
        }
      }
    }
    for (int p = 0; p < Pixels; ++p)
      for (int i = 0; i < kVectors; ++i)
        store(out + static_cast<size_t>(x + p) * conv.out_channels + block * kBlockRows + i * kLanes,
              acc[p][i]);
  }
}

template <int Pixels>
inline void convolve_count(const ConvView& conv, const float* in, int y, int x, int count, float* out) {
  if (count == Pixels) {
    convolve_pixels<Pixels>(conv, in, y, x, out);
  } else if constexpr (Pixels > 1) {
    convolve_count<Pixels - 1>(conv, in, y, x, count, out);
  }
}

void convolve_row(const ConvView& conv, const float* in, int y, float* out) {
  constexpr int kMaxPixels = kLanes == 16 ? 8 : kLanes == 8 ? 5 : 2;
  // Pieces of nearly one size: a short one would wait for its sums.
  const int pieces = (conv.out_size + kMaxPixels - 1) / kMaxPixels;
  for (int piece = 0, x = 0; piece < pieces; ++piece) {
    const int count = (conv.out_size - x) / (pieces - piece);
    convolve_count<kMaxPixels>(conv, in, y, x, count, out);
    x += count;
  }
}

// The sum of value(p) over pixels p. Most pixels of real frames are alike: added one by one, every addition
// to a large sum would round the same way. So the sums of short runs are added.
template <class Value>
inline V sum_pixels(int num_pixels, Value value) {
  constexpr int kRun = 32;
  V sum = broadcast(0.0F);
  for (int begin = 0; begin < num_pixels; begin += kRun) {
    const int end = begin + kRun < num_pixels ? begin + kRun : num_pixels;
    V run = broadcast(0.0F);
    for (int p = begin; p < end; ++p) run = add(run, value(p));
    sum = add(sum, run);
  }
  return sum;
}

void normalize_channels(float* x, int num_pixels, int channels, float* means) {
  const V share = broadcast(1.0F / static_cast<float>(num_pixels));
  for (int i = 0; i < kBlockRows; i += kLanes) {
    const auto pixel = [&](int p) { return x + static_cast<size_t>(p) * channels + i; };
    const V mean = mul(sum_pixels(num_pixels, [&](int p) { return load(pixel(p)); }), share);
    const V squares = sum_pixels(num_pixels, [&](int p) {
      const V centred = sub(load(pixel(p)), mean);
      return mul(centred, centred);
    });
    float variance[kLanes];
    store(variance, mul(squares, share));
    for (float& v : variance) v = 1.0F / __builtin_sqrtf(v + kNormEpsilon);
    const V inverse = load(variance);

    const V after = sum_pixels(num_pixels, [&](int p) {
      const V normal = mul(sub(load(pixel(p)), mean), inverse);
      const V leaky = max(normal, mul(normal, broadcast(0.01F)));
      store(pixel(p), leaky);
      return leaky;
    });
    store(means + i, mul(after, share));
  }
}

}  // namespace
