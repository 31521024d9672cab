// The MLP: each block has some neurons, and adds what they contribute to all outputs.
#pragma once

#include "../fragments.cuh"
#include "../reduce.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); tanh(u) = 1 - 2 / (exp(2 u) + 1).
JAT_DEVICE float gelu_new(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x - fast_divide(x, fast_exp(2 * u) + 1);
}

// Add what some neurons contribute to all outputs. kHalves: their half-tiles, or 0 for any number.
template <int kHalves, typename B>
JAT_DEVICE void add_outputs(const B& block, const Words* weights, const uint32_t* activations, bool is_row,
                            int halves, bool again) {
  using W = typename B::Weight;
  const int tiles = block.output_tiles(), stride = tiles * 32;
  if constexpr (kHalves > 0) {
    constexpr int kTiles = kPublishedHidden / kOutputTile / kStepMaxWarps;  // of a warp
    float c[kTiles][2][4] = {};
    JAT_UNROLL
    for (int i = 0; i < kTiles; ++i)
      multiply_tile<kHalves, W>(c[i], weights + (block.warp + i * kStepMaxWarps) * 32, stride, activations,
                                is_row);
    JAT_UNROLL
    for (int i = 0; i < kTiles; ++i)
      publish_tile(block, block_index(), block.warp + i * kStepMaxWarps, c[i], again);
  } else {
    JAT_UNROLL_BY(1)
    for (int tile = block.warp; tile < tiles; tile += block.num_warps()) {
      float c[2][4] = {};
      multiply_tile<W>(c, weights + tile * 32, stride, activations, is_row, halves);
      publish_tile(block, block_index(), tile, c, again);
    }
  }
}

template <typename B>
JAT_DEVICE void mlp(B& block) {
  using W = typename B::Weight;
  const StepModel& model = block.model;
  const int groups = block.share.neuron_end - block.share.neuron_begin;

  float* biases = block.template at<float>(model.shared.biases);
  multiply_rows(block, groups, kGroup * sizeof(float), [&](const char* bias, int first, int count) {
    for (int i = block.thread; i < count * kGroup; i += block.num_threads())
      biases[first * kGroup + i] = reinterpret_cast<const float*>(bias)[i];
  });
  block.barrier();

  uint32_t* inner = block.template at<uint32_t>(model.shared.inner);
  if (block.warp < kStepRows) {
    W* target = reinterpret_cast<W*>(inner + block.warp * model.inner_stride);
    JAT_UNROLL_BY(1)
    for (int neuron = block.lane; neuron < groups * kGroup; neuron += 32) {
      const float sum = sum_products(block, block.warp, neuron);
      target[neuron] = from_float<W>(gelu_new(sum + biases[neuron]));
    }
  }
  block.barrier();

  trace(11);
  constexpr int kHalves = kGroup * static_cast<int>(sizeof(W)) / 16;  // of a group of neurons
  const int tiles = block.output_tiles(), group_words = kHalves * tiles * 32, most = model.piece_neurons;
  const int row = block.lane >> 2;
  const bool is_row = row < kStepRows;
  const uint32_t* activations = inner + (is_row ? row : 0) * model.inner_stride + (block.lane & 3);
  JAT_UNROLL_BY(1)
  for (int first = 0; first < groups; first += most) {
    const int count = smaller(most, groups - first);
    const Words* weights = reinterpret_cast<const Words*>(
                               block.ring.take(count * group_words * static_cast<int>(sizeof(Words)))) +
                           block.lane;
    const uint32_t* part = activations + 4 * first * kHalves;
    if (B::kIsFast && count == 3)
      add_outputs<B::kIsFast ? 3 * kHalves : 0>(block, weights, part, is_row, 3 * kHalves, false);
    else
      add_outputs<0>(block, weights, part, is_row, count * kHalves, first > 0);
    block.ring.give_back(block.lane);
  }
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
