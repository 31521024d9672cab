// Products of tensor cores: packed weights in shared memory times the activations of up to three rows.
//
// In units of 32-bit words (two numbers, or one float) the registers of mma hold the same places for every type,
// so all of this is generic over W. See primitives.cuh for the places and fragments.py for the packed order.
// A product does not depend on the order of its k as long as both operands use the same, so a lane's words of k
// are adjacent in memory.
#pragma once

#include "block.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

// This lane's 4 words of up to three rows for a pair of k tiles: of row lane / 4, words 16 pair + 4 (lane % 4) ...
// Rows behind the third are zero, and so are words from `words` on.
JAT_DEVICE Words row_words(const uint32_t* rows, int stride, int pair, int lane, int words) {
  const int row = lane >> 2, word = 16 * pair + 4 * (lane & 3);
  if (row >= kStepRows || word >= words) return {{0, 0, 0, 0}};
  return load_words(rows + row * stride + word);
}

// Normed activations lie with the second and the third word of each four exchanged; see multiply_swapped.
JAT_DEVICE int swapped_word(int word) { return (word & ~3) | (word & 1) << 1 | (word >> 1 & 1); }

// The place of this lane's activations of its first pair of k tiles, in words. Lanes without a row read the last one:
// their products are not used.
template <typename B>
JAT_DEVICE int activations_at(const B& block) {
  const int stride =
      B::kPublished ? kPublishedHidden / kPerWord<typename B::Weight> + 16 : block.model.normed_stride;
  return smaller(block.lane >> 2, kStepRows - 1) * stride + 16 * block.warp + 4 * (block.lane & 3);
}

template <typename W>
JAT_DEVICE void multiply(float (&c)[4], const Words& a, const Words& b) {
  mma<W>(c, {a.values[0], 0, a.values[1], 0}, b.values[0], b.values[1]);
  mma<W>(c, {a.values[2], 0, a.values[3], 0}, b.values[2], b.values[3]);
}

// The product of a pair of k tiles, in two: c[0] of rows 0 to 7 and d[2] of rows 8 to 15. Both take the same registers
// of a, whose exchanged words are in the places of rows 8 to 15, so none has to be moved. The other results are not
// used.
template <typename W>
JAT_DEVICE void multiply_swapped(float (&c)[4], float (&d)[4], const Words& a, const Words& b) {
  mma<W>(c, a.values, b.values[0], b.values[1]);
  mma<W>(d, a.values, b.values[2], b.values[3]);
}

// Where a lane stores its products of a group: float [columns, 3 (rows), num_warps].
template <typename B>
JAT_DEVICE int first_product(const B& block) {
  return (2 * (block.lane & 3) * kStepRows + (block.lane >> 2)) * block.num_warps();
}

// Store what a warp has of the products with a group. target: of this lane, first_product.
template <typename B>
JAT_DEVICE void store_products(const B& block, const float (&c)[4], const float (&d)[4], float* target) {
  if ((block.lane >> 2) >= kStepRows) return;
  JAT_UNROLL
  for (int i = 0; i < 2; ++i) target[i * kStepRows * block.num_warps()] = c[i] + d[2 + i];
}

// Groups of 8 rows of H weights of a block, or of neurons, in the published size on 128 blocks; on 120, some have one
// group of neurons more.
constexpr int kBlockGroups = 3;
constexpr int kMostBlockGroups = kBlockGroups + 1;

// This warp's share of a block's rows of H weights, loaded before the activations are there.
template <typename B>
struct RowWeights {
  static constexpr int kShare =
      B::kIsFast ? kPublishedHidden * static_cast<int>(sizeof(typename B::Weight)) / 64 / kStepMaxWarps : 1;
  static constexpr int kGroups = B::kIsFast ? kMostBlockGroups : 1;

  Words values[kShare][kGroups] = {};
  float bias = 0;      // of row `lane`
  int inputs_at = 0;   // activations_at
  int outputs_at = 0;  // bytes, in shared memory, of this lane's first product
  int groups = 0;      // that are loaded: none, kBlockGroups or kMostBlockGroups

  // Call use(group) for those that are loaded, of which there are some.
  template <typename Use>
  JAT_DEVICE void for_all_groups(Use use) const {
    JAT_UNROLL
    for (int group = 0; group < kGroups; ++group)
      if (group < kBlockGroups || groups > kBlockGroups) use(group);
  }

  // Load `count` groups if there is room for so many. has_bias: the piece holds the rows' biases too.
  JAT_DEVICE void load(B& block, int count, bool has_bias) {
    if (!B::kIsFast || count < kBlockGroups || count > kMostBlockGroups || block.model.piece_groups < count)
      return;
    groups = count;
    const int pairs = block.k_pairs(), words = count * pairs * 32;
    const char* piece = block.ring.take(words * static_cast<int>(sizeof(Words)) +
                                        (has_bias ? count * kGroup * static_cast<int>(sizeof(float)) : 0));
    const Words* weights = reinterpret_cast<const Words*>(piece) + block.warp * 32 + block.lane;
    for_all_groups([&](int group) {
      JAT_UNROLL
      for (int i = 0; i < kShare; ++i)
        values[i][group] = load_words(weights + (group * pairs + i * kStepMaxWarps) * 32);
    });
    if (has_bias && block.lane < count * kGroup)
      bias = reinterpret_cast<const float*>(piece + words * sizeof(Words))[block.lane];
    block.ring.give_back(block.lane);
    inputs_at = computed(block.model.shared.normed + 4 * activations_at(block));
    outputs_at = computed(block.model.shared.products + 4 * (first_product(block) + block.warp));
  }
};

