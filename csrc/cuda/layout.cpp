#include "layout.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace jat {

namespace {

constexpr int kSlotBytes = 12288;  // 8 rows of 768 bfloat16
constexpr int kMinSlots = 2;

void expect(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The neurons for the heavy blocks, such that all blocks load about the same number of bytes.
int balance(const StepModel& model, int heavy_blocks) {
  const int light_blocks = model.num_blocks - heavy_blocks;
  if (light_blocks == 0) return model.inner;
  // A head costs a block 4 head_dim / cluster_size rows of H; a neuron costs two.
  const double head = 2.0 * model.head_dim / model.cluster_size;
  const double light = (model.inner + heavy_blocks * head) / model.num_blocks;
  const double heavy = (light - head) * heavy_blocks;
  return std::clamp(static_cast<int>(heavy + 0.5), 0, model.inner);
}

}  // namespace

int type_bytes(StepType type) { return type == StepType::kFloat32 ? 4 : 2; }

int default_num_warps(int hidden) { return std::clamp(ceil_div(hidden, 64), 3, kStepMaxWarps); }

void lay_out(StepModel& model, int max_positions, int shared_limit, int max_slots) {
  const int hidden = model.hidden, head_dim = model.head_dim;
  expect(hidden >= 16 && hidden % 16 == 0,
         "hidden: expected a multiple of 16, got " + std::to_string(hidden));
  expect(head_dim >= 8 && head_dim % 8 == 0 && head_dim <= kStepMaxHeadDim,
         "head_dim: expected a multiple of 8 up to 128, got " + std::to_string(head_dim));
  expect(model.num_heads >= 1 && model.num_heads * head_dim == hidden,
         "num_heads: expected num_heads * head_dim = hidden, got " + std::to_string(model.num_heads) + " * " +
             std::to_string(head_dim) + " and " + std::to_string(hidden));
  expect(model.inner >= 1, "inner: expected at least 1, got " + std::to_string(model.inner));
  expect(model.num_layers >= 1 && model.num_layers <= kStepMaxLayers,
         "num_layers: expected 1 to " + std::to_string(kStepMaxLayers) + ", got " +
             std::to_string(model.num_layers));
  const int most_positions = (kStepMaxPages - 2) * kStepPageSize;
  expect(max_positions >= 1 && max_positions <= most_positions, "max_positions: expected 1 to " +
                                                                    std::to_string(most_positions) +
                                                                    ", got " + std::to_string(max_positions));
  expect(model.num_pages >= 1, "num_pages: expected at least 1, got " + std::to_string(model.num_pages));
  expect(model.cluster_size >= 1 && model.cluster_size <= kStepMaxClusterSize,
         "cluster_size: expected 1 to 16, got " + std::to_string(model.cluster_size));
  expect(model.num_blocks >= model.cluster_size && model.num_blocks % model.cluster_size == 0,
         "num_blocks: expected a multiple of cluster_size " + std::to_string(model.cluster_size) + ", got " +
             std::to_string(model.num_blocks));
  expect(model.num_warps >= 1 && model.num_warps <= kStepMaxWarps &&
             hidden <= 64 * kStepMaxPairs * model.num_warps,
         "num_threads: expected 32 to 384 and at least hidden / 8 computing threads, got " +
             std::to_string(32 * model.num_warps));

  const int num_clusters = model.num_blocks / model.cluster_size;
  model.heavy_blocks = model.num_heads % num_clusters * model.cluster_size;
  if (model.heavy_blocks == 0) model.heavy_blocks = model.num_blocks;
  model.heavy_neurons = balance(model, model.heavy_blocks);
  const int light_blocks = model.num_blocks - model.heavy_blocks;
  model.block_neurons = ceil_div(model.heavy_neurons, model.heavy_blocks);
  if (light_blocks > 0)
    model.block_neurons =
        std::max(model.block_neurons, ceil_div(model.inner - model.heavy_neurons, light_blocks));
  const int pages = ceil_div(max_positions + kStepPageSize - 1, kStepPageSize);
  model.block_keys = ceil_div(pages, model.cluster_size) * kStepPageSize + kStepRows;

  const int bytes = type_bytes(model.type);
  const int row_bytes = hidden * bytes;
  // A slot can hold the three vectors of a LayerNorm, and holds whole rows of weights.
  const int page_bytes = kStepPageSize * head_dim * bytes;
  const int least = std::max({3 * hidden * 4, page_bytes, row_bytes});
  model.slot_bytes = std::max(ceil_div(least, 128) * 128, kSlotBytes / std::max(row_bytes, 128) * row_bytes);
  model.slot_bytes = ceil_div(model.slot_bytes, 128) * 128;

  model.piece_rows = model.slot_bytes / row_bytes;
  model.piece_outputs = model.slot_bytes / (head_dim * bytes);
  model.piece_pages = model.slot_bytes / page_bytes;
  model.piece_head_rows = model.slot_bytes / (hidden * 4);

  StepShared& shared = model.shared;
  int used = 0;
  const auto take = [&used](int64_t count, int size) {
    const int offset = used;
    used += static_cast<int>((count * size + 127) / 128 * 128);
    return offset;
  };
  shared.siblings = take(2, 8);
  shared.share = take(1, sizeof(StepShare));
  shared.last = take(1, 4);
  shared.x = take(kStepRows * hidden, 4);
  shared.normed = take(kStepRows * hidden, 4);
  shared.qkv = take(3 * kStepRows * head_dim, 4);
  shared.scores = take(static_cast<int64_t>(kStepRows) * model.block_keys, 4);
  shared.warp_out = take(static_cast<int64_t>(model.num_warps) * kStepRows * head_dim, 4);
  shared.partial = take(static_cast<int64_t>(model.cluster_size) * kStepRows * (head_dim + 2), 4);
  shared.attended = take(kStepRows * head_dim, 4);
  shared.inner = take(static_cast<int64_t>(model.block_neurons) * 4, 4);
  shared.fc_bias = take(model.block_neurons, 4);
  const int slot_and_barriers = model.slot_bytes + 2 * 8;
  model.num_slots = std::min((shared_limit - used - 256) / slot_and_barriers, max_slots);
  expect(model.num_slots >= kMinSlots, "shared memory: " + std::to_string(used) + " bytes and at least " +
                                           std::to_string(kMinSlots) + " slots of " +
                                           std::to_string(model.slot_bytes) + " do not fit into " +
                                           std::to_string(shared_limit) + "; use more blocks");
  shared.full = take(model.num_slots, 8);
  shared.empty = take(model.num_slots, 8);
  shared.ring = take(model.num_slots, model.slot_bytes);
  shared.bytes = used;
}

int num_exchanges(const StepModel& model) {
  const int sums = 1 + kExchangesPerLayer * model.num_layers;
  return model.fixed_order ? 2 * sums : sums;
}

int num_contributors(const StepModel& model) { return std::max(model.num_blocks, model.num_heads); }

int64_t bytes_per_step(const StepModel& model, int context_len) {
  const int64_t hidden = model.hidden, inner = model.inner, bytes = type_bytes(model.type);
  const int64_t weights = (4 * hidden * hidden + 2 * inner * hidden) * bytes;
  const int64_t vectors = (4 * hidden + hidden + inner + hidden) * 4;
  int64_t total = model.num_layers * (weights + vectors) + 2 * hidden * 4;
  for (int layer = 0; layer < model.num_layers; ++layer)
    total += 2 * hidden * bytes * std::min<int64_t>(context_len, model.layers[layer].window - 1);
  return total;
}

}  // namespace jat
