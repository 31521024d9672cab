// Embedding: x = sum_j values[j] encoder[j, :] + bias, or a finished row, + position.
#pragma once

#include "../reduce.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

// Each block takes some groups of 8 columns, one sector of memory. Each warp of a row adds up some of the values.
template <typename B>
JAT_DEVICE void embed(B& block) {
  const StepModel& model = block.model;
  const StepInput& input = block.input;
  const int hidden = block.hidden(), groups = hidden / 8, blocks = model.num_blocks, index = block_index();
  const int splits = block.row_warps(), row = block.row;
  float* stage = block.template at<float>(model.shared.outs);  // [row, split, 8]
  JAT_UNROLL_BY(1)
  for (int group = groups * index / blocks; group < groups * (index + 1) / blocks; ++group) {
    const float* encoder = row < input.num_rows ? input.sources[row] : nullptr;
    float sum = 0;
    if (encoder != nullptr) {
      const int column = group * 8 + (block.lane & 7);
      const float* values = input.values + input.value_starts[row];
      JAT_UNROLL_BY(4)
      for (int j = block.row_part * 4 + (block.lane >> 3); j < input.source_sizes[row]; j += 4 * splits)
        sum += values[j] * encoder[static_cast<int64_t>(j) * hidden + column];
    }
    sum += shuffle_xor(sum, 8);
    sum += shuffle_xor(sum, 16);
    if (block.lane < 8) stage[block.warp * 8 + block.lane] = sum;
    block.barrier();

    const int out_row = block.thread / 8, out = group * 8 + block.thread % 8;
    if (out_row < input.num_rows) {
      const float* source = input.sources[out_row];
      float x = 0;
      if (source != nullptr) {
        x = input.source_sizes[out_row] > 0 ? model.continuous_bias[out] : source[out];
        JAT_UNROLL_BY(1)
        for (int split = 0; split < splits; ++split)
          x += stage[(out_row * splits + split) * 8 + block.thread % 8];
        x += model.position_table[static_cast<int64_t>(input.positions[out_row]) * hidden + out];
      }
      const int place = out_row * hidden + out;
      if (model.fixed_order)
        model.parts[place] = x;
      else
        add_global(sums(block, 0) + place, x);
    }
    block.barrier();
  }
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
