// Attention of one session and head over the paged KV cache.
#pragma once

#include <cstring>

#include "linear.inl"

namespace {

using jat::AttentionItem;
using jat::head_bytes;
using jat::kPageSize;

constexpr float kNegativeInfinity = -__builtin_inff();
constexpr int kPagesAhead = 3;  // that are fetched before they are scored: 12 KB in bfloat16

// Two pages keep twice as many sums going, where the registers hold them.
constexpr int kPagesAtOnce = kLanes == 16 ? 2 : 1;
constexpr int kLinesPerSlot = 4;

// The page of a slot. Slots count from the start of the session's first page.
inline uint8_t* page_of(const AttentionItem& item, int slot) {
  return item.pool + static_cast<size_t>(item.page_table[slot / kPageSize]) * item.page_bytes;
}

// Ways to store keys and values. A page of one head is
//   keys    [padded_head_dim / c, 16 tokens, c], c = 1 in float32, 2 in bfloat16, 4 in int8
//   int8:   key scales float [16], 128 * (sum of a key) int32 [16]
//   values  [16 tokens, padded_head_dim]
//   int8:   value scales float [16]
// so a page's keys are a block of a linear layer whose rows are tokens, and q . k is the same dot product. int8
// has one scale for each token's key and for its value.
struct CacheF32 {
  using Dot = DotF32;
  using Element = float;
  static constexpr DType kDType = DType::kFloat32;
  static V load_values(const float* p) { return load(p); }
};

struct CacheBF16 {
  using Dot = DotBF16;
  using Element = uint16_t;
  static constexpr DType kDType = DType::kBFloat16;
  static V load_values(const uint16_t* p) { return load_bf16(p); }
};

struct CacheI8 {
  using Dot = DotI8;
  using Element = int8_t;
  static constexpr DType kDType = DType::kInt8;
  static V load_values(const int8_t* p) { return load_i8(p); }
};

template <typename Cache>
constexpr bool kIsScaled = Cache::kDType == DType::kInt8;

// Operands of a query: int8 has two, so that queries keep 16 bits.
template <typename Cache>
constexpr int kPlanes = kIsScaled<Cache> ? 2 : 1;

// The scales behind a page's keys, with the corrections behind them, or behind its values.
inline float* scales_behind(uint8_t* elements, int padded_head_dim) {
  return reinterpret_cast<float*>(elements + static_cast<size_t>(padded_head_dim) * kPageSize);
}

// Fetches one head's keys and values in a page into the second-level cache, some lines at a time. Pages are too
// short for the processor to recognise a stream, and fetching them into the first level is limited by its few
// miss buffers to half the rate (9 and 17 GB/s for a core).
class PageFetcher {
 public:
  // Of no page.
  PageFetcher() = default;
  // heads_on: which head, counted from the item's own.
  PageFetcher(const AttentionItem& item, int page, int heads_on)
      : next_(page_of(item, page * kPageSize) + heads_on * head_bytes(item.kv_dtype, item.padded_head_dim)),
        end_(next_ + head_bytes(item.kv_dtype, item.padded_head_dim)) {}

  void fetch(int num_lines) {
    for (int i = 0; i < num_lines && next_ < end_; ++i, next_ += kGroupBytes) __builtin_prefetch(next_, 0, 2);
  }
  void fetch_rest() {
    for (; next_ < end_; next_ += kGroupBytes) __builtin_prefetch(next_, 0, 2);
  }

