// The head: predictions for the last row, written to the host's memory.
#pragma once

#include "../block.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

template <typename B>
JAT_DEVICE float load_head_bias(const B& block, int index) {
  const int output = block.share.head_row_begin + index;
  return block.input.head_bias != nullptr && output < block.share.head_row_end ? block.input.head_bias[output]
                                                                               : 0;
}

// Predictions of this block's rows of the head, which are float32, as is the normed row. After an abort nothing is
// written: the host would take it for right.
//   bias  of the warp's first row
template <typename B>
JAT_DEVICE void head(B& block, float bias) {
  const int hidden = block.hidden(), count = block.share.head_row_end - block.share.head_row_begin;
  const int most = block.model.piece_head_rows;
  const float* normed = block.template at<float>(block.model.shared.normed);
  JAT_UNROLL_BY(1)
  for (int first = 0, index = block.warp; first < count; first += most) {
    const int end = smaller(first + most, count);
    const float* piece = reinterpret_cast<const float*>(block.ring.take((end - first) * hidden * 4));
    const uint32_t aborted = load_relaxed(&block.model.control->aborted);
    JAT_UNROLL_BY(1)
    for (; index < end; index += block.num_warps()) {
      if (index >= block.num_warps()) bias = load_head_bias(block, index);
      const float* weight = piece + (index - first) * hidden;
      float sum[4] = {};
      JAT_UNROLL_BY(6)
      for (int column = block.lane * 4; column < hidden; column += 128) {
        const auto w = *reinterpret_cast<const Pack<float, 4>*>(weight + column);
        const auto x = *reinterpret_cast<const Pack<float, 4>*>(normed + column);
        JAT_UNROLL
        for (int i = 0; i < 4; ++i) sum[i] += w.values[i] * x.values[i];
      }
      const float total = sum_all(sum[0] + sum[1] + (sum[2] + sum[3]));
      if (block.lane == 0 && aborted == 0)
        store_prediction(block.input.predictions + block.share.head_row_begin + index, total + bias,
                         block.input.ticket);
    }
    block.ring.give_back(block.lane);
  }
}

// The last block to finish tells the host if the step was given up, and zeroes the counters for the next.
template <typename B>
JAT_DEVICE void finish(B& block) {
  const StepModel& model = block.model;
  volatile int32_t* last = block.template at<volatile int32_t>(model.shared.last);
  block.barrier();
  if (block.thread == 0) {
    // Numbers that cluster peers sent may still be under way to a block that no longer waits for them.
    if (load_relaxed(&model.control->aborted) != 0)
      for (const uint64_t begin = now_ns(); now_ns() - begin < 50000;) relax();
    *last = count_global(&model.control->finished) == static_cast<uint32_t>(model.num_blocks - 1);
  }
  block.barrier();
  if (!*last || block.thread != 0) return;
  if (load_relaxed(&model.control->aborted) != 0) store_system(block.input.status, block.input.ticket);
  model.control->finished = 0;
  model.control->aborted = 0;
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
