// x += the previous sum and its bias; then the LayerNorm of x, by all warps.
#pragma once

#include "../reduce.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

constexpr float kNormEpsilon = 1e-5f;

// A row is shared by a third of the warps. x stays in the registers of the thread that owns it. What does not
// depend on the sum is read before the wait for it.
template <typename B>
JAT_DEVICE void normalise(B& block, bool is_final) {
  using W = typename B::Weight;
  const int hidden = block.hidden(), row = block.row;
  const bool has_bias = block.number > 1, is_row = row < block.input.num_rows;
  const auto column = [&](int i) { return 2 * block.lane + 64 * (block.row_part + block.row_warps() * i); };
  const auto owns = [&](int i) { return is_row && (B::kPublished || column(i) < hidden); };

  const float* vectors = reinterpret_cast<const float*>(block.ring.take((has_bias ? 3 : 2) * hidden * 4));
  const auto load = [&](int vector, int i) {
    return *reinterpret_cast<const Pack<float, 2>*>(vectors + vector * hidden + column(i));
  };
  Pack<float, 2> gain[B::kPairs], shift[B::kPairs];
  JAT_UNROLL
  for (int i = 0; i < B::kPairs; ++i) {
    if (!owns(i)) continue;
    if (B::kPublished) gain[i] = load(0, i), shift[i] = load(1, i);
    if (!has_bias) continue;
    const auto bias = load(2, i);
    for (int j = 0; j < 2; ++j) block.x[i].values[j] += bias.values[j];
  }
  if (B::kPublished) block.ring.give_back(block.lane);  // other sizes read the vectors when they need them

  // The sums of x and of its squares, both less the mean of the LayerNorm before, which keeps them small.
  const float* added = sums(block, block.number - 1) + row * hidden + column(0);
  float* next = sums(block, block.number + 1);
  const int zero_end = block.model.fixed_order || is_final ? 0 : block.share.zero_end;
  const int zero_begin = block.share.zero_begin + block.thread;

  trace(2);
  if (block.thread == 0) wait_for_blocks(block);
  block.barrier();
  trace(3);

  Pack<float, 2> sum[B::kPairs];
  JAT_UNROLL
  for (int i = 0; i < B::kPairs; ++i)
    if (owns(i)) load_global(added + (column(i) - column(0)), sum[i].values[0], sum[i].values[1]);
  if (block.number == 1 && is_row) block.mean = load_global(added - column(0));
  JAT_UNROLL_BY(1)
  for (int i = zero_begin; i < zero_end; i += block.num_threads()) next[i] = 0;
  float total = 0, squares = 0;
  JAT_UNROLL
  for (int i = 0; i < B::kPairs; ++i) {
    if (!owns(i)) continue;
    JAT_UNROLL
    for (int j = 0; j < 2; ++j) {
      block.x[i].values[j] += sum[i].values[j];
      const float centred = block.x[i].values[j] - block.mean;
      total += centred;
      squares += centred * centred;
    }
  }
  JAT_UNROLL
  for (int mask = 16; mask >= 1; mask /= 2) {
    total += shuffle_xor(total, mask);
    squares += shuffle_xor(squares, mask);
  }
  auto* moments = block.template at<Pack<float, 2>>(block.model.shared.moments);
  if (block.lane == 0) moments[block.warp] = {{total, squares}};
  named_barrier(2 + row, 32 * block.row_warps());
  total = 0, squares = 0;
  JAT_UNROLL_BY(4)
  for (int part = 0; part < block.row_warps(); ++part) {
    const Pack<float, 2> other = moments[row * block.row_warps() + part];
    total += other.values[0];
    squares += other.values[1];
  }
  const float scale = 1.0f / static_cast<float>(hidden), shifted = total * scale;
  const float difference = squares * scale - shifted * shifted;
  const float variance = difference < 0 ? 0 : difference;
  const float mean = block.mean + shifted;
  block.mean = mean;
  // An infinite variance would turn every row into its bias, finite and wrong; 0 * inf makes it NaN.
  const float inverse = inverse_sqrt(variance + kNormEpsilon) + 0 * variance;

  uint32_t* normed = block.template at<uint32_t>(block.model.shared.normed) + row * block.model.normed_stride;
  float* final_row = block.template at<float>(block.model.shared.normed);
  JAT_UNROLL
  for (int i = 0; i < B::kPairs; ++i) {
    if (!owns(i)) continue;
    if (!B::kPublished) gain[i] = load(0, i), shift[i] = load(1, i);
    Pack<float, 2> value;
    JAT_UNROLL
    for (int j = 0; j < 2; ++j)
      value.values[j] = (block.x[i].values[j] - mean) * inverse * gain[i].values[j] + shift[i].values[j];
    if (!is_final)
      *reinterpret_cast<Pack<W, 2>*>(normed + column(i) / kPerWord<W>) = {
          {from_float<W>(value.values[0]), from_float<W>(value.values[1])}};
    else if (row == block.input.num_rows - 1)  // the head's rows are float32
      *reinterpret_cast<Pack<float, 2>*>(final_row + column(i)) = value;
  }
  if (!B::kPublished) block.ring.give_back(block.lane);
#if !JAT_PLANT_MISSING_BARRIER
  block.barrier();
#endif
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