// This warp's part of the products with a group of 8 rows of H weights, summed over its share of k.
//   weights   the group, packed
//   products  of this warp, and of the group
template <typename B>
JAT_DEVICE void multiply_group(const B& block, const Words* weights, float* products) {
  using W = typename B::Weight;
  float c[4] = {}, d[4] = {};
  const int pairs = block.k_pairs();
  const uint32_t* inputs = block.template at<uint32_t>(block.model.shared.normed) + activations_at(block);
  JAT_UNROLL_BY(1)
  for (int pair = block.warp; pair < pairs; pair += block.num_warps()) {
    const Words a = load_words(inputs + 16 * (pair - block.warp));
    multiply_swapped<W>(c, d, a, load_words(weights + pair * 32 + block.lane));
  }
  store_products(block, c, d, products + first_product(block));
}

// The same with weights that were loaded.
template <typename B>
JAT_DEVICE void multiply_loaded(const B& block, const RowWeights<B>& weights) {
  using W = typename B::Weight;
  constexpr int kShare = RowWeights<B>::kShare;
  Words a[kShare];
  const uint32_t* inputs = block.template at<uint32_t>(weights.inputs_at);
  JAT_UNROLL
  for (int i = 0; i < kShare; ++i) a[i] = load_words(inputs + 16 * i * kStepMaxWarps);
  float* products = block.template at<float>(weights.outputs_at);
  weights.for_all_groups([&](int group) {
    float c[4] = {}, d[4] = {};
    JAT_UNROLL
    for (int i = 0; i < kShare; ++i) multiply_swapped<W>(c, d, a[i], weights.values[i][group]);
    store_products(block, c, d, products + group * kGroup * kStepRows * block.num_warps());
  });
}

// Multiply `count` groups, the pieces of the ring that hold them, and let done(piece, first, count) read more of
// each piece. Afterwards, behind a barrier, sum_products has the results.
template <typename B, typename Done>
JAT_DEVICE void multiply_rows(B& block, int count, int bias_bytes, Done done) {
  float* products = block.template at<float>(block.model.shared.products) + block.warp;
  const int group_products = kGroup * kStepRows * block.num_warps();
  const int group_words = block.k_pairs() * 32, most = block.model.piece_groups;
  for (int first = 0; first < count; first += most) {
    const int groups = smaller(most, count - first);
    const char* piece =
        block.ring.take(groups * (group_words * static_cast<int>(sizeof(Words)) + bias_bytes));
    const Words* weights = reinterpret_cast<const Words*>(piece);
    JAT_UNROLL_BY(1)
    for (int group = 0; group < groups; ++group)
      multiply_group(block, weights + group * group_words, products + (first + group) * group_products);
    done(piece + groups * group_words * sizeof(Words), first, groups);
    block.ring.give_back(block.lane);
  }
}

// The sum over all warps of a product.
template <typename B>
JAT_DEVICE float sum_products(const B& block, int row, int column) {
  const float* products =
      block.template at<float>(block.model.shared.products) + (column * kStepRows + row) * block.num_warps();
  if constexpr (B::kPublished) {
    static_assert(kStepMaxWarps == 12);
    const Words a = load_words(products), b = load_words(products + 4), c = load_words(products + 8);
    float sum[4];
    JAT_UNROLL
    for (int i = 0; i < 4; ++i)
      sum[i] = bits_float(a.values[i]) + bits_float(b.values[i]) + bits_float(c.values[i]);
    return sum[0] + sum[1] + (sum[2] + sum[3]);
  }
  float sum = 0;
  for (int warp = 0; warp < block.num_warps(); ++warp) sum += products[warp];
  return sum;
}

// What kHalves half-tiles of k add to an output tile: products of 32 outputs with three rows.
//   w            4 words of each half-tile, of which the first are used
//   activations  of row lane / 4 from word lane % 4 of the first half-tile on
template <typename W, int kHalves, int kCount>
JAT_DEVICE void multiply_tile(float (&c)[2][4], const Words (&w)[kCount], const uint32_t* activations,
                              bool is_row) {
  uint32_t b[kHalves];
  JAT_UNROLL
  for (int half = 0; half < kHalves; ++half) b[half] = is_row ? activations[4 * half] : 0;
  JAT_UNROLL
  for (int half = 0; half + 1 < kHalves; half += 2) {
    JAT_UNROLL
    for (int j = 0; j < 2; ++j)
      mma<W>(c[j],
             {w[half].values[2 * j], w[half].values[2 * j + 1], w[half + 1].values[2 * j],
              w[half + 1].values[2 * j + 1]},
             b[half], b[half + 1]);
  }
  if constexpr (kHalves % 2 == 1) {
    JAT_UNROLL
    for (int j = 0; j < 2; ++j)
      mma_half<W>(c[j], {w[kHalves - 1].values[2 * j], w[kHalves - 1].values[2 * j + 1]}, b[kHalves - 1]);
  }
}

// The same with this lane's weights in memory, `stride` Words apart.
template <int kHalves, typename W>
JAT_DEVICE void multiply_tile(float (&c)[2][4], const Words* weights, int stride, const uint32_t* activations,
                              bool is_row) {
  Words w[kHalves];
  JAT_UNROLL
  for (int half = 0; half < kHalves; ++half) w[half] = load_words(weights + half * stride);
  multiply_tile<W, kHalves>(c, w, activations, is_row);
}

// The same for any number of half-tiles.
template <typename W>
JAT_DEVICE void multiply_tile(float (&c)[2][4], const Words* weights, int stride, const uint32_t* activations,
                              bool is_row, int halves) {
  int half = 0;
  JAT_UNROLL_BY(1)
  for (; half + 1 < halves; half += 2)
    multiply_tile<2, W>(c, weights + half * stride, stride, activations + 4 * half, is_row);
  if (half < halves) multiply_tile<1, W>(c, weights + half * stride, stride, activations + 4 * half, is_row);
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
