// Attention of one session and head over the paged KV cache.
#pragma once

#include <cstring>

#include "linear.inl"

namespace {

using jat::AttentionItem;
using jat::kPageSize;

constexpr float kNegativeInfinity = -__builtin_inff();

// The page of a slot. Slots count from the start of the session's first page.
inline uint8_t* page_of(const AttentionItem& item, int slot) {
  return item.pool + static_cast<size_t>(item.page_table[slot / kPageSize]) * item.page_bytes;
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

// Write the new tokens' keys and values into their pages. A page of one head is
//   keys    [padded_head_dim / c, 16 tokens, c], c = 1 in float32, 2 in bfloat16
//   values  [16 tokens, padded_head_dim]
// so a page's keys are a block of a linear layer whose rows are tokens, and q . k is the same dot product.
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

// scores[q, 0..16) = queries[q] . keys of one page. Not scaled by 1 / sqrt(head_dim): GPT-Neo omits that.
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

// out[q] = softmax(q . keys) values, for the new tokens first ... first + Queries - 1.
template <typename Dot, typename Element, int Queries>
void attend_queries(const AttentionItem& item, int first) {
  constexpr int kColumns = sizeof(float) / sizeof(Element);
  const int groups = item.padded_head_dim / kColumns;
  uint32_t queries[Queries * jat::kMaxHeadDim];
  for (int q = 0; q < Queries; ++q) {
    float unused;
    uint32_t* target = queries + q * groups;
    std::memset(target, 0, sizeof(uint32_t) * static_cast<size_t>(groups));
    prepare(item.kv_dtype, item.q + static_cast<size_t>(first + q) * item.qkv_stride, item.head_dim, target,
            &unused);
  }

  // The slots that each query sees: the last `window` ones, itself included.
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

  constexpr int kVectorsAtOnce = 64 / kLanes < 4 ? 64 / kLanes : 4;
  float* out = item.out + static_cast<size_t>(first) * item.out_stride;
  int d = 0;
  for (; d + kVectorsAtOnce * kLanes <= item.padded_head_dim; d += kVectorsAtOnce * kLanes)
    weigh_values<Element, Queries, kVectorsAtOnce>(item, first_page, low[0], high[Queries - 1], item.scratch,
                                                   inverse, d, out);
  for (; d < item.padded_head_dim; d += kLanes)
    weigh_values<Element, Queries, 1>(item, first_page, low[0], high[Queries - 1], item.scratch, inverse, d,
                                      out);
}

template <typename Dot, typename Element>
void attend_as(const AttentionItem& item) {
  append<Element>(item);
  static_assert(jat::kMaxStepTokens == 3, "one case for each number of queries");
  switch (item.num_new - item.first_query) {
    case 1:
      return attend_queries<Dot, Element, 1>(item, item.first_query);
    case 2:
      return attend_queries<Dot, Element, 2>(item, item.first_query);
    case 3:
      return attend_queries<Dot, Element, 3>(item, item.first_query);
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

}  // namespace
