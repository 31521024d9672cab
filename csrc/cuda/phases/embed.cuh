// Embedding: x = sum_j values[j] encoder[j, :] + bias, or a finished row, + position.
#pragma once

#include "../reduce.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

// Each cluster computes all of it, each block the columns of its slice. Four columns of a row are shared by as many
// threads as there are, each of which adds up some of the values.
template <typename B>
JAT_DEVICE void embed(B& block) {
  const StepModel& model = block.model;
  const StepInput& input = block.input;
  const int hidden = block.hidden(), begin = block.slice_begin(), columns = block.slice_columns();
  const int quads = columns / 4, row_threads = 32 * block.row_warps();
  const int splits = quads > 0 ? larger(1, row_threads / quads) : 1;
  float* stage = block.template at<float>(model.shared.parts);  // [row, split, columns]
  const int row = block.row;
  if (row < input.num_rows && input.sources[row] != nullptr) {
    const float* source = input.sources[row] + begin;
    const float* values = input.values + input.value_starts[row];
    const int size = input.source_sizes[row];
    const float* added = (size > 0 ? model.continuous_bias + begin : source);
    const float* position =
        model.position_table + static_cast<int64_t>(input.positions[row]) * hidden + begin;
    JAT_UNROLL_BY(1)
    for (int unit = block.thread - row * row_threads; unit < splits * quads; unit += row_threads) {
      const int split = unit / quads, column = 4 * (unit - split * quads);
      Pack<float, 4> sum = {};
      if (split == 0) {
        const auto a = *reinterpret_cast<const Pack<float, 4>*>(added + column),
                   b = *reinterpret_cast<const Pack<float, 4>*>(position + column);
        for (int i = 0; i < 4; ++i) sum.values[i] = a.values[i] + b.values[i];
      }
      // Loads of eight rows are in flight together.
      constexpr int kRows = 8;
      JAT_UNROLL_BY(1)
      for (int first = split; first < size; first += kRows * splits) {
        Pack<float, 4> weights[kRows] = {};
        JAT_UNROLL
        for (int k = 0; k < kRows; ++k)
          if (const int j = first + k * splits; j < size)
            weights[k] =
                *reinterpret_cast<const Pack<float, 4>*>(source + static_cast<int64_t>(j) * hidden + column);
        JAT_UNROLL
        for (int k = 0; k < kRows; ++k) {
          const int j = first + k * splits;
          const float value = j < size ? values[j] : 0;
          for (int i = 0; i < 4; ++i) sum.values[i] += value * weights[k].values[i];
        }
      }
      *reinterpret_cast<Pack<float, 4>*>(stage + (row * splits + split) * columns + column) = sum;
    }
  }
  block.barrier();

  float* target = block.template at<float>(sums_at(block, 0)) + begin;
  JAT_UNROLL_BY(1)
  for (int unit = block.thread; unit < kStepRows * quads; unit += block.num_threads()) {
    const int out_row = unit / quads, column = 4 * (unit - out_row * quads);
    Pack<float, 4> x = {};
    if (out_row < input.num_rows && input.sources[out_row] != nullptr) {
      JAT_UNROLL_BY(1)
      for (int split = 0; split < splits; ++split) {
        const auto part =
            *reinterpret_cast<const Pack<float, 4>*>(stage + (out_row * splits + split) * columns + column);
        for (int i = 0; i < 4; ++i) x.values[i] += part.values[i];
      }
    }
    for_all_peers(block, [&](int rank) {
      store_async(target + out_row * hidden + column, block.peers(kPeersSums), rank, x.values[0], x.values[1],
                  x.values[2], x.values[3]);
    });
  }
  ++block.number;
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
