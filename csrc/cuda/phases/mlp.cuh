// The MLP: each block has some neurons, and sends what they contribute to all outputs.
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

// Output tiles of a warp.
template <typename B>
constexpr int kMostTiles = B::kPublished ? kPublishedHidden / kOutputTile / kStepMaxWarps
                                         : (64 * kStepMaxPairs / kStepRows + kOutputTile - 1) / kOutputTile;

// The weights of this block's neurons, loaded before the activations are there.
template <typename B>
struct MlpWeights {
  using W = typename B::Weight;
  static constexpr int kHalves =
      kGroup * static_cast<int>(sizeof(W)) / 16;  // half-tiles of a group of neurons
  static constexpr int kTiles = B::kIsFast ? kMostTiles<B> : 1;

  RowWeights<B> in;
  Words out[kTiles][B::kIsFast ? kMostBlockGroups * kHalves : 1] = {};
  bool is_out_loaded = false;

  JAT_DEVICE void load_in(B& block) {
    in.load(block, block.share.neuron_end - block.share.neuron_begin, true);
  }
  JAT_DEVICE void load_out(B& block) {
    is_out_loaded = in.groups > 0 && block.model.piece_neurons >= in.groups;
    if (!is_out_loaded) return;
    const int stride = block.output_tiles() * 32, halves = in.groups * kHalves;
    const Words* weights =
        reinterpret_cast<const Words*>(block.ring.take(halves * stride * static_cast<int>(sizeof(Words)))) +
        block.warp * 32 + block.lane;
    JAT_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      in.for_all_groups([&](int group) {
        JAT_UNROLL
        for (int half = group * kHalves; half < (group + 1) * kHalves; ++half)
          if (B::kIsFast)
            out[i][B::kIsFast ? half : 0] = load_words(weights + half * stride + i * kStepMaxWarps * 32);
      });
    }
    block.ring.give_back(block.lane);
  }
};

template <typename B>
JAT_DEVICE void mlp(B& block, const MlpWeights<B>& loaded) {
  trace(12);
  using W = typename B::Weight;
  const StepModel& model = block.model;
  const bool is_loaded = loaded.in.groups > 0;
  const int groups = is_loaded ? loaded.in.groups : block.share.neuron_end - block.share.neuron_begin;

  float* biases = block.template at<float>(model.shared.biases);
  if (is_loaded) {
    multiply_loaded(block, loaded.in);
  } else {
    multiply_rows(block, groups, kGroup * sizeof(float), [&](const char* bias, int first, int count) {
      for (int i = block.thread; i < count * kGroup; i += block.num_threads())
        biases[first * kGroup + i] = reinterpret_cast<const float*>(bias)[i];
    });
  }
  block.barrier();

  uint32_t* inner = block.template at<uint32_t>(model.shared.inner);
  if (block.warp < kStepRows) {
    W* target = reinterpret_cast<W*>(inner + block.warp * model.inner_stride);
    JAT_UNROLL_BY(1)
    for (int neuron = block.lane; neuron < groups * kGroup; neuron += 32) {
      const float sum = sum_products(block, block.warp, neuron);
      target[neuron] = from_float<W>(gelu_new(sum + (is_loaded ? loaded.in.bias : biases[neuron])));
    }
  }
  block.barrier();

  trace(13);
  constexpr int kHalves = MlpWeights<B>::kHalves, kTiles = kMostTiles<B>;
  const int tiles = block.output_tiles(), group_words = kHalves * tiles * 32, most = model.piece_neurons;
  const int row = block.lane >> 2;
  const bool is_row = row < kStepRows;
  const uint32_t* activations = inner + (is_row ? row : 0) * model.inner_stride + (block.lane & 3);
  float c[kTiles][2][4] = {};
  const auto for_all_tiles = [&](auto use) {
    JAT_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      const int tile = block.warp + i * block.num_warps();
      if (B::kPublished || tile < tiles) use(i, tile);
    }
  };
  if (loaded.is_out_loaded) {
    constexpr int kFew = B::kIsFast ? kBlockGroups * kHalves : 1,
                  kMany = B::kIsFast ? kMostBlockGroups * kHalves : 1;
    JAT_UNROLL
    for (int i = 0; i < MlpWeights<B>::kTiles; ++i) {
      if (groups == kBlockGroups)
        multiply_tile<W, kFew>(c[i], loaded.out[i], activations, is_row);
      else
        multiply_tile<W, kMany>(c[i], loaded.out[i], activations, is_row);
    }
  } else {
    JAT_UNROLL_BY(1)
    for (int first = 0; first < groups; first += most) {
      const int count = smaller(most, groups - first);
      const Words* weights = reinterpret_cast<const Words*>(
                                 block.ring.take(count * group_words * static_cast<int>(sizeof(Words)))) +
                             block.lane;
      for_all_tiles([&](int i, int tile) {
        multiply_tile<W>(c[i], weights + tile * 32, tiles * 32, activations + 4 * first * kHalves, is_row,
                         count * kHalves);
      });
      block.ring.give_back(block.lane);
    }
  }
  // A block without neurons sends zeros.
  for_all_tiles([&](int i, int tile) { send_tile(block, tile, c[i]); });
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