 private:
  const uint8_t *next_ = nullptr, *end_ = nullptr;
};

// Write the new tokens' keys and values into their pages.
template <typename Cache>
void append(const AttentionItem& item) {
  constexpr int kColumns = jat::columns_per_group(Cache::kDType);
  const int words = item.padded_head_dim / kColumns;
  // prepare stores int8 with an offset of 128; toggling the highest bit takes it away.
  const uint32_t offset = kIsScaled<Cache> ? 0x80808080 : 0;
  uint32_t row[jat::kMaxHeadDim];

  for (int i = 0; i < item.num_new; ++i) {
    const int slot = item.start_offset + item.context_len + i, token = slot % kPageSize;
    uint8_t* page = page_of(item, slot);
    uint32_t* keys = reinterpret_cast<uint32_t*>(page) + token;
    uint32_t* values =
        reinterpret_cast<uint32_t*>(page + item.values_offset) + static_cast<size_t>(token) * words;
    float scale;

    for (int g = 0; g < words; ++g) row[g] = offset;
    prepare(Cache::kDType, item.k + static_cast<size_t>(i) * item.qkv_stride, item.head_dim, row, &scale);
    for (int g = 0; g < words; ++g) keys[static_cast<size_t>(g) * kPageSize] = row[g] ^ offset;
    if constexpr (kIsScaled<Cache>) {
      int32_t sum = 0;
      for (int g = 0; g < words; ++g)
        for (int c = 0; c < kColumns; ++c) sum += static_cast<int>(row[g] >> 8 * c & 255) - 128;
      float* scales = scales_behind(page, item.padded_head_dim);
      scales[token] = scale;
      reinterpret_cast<int32_t*>(scales + kPageSize)[token] = 128 * sum;
    }

    for (int g = 0; g < words; ++g) row[g] = offset;
    prepare(Cache::kDType, item.v + static_cast<size_t>(i) * item.qkv_stride, item.head_dim, row, &scale);
    for (int g = 0; g < words; ++g) values[g] = row[g] ^ offset;
    if constexpr (kIsScaled<Cache>)
      scales_behind(page + item.values_offset, item.padded_head_dim)[token] = scale;
  }
}

// A query -> operands of the dot product; int8: x is about *scale * (256 * high + low), each an operand.
template <typename Cache>
void prepare_query(const float* x, int head_dim, int groups, uint32_t* operands, float* scale) {
  std::memset(operands, 0, sizeof(uint32_t) * static_cast<size_t>(groups));
  if constexpr (!kIsScaled<Cache>) {
    prepare(Cache::kDType, x, head_dim, operands, scale);
  } else {
    float padded[jat::kMaxHeadDim] = {};
    std::memcpy(padded, x, sizeof(float) * static_cast<size_t>(head_dim));
    const int columns = 4 * groups;
    V largest = broadcast(0.0F);
    for (int i = 0; i < columns; i += kLanes)
      largest = max(largest, max(load(padded + i), sub(broadcast(0.0F), load(padded + i))));
    const float limit = reduce_max(largest), most = 127.0F * 256.0F;
    const float inverse = limit > 0 ? most / limit : 0.0F;
    // Not finite, or too small to invert: NaN, as in `prepare`.
    const bool usable = inverse <= 3.4e38F && limit <= 3.4e38F;
    *scale = usable ? limit / most : __builtin_nanf("");
    const V factor = broadcast(usable ? inverse : 0.0F);

    uint8_t *high = reinterpret_cast<uint8_t*>(operands), *low = high + columns;
    for (int i = 0; i < columns; i += kLanes) {
      const V q = usable ? round(mul(load(padded + i), factor)) : broadcast(0.0F);
      // Half a step up, so that the rest is in [-128, 127].
      const V h = round(mul(add(q, broadcast(0.5F)), broadcast(1.0F / 256.0F)));
      store_offset_u8(high + i, h);
      store_offset_u8(low + i, fma(h, broadcast(-256.0F), q));
    }
  }
}

// Queries as operands: [Queries, kPlanes, groups], and their scales.
struct Queries {
  const uint32_t* operands;
  const float* scales;
  int groups;
};

// scores[q, 16 p + i] = queries[q] . key i of page `page` + p, for p < Pages. Not scaled by 1 / sqrt(head_dim):
// GPT-Neo omits that.
template <typename Cache, int NumQueries, int Pages>
inline void score_pages(const AttentionItem& item, const Queries& queries, int page, PageFetcher fetcher,
                        float* scores) {
  using Dot = typename Cache::Dot;
  constexpr int kOperands = NumQueries * kPlanes<Cache>;
  uint8_t* keys[Pages];
  for (int p = 0; p < Pages; ++p) keys[p] = page_of(item, (page + p) * kPageSize);
  typename Dot::Accumulator acc[Pages][kOperands];
  for (int p = 0; p < Pages; ++p)
    for (int q = 0; q < kOperands; ++q) acc[p][q] = Dot::zero();

  for (int g = 0; g < queries.groups; ++g) {
    fetcher.fetch(2);
    typename Dot::Weights w[Pages];
    for (int p = 0; p < Pages; ++p) w[p] = Dot::weights(keys[p] + static_cast<size_t>(g) * kGroupBytes);
    for (int q = 0; q < kOperands; ++q) {
      const typename Dot::Activation a = Dot::activation(queries.operands + q * queries.groups + g);
      for (int p = 0; p < Pages; ++p) acc[p][q] = Dot::dot(acc[p][q], w[p], a);
    }
  }

  fetcher.fetch_rest();

  for (int p = 0; p < Pages; ++p)
    for (int q = 0; q < NumQueries; ++q) {
      V result[kVectors];
      if constexpr (kIsScaled<Cache>) {
        const float* scales = scales_behind(keys[p], item.padded_head_dim);
        const int32_t* correction = reinterpret_cast<const int32_t*>(scales + kPageSize);
        V low[kVectors];
        Dot::to_float(acc[p][2 * q], correction, result);
        Dot::to_float(acc[p][2 * q + 1], correction, low);
        // Both are whole numbers below 2^24, so this rounds once.
        for (int i = 0; i < kVectors; ++i)
          result[i] = mul(mul(fma(result[i], broadcast(256.0F), low[i]), load(scales + i * kLanes)),
                          broadcast(queries.scales[q]));
      } else {
        Dot::to_float(acc[p][q], result);
      }
      for (int i = 0; i < kVectors; ++i)
        store(scores + static_cast<size_t>(q) * item.scratch_stride + p * kPageSize + i * kLanes, result[i]);
    }
}

// Unnormalised softmax in place: scores in [low, high) become e^(score - largest), those outside become 0.
// Returns 1 / their sum.
inline float softmax(float* scores, int slots, int low, int high) {
  for (int i = 0; i < low; ++i) scores[i] = kNegativeInfinity;
  for (int i = high; i < slots; ++i) scores[i] = kNegativeInfinity;

  V largest = load(scores);
  for (int i = kLanes; i < slots; i += kLanes) largest = max(largest, load(scores + i));
  const V shift = broadcast(reduce_max(largest));
  for (int i = 0; i < slots; i += kLanes) {
    const V e = exponential(sub(load(scores + i), shift));
    store(scores + i, e);
  }
  for (int i = 0; i < low; ++i) scores[i] = 0;
  for (int i = high; i < slots; ++i) scores[i] = 0;

  V sum = broadcast(0.0F);
  for (int i = 0; i < slots; i += kLanes) sum = add(sum, load(scores + i));
  return 1.0F / reduce_add(sum);
}

// out[q, d + j] = inverse[q] * sum of scores[q, slot] * values[slot, d + j] over slots [low, high), for
// j < Vectors * kLanes.
template <typename Cache, int NumQueries, int Vectors>
inline void weigh_values(const AttentionItem& item, int first_page, int low, int high, const float* scores,
                         const float* inverse, int d, float* out) {
  using Element = typename Cache::Element;
  V acc[NumQueries][Vectors];
  for (int q = 0; q < NumQueries; ++q)
    for (int i = 0; i < Vectors; ++i) acc[q][i] = broadcast(0.0F);

  for (int begin = low; begin < high;) {
    const int slot_end = (begin / kPageSize + 1) * kPageSize;
    const int end = slot_end < high ? slot_end : high;
    const int page = begin / kPageSize;
    PageFetcher fetcher;
    if (item.is_next && d == 0 && (page - first_page) % kPagesAtOnce == kPagesAtOnce - 1)
      fetcher = PageFetcher(item, page, 1);
    const Element* values = reinterpret_cast<const Element*>(page_of(item, begin) + item.values_offset) + d;
    for (int slot = begin; slot < end; ++slot) {
      const Element* row = values + static_cast<size_t>(slot % kPageSize) * item.padded_head_dim;
      fetcher.fetch(kLinesPerSlot);
      V v[Vectors];
      for (int i = 0; i < Vectors; ++i) v[i] = Cache::load_values(row + i * kLanes);
      for (int q = 0; q < NumQueries; ++q) {
        const V p =
            broadcast(scores[static_cast<size_t>(q) * item.scratch_stride + slot - first_page * kPageSize]);
        for (int i = 0; i < Vectors; ++i) acc[q][i] = fma(p, v[i], acc[q][i]);
      }
    }
    fetcher.fetch_rest();
    begin = end;
  }

  for (int q = 0; q < NumQueries; ++q) {
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

// out[q] = softmax(q . keys) values, for the new tokens first ... first + Queries - 1.
template <typename Cache, int NumQueries>
void attend_queries(const AttentionItem& item, int first) {
  constexpr int kColumns = jat::columns_per_group(Cache::kDType);
  const int groups = item.padded_head_dim / kColumns, stride = groups * kPlanes<Cache>;
  uint32_t queries[NumQueries * jat::kMaxHeadDim];
  float query_scales[NumQueries];
  for (int q = 0; q < NumQueries; ++q)
    prepare_query<Cache>(item.q + static_cast<size_t>(first + q) * item.qkv_stride, item.head_dim, groups,
                         queries + q * stride, query_scales + q);

  // The slots that each query sees: the last `window` ones, itself included.
  const int index = item.context_len + first;  // of the first query, in the cache and the new tokens
  const int origin = item.start_offset;
  int low[NumQueries], high[NumQueries];
  for (int q = 0; q < NumQueries; ++q) {
    const int oldest = index + q - item.window + 1;
    low[q] = origin + (oldest > 0 ? oldest : 0);
    high[q] = origin + index + q + 1;
  }

  const Queries prepared = {queries, query_scales, groups};
  const int first_page = low[0] / kPageSize, end_page = (high[NumQueries - 1] + kPageSize - 1) / kPageSize;
  const int slots = (end_page - first_page) * kPageSize, base = first_page * kPageSize;
  // Meanwhile memory is read: this head's pages, unless they have been fetched, and the next head's, a part of
  // them during the scores and the others during the sum of values.
  if (!item.is_fetched)
    for (int page = first_page; page < end_page && page < first_page + kPagesAhead; ++page)
      PageFetcher(item, page, 0).fetch_rest();
  for (int page = first_page; page < end_page; page += kPagesAtOnce) {
    PageFetcher fetcher;
    if (!item.is_fetched)
      for (int p = page + kPagesAhead; p < end_page && p < page + kPagesAhead + kPagesAtOnce; ++p)
        PageFetcher(item, p, 0).fetch_rest();
    if (item.is_next && kPagesAtOnce > 1) fetcher = PageFetcher(item, page, 1);
    float* scores = item.scratch + (page - first_page) * kPageSize;
    if (page + kPagesAtOnce <= end_page)
      score_pages<Cache, NumQueries, kPagesAtOnce>(item, prepared, page, fetcher, scores);
    else
      score_pages<Cache, NumQueries, 1>(item, prepared, page, fetcher, scores);
  }

  float inverse[NumQueries];
  for (int q = 0; q < NumQueries; ++q)
    inverse[q] = softmax(item.scratch + static_cast<size_t>(q) * item.scratch_stride, slots, low[q] - base,
                         high[q] - base);

  if constexpr (kIsScaled<Cache>)  // the values' scales become part of their weights
    for (int slot = low[0]; slot < high[NumQueries - 1]; ++slot) {
      const float scale =
          scales_behind(page_of(item, slot) + item.values_offset, item.padded_head_dim)[slot % kPageSize];
      for (int q = 0; q < NumQueries; ++q)
        item.scratch[static_cast<size_t>(q) * item.scratch_stride + slot - base] *= scale;
    }

  constexpr int kVectorsAtOnce = 64 / kLanes < 4 ? 64 / kLanes : 4;
  float* out = item.out + static_cast<size_t>(first) * item.out_stride;
  int d = 0;
  for (; d + kVectorsAtOnce * kLanes <= item.padded_head_dim; d += kVectorsAtOnce * kLanes)
    weigh_values<Cache, NumQueries, kVectorsAtOnce>(item, first_page, low[0], high[NumQueries - 1],
                                                    item.scratch, inverse, d, out);
  for (; d < item.padded_head_dim; d += kLanes)
    weigh_values<Cache, NumQueries, 1>(item, first_page, low[0], high[NumQueries - 1], item.scratch, inverse,
                                       d, out);
}

template <typename Cache>
void attend_as(const AttentionItem& item) {
  append<Cache>(item);
  static_assert(jat::kMaxQueries == 4, "one case for each number of queries");
  AttentionItem part = item;
  for (int first = item.first_query; first < item.num_new; first += jat::kMaxQueries) {
    const int rest = item.num_new - first;
    part.is_fetched = item.is_fetched || first > item.first_query;
    part.is_next = item.is_next && rest <= jat::kMaxQueries;
    if (rest == 1)
      attend_queries<Cache, 1>(part, first);
    else if (rest == 2)
      attend_queries<Cache, 2>(part, first);
    else if (rest == 3)
      attend_queries<Cache, 3>(part, first);
    else
      attend_queries<Cache, 4>(part, first);
  }
}

void attend(const AttentionItem& item) {
  switch (item.kv_dtype) {
    case DType::kFloat32:
      return attend_as<CacheF32>(item);
    case DType::kBFloat16:
      return attend_as<CacheBF16>(item);
    case DType::kInt8:
      return attend_as<CacheI8>(item);
    case DType::kInt4:
      return;  // weights only
  }
}

}  // namespace
