// x += the previous sum and its bias; then the LayerNorm of x, by all warps.
#pragma once

#include "../fragments.cuh"
#include "../reduce.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

constexpr float kNormEpsilon = 1e-5f;

// Add up what the warps of a row have: [row_warps, 2].
template <typename B>
JAT_DEVICE Pack<float, 2> sum_moments(const B& block, const float* moments) {
  if constexpr (B::kPublished && kStepMaxWarps / kStepRows == 4) {
    const Words a = load_words(moments), b = load_words(moments + 4);
    const auto sum = [&](int i) {
      return bits_float(a.values[i]) + bits_float(a.values[i + 2]) +
             (bits_float(b.values[i]) + bits_float(b.values[i + 2]));
    };
    return {{sum(0), sum(1)}};
  }
  Pack<float, 2> sum = {};
  JAT_UNROLL_BY(1)
  for (int part = 0; part < block.row_warps(); ++part) {
    sum.values[0] += moments[2 * part];
    sum.values[1] += moments[2 * part + 1];
  }
  return sum;
}

// Store two adjacent numbers: a word, or two words of floats, between which another lies (see swapped_word).
template <typename W>
JAT_DEVICE void store_swapped(uint32_t* target, const Pack<float, 2>& value) {
  if constexpr (sizeof(W) == 2) {
    *reinterpret_cast<Pack<W, 2>*>(target) = {
        {from_float<W>(value.values[0]), from_float<W>(value.values[1])}};
  } else {
    reinterpret_cast<float*>(target)[0] = value.values[0];
    reinterpret_cast<float*>(target)[2] = value.values[1];
  }
}

// A row is shared by a third of the warps. Only the thread that owns it touches a number of x. What does not
// depend on the sum is read or computed while it is on its way. So are the next phase's weights: load_weights loads
// some before the wait for packets, and load_more others before the wait for all sums.
template <bool kIsFinal, typename B, typename Load, typename LoadMore>
JAT_DEVICE void normalise(B& block, Load load_weights, LoadMore load_more) {
  trace(2);
  if (block.announces() && block.number > 1) block.expect_peers(kPeersSums + (block.number & 1));
  block.begin_phase();
  using W = typename B::Weight;
  const int hidden = block.hidden(), row = block.row;
  const bool has_bias = block.number > 1, is_row = row < block.input.num_rows;
  const auto column = [&](int i) { return 2 * block.lane + 64 * (block.row_part + block.row_warps() * i); };
  const auto behind = [&](int i) { return 64 * block.row_warps() * i; };  // the first column
  const auto owns = [&](int i) { return is_row && (B::kPublished || column(i) < hidden); };

  const float* vectors = reinterpret_cast<const float*>(block.ring.take((has_bias ? 3 : 2) * hidden * 4));
  const auto load = [&](int vector, int i) {
    return *reinterpret_cast<const Pack<float, 2>*>(vectors + vector * hidden + column(i));
  };
  float* kept = block.template at<float>(block.model.shared.x + 4 * (row * hidden + column(0)));
  // What has no value on some way would keep its registers from layer to layer.
  Pack<float, 2> gain[B::kPairs] = {}, shift[B::kPairs] = {}, x[B::kPairs] = {}, sum[B::kPairs] = {};
  JAT_UNROLL
  for (int i = 0; i < B::kPairs; ++i) {
    if (!owns(i)) continue;
    if (B::kPublished) gain[i] = load(0, i), shift[i] = load(1, i);
    if (!has_bias) continue;
    const auto bias = load(2, i), before = *reinterpret_cast<const Pack<float, 2>*>(kept + behind(i));
    for (int j = 0; j < 2; ++j) x[i].values[j] = before.values[j] + bias.values[j];
  }
  if (B::kPublished) block.ring.give_back(block.lane);  // other sizes read the vectors when they need them

  const int moments_at = computed(block.model.shared.moments +
                                  row * block.row_warps() * static_cast<int>(sizeof(Pack<float, 2>)));
  const int normed_at = computed(block.model.shared.normed + 4 * (row * block.model.normed_stride +
                                                                  swapped_word(column(0) / kPerWord<W>)));

  const int added_at = computed(sums_at(block, block.number - 1) + 4 * (row * hidden + column(0)));

  load_weights();
  trace(3);
  if (has_bias)
    receive_packets(block);
  else
    trace(4);  // the embedding comes from the cluster alone
  load_more();
  wait_for_sums(block);
  trace(5);

  const float* added = block.template at<float>(added_at);
  JAT_UNROLL
  for (int i = 0; i < B::kPairs; ++i)
    if (owns(i)) sum[i] = *reinterpret_cast<const Pack<float, 2>*>(added + behind(i));
  if (is_row) {
    // The sums of x and of its squares, both less the mean of the LayerNorm before, which keeps them small.
    if (block.number == 1) block.mean = added[-column(0)];
    float totals[2] = {}, squares[2] = {};
    JAT_UNROLL
    for (int i = 0; i < B::kPairs; ++i) {
      if (!owns(i)) continue;
      JAT_UNROLL
      for (int j = 0; j < 2; ++j) {
        x[i].values[j] += sum[i].values[j];
        const float centred = x[i].values[j] - block.mean;
        totals[j] += centred;
        squares[j] += centred * centred;
      }
      *reinterpret_cast<Pack<float, 2>*>(kept + behind(i)) = x[i];
    }
    // The lower half of the warp adds up the one, the upper half the other.
    const float total = totals[0] + totals[1], square = squares[0] + squares[1];
    const bool is_upper = block.lane >= 16;
    float half = (is_upper ? square : total) + shuffle_xor(is_upper ? total : square, 16);
    JAT_UNROLL
    for (int mask = 8; mask >= 1; mask /= 2) half += shuffle_xor(half, mask);
    float* moments = block.template at<float>(moments_at);
    if (block.lane % 16 == 0) moments[2 * block.row_part + block.lane / 16] = half;
    named_barrier(2 + row, 32 * block.row_warps());
    const Pack<float, 2> moment = sum_moments(block, moments);
    const float scale = 1.0f / static_cast<float>(hidden), shifted = moment.values[0] * scale;
    const float difference = moment.values[1] * scale - shifted * shifted;
    const float variance = difference < 0 ? 0 : difference;
    const float mean = block.mean + shifted;
    block.mean = mean;
    // An infinite variance would turn every row into its bias, finite and wrong; 0 * inf makes it NaN.
    const float inverse = inverse_sqrt(variance + kNormEpsilon) + 0 * variance;
    JAT_UNROLL
    for (int i = 0; i < B::kPairs; ++i) {
      if (!owns(i)) continue;
      if (!B::kPublished) gain[i] = load(0, i), shift[i] = load(1, i);
      JAT_UNROLL
      for (int j = 0; j < 2; ++j)
        sum[i].values[j] = (x[i].values[j] - mean) * inverse * gain[i].values[j] + shift[i].values[j];
    }
    if (!kIsFinal) {
      uint32_t* normed = block.template at<uint32_t>(normed_at);
      JAT_UNROLL
      for (int i = 0; i < B::kPairs; ++i)
        if (owns(i)) store_swapped<W>(normed + behind(i) / kPerWord<W>, sum[i]);
    } else if (row == block.input.num_rows - 1) {  // the head's rows are float32
      float* normed = block.template at<float>(block.model.shared.normed) + column(0);
      JAT_UNROLL
      for (int i = 0; i < B::kPairs; ++i)
        if (owns(i)) *reinterpret_cast<Pack<float, 2>*>(normed + behind(i)) = sum[i];
    }
  }
  if (!B::kPublished) block.ring.give_back(block.lane);
#if !JAT_PLANT_MISSING_BARRIER
  block.barrier();
#endif
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
