#include "layout.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace jat {

namespace {

constexpr int kMinSlots = 2;

void expect(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

int ceil_div(int a, int b) { return (a + b - 1) / b; }

int round_up(int a, int b) { return ceil_div(a, b) * b; }

}  // namespace

int type_bytes(StepType type) { return type == StepType::kFloat32 ? 4 : 2; }

int default_num_warps(int hidden) {
  return std::clamp(round_up(ceil_div(hidden, 64), kStepRows), kStepRows, kStepMaxWarps);
}

void lay_out(StepModel& model, int max_positions, int shared_limit, int max_slots) {
  const int hidden = model.hidden, head_dim = model.head_dim;
  expect(hidden >= 16 && hidden % 16 == 0,
         "hidden: expected a multiple of 16, got " + std::to_string(hidden));
  expect(head_dim >= 8 && head_dim % 8 == 0 && head_dim <= kStepMaxHeadDim,
         "head_dim: expected a multiple of 8 up to 128, got " + std::to_string(head_dim));
  expect(model.num_heads >= 1 && model.num_heads * head_dim == hidden,
         "num_heads: expected num_heads * head_dim = hidden, got " + std::to_string(model.num_heads) + " * " +
             std::to_string(head_dim) + " and " + std::to_string(hidden));
  expect(model.inner >= kGroup && model.inner % kGroup == 0,
         "inner: expected a multiple of 8, got " + std::to_string(model.inner));
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
  const int row_warps = model.num_warps / kStepRows;
  expect(
      model.num_warps >= kStepRows && model.num_warps <= kStepMaxWarps && model.num_warps % kStepRows == 0 &&
          hidden <= 64 * kStepMaxPairs * row_warps,
      "num_threads: expected a multiple of 96 up to 384 and at least 3 / 8 hidden computing threads, got " +
          std::to_string(32 * model.num_warps));

  const int bytes = type_bytes(model.type);
  // k tiles of 32 bytes are loaded in pairs, so rows of weights are padded to multiples of 64 bytes.
  model.k_pairs = ceil_div(hidden * bytes, 64);
  model.group_bytes = model.k_pairs * 64 * kGroup;
  model.output_tiles = ceil_div(hidden, kOutputTile);
  model.head_half_tiles = head_dim * bytes / 16;
  model.group_half_tiles = kGroup * bytes / 16;
  const int groups = model.inner / kGroup, qkv_groups = 3 * head_dim / kGroup;
  // By its share of q, k and v a block tells its peers that it has read their numbers of the head before.
  expect(model.cluster_size <= qkv_groups || model.num_blocks / model.cluster_size >= model.num_heads,
         "cluster_size: expected at most 3 head_dim / 8 = " + std::to_string(qkv_groups) +
             " where a cluster has several heads, got " + std::to_string(model.cluster_size));
  const int block_groups = ceil_div(groups, model.num_blocks);
  model.block_neurons = block_groups * kGroup;

  // A slice is whole output tiles of out_proj.
  const int tiles = ceil_div(model.output_tiles, model.cluster_size);
  model.slice_stride = tiles * kOutputTile;
  // The head's dimension is split over warps while each of them gets pairs of half-tiles, the operands of a
  // whole tile.
  model.out_splits_log2 = 0;
  while ((tiles << (model.out_splits_log2 + 1)) <= model.num_warps &&
         model.head_half_tiles % (4 << model.out_splits_log2) == 0)
    ++model.out_splits_log2;

  // Strides for which the lanes of a load meet different banks.
  const int row_words = model.k_pairs * 16;
  model.normed_stride = row_words % 32 == 0 ? row_words + 16 : row_words;
  const int columns = std::max(block_groups, ceil_div(qkv_groups, model.cluster_size)) * kGroup;
  const int head_words = head_dim * bytes / 4;
  model.query_stride = head_words % 32 == 0 ? head_words + 16 : head_words;
  model.attended_stride = head_words + 4;
  model.inner_stride = model.block_neurons * bytes / 4 + 4;
  if (model.inner_stride % 16 == 0) model.inner_stride += 4;

  // A slot holds the largest of what is not divided.
  const int page_bytes = kStepPageSize * head_dim * bytes, tile_bytes = model.head_half_tiles * 512;
  const int neuron_bytes = model.group_half_tiles * model.output_tiles * 512, bias_bytes = kGroup * 4;
  model.slot_bytes = round_up(
      std::max({3 * hidden * 4, 2 * page_bytes, tile_bytes, neuron_bytes, model.group_bytes + bias_bytes}),
      128);

  StepShared& shared = model.shared;
  int used = 0;
  const auto take = [&used](int64_t count, int size) {
    const int offset = used;
    used += static_cast<int>((count * size + 127) / 128 * 128);
    return offset;
  };
  const int rows = kStepRows, warps = model.num_warps;
  shared.full = take(kRingPieces, 8);
  shared.empty = take(kRingPieces, 8);
  shared.peers = take(kPeersBarriers, 8);
  shared.ends = take(kRingPieces, 4);
  shared.share = take(1, sizeof(StepShare));
  shared.last = take(1, 4);
  shared.normed = take(std::max(rows * model.normed_stride, hidden), 4);
  shared.x = take(rows * hidden, 4);
  shared.sums = take(2 * rows * hidden, 4);
  shared.outputs = take((rows * model.slice_stride) << model.out_splits_log2, 4);
  shared.moments = take(warps, 8);
  shared.products = take(columns * rows * warps, 4);
  shared.query = take((bytes == 4 ? 1 : 2) * rows * model.query_stride, 4);
  shared.pages = take(model.num_layers, 8);
  shared.new_keys = take(8 * head_dim, bytes);  // of which 6 are written: 8 keys are scored together
  shared.weights = take(warps * 9 * 4, 4);
  shared.states = take(rows * warps, 8);
  // One place for three uses: the embedding, of which each thread has four columns of a row, or more; sums of values,
  // which all warps have read before the block sends anything of the attention's sum; and parts of the MLP's sum, which
  // peers send when they have all of that.
  shared.parts = shared.outs =
      take(std::max({rows * model.slice_stride + 4 * 32 * warps, warps * rows * head_dim,
                     model.cluster_size * rows * model.slice_stride}),
           4);
  shared.partial = take(model.cluster_size * rows * (head_dim + 4), 4);
  shared.attended = take(rows * model.attended_stride, 4);
  shared.inner = take(rows * model.inner_stride, 4);
  shared.biases = take(model.block_neurons, 4);

  model.num_slots = std::min((shared_limit - used) / model.slot_bytes, max_slots);
  expect(model.num_slots >= kMinSlots, "shared memory: " + std::to_string(used) + " bytes and at least " +
                                           std::to_string(kMinSlots) + " slots of " +
                                           std::to_string(model.slot_bytes) + " do not fit into " +
                                           std::to_string(shared_limit) + "; use more blocks");
  model.ring_bytes = model.num_slots * model.slot_bytes;
  shared.ring = take(model.num_slots, model.slot_bytes);
  shared.bytes = used;

  // A piece of half the ring fits wherever the piece before it ends.
  const int piece = model.num_slots / 2 * model.slot_bytes;
  model.piece_groups = piece / (model.group_bytes + bias_bytes);
  model.piece_tiles = piece / tile_bytes;
  model.piece_pages = piece / (2 * page_bytes);
  model.piece_neurons = piece / neuron_bytes;
  model.piece_head_rows = piece / (hidden * 4);
}

int num_grid_barriers(const StepModel& model) { return kReductionsPerLayer * model.num_layers; }

int64_t packet_bytes(const StepModel& model) {
  return int64_t{3} * (model.num_blocks / model.cluster_size) * model.hidden * sizeof(StepPacket);
}

int64_t bytes_per_step(const StepModel& model, int context_len) {
  const int64_t hidden = model.hidden, inner = model.inner, bytes = type_bytes(model.type);
  const int64_t weights = (4 * hidden * hidden + 2 * inner * hidden) * bytes;
  const int64_t vectors = (4 * hidden + hidden + inner + hidden) * 4;
  int64_t total = model.num_layers * (weights + vectors) + 2 * hidden * 4;
  for (int layer = 0; layer < model.num_layers; ++layer)
    total += 2 * hidden * bytes * std::min<int64_t>(context_len, model.windows[layer] - 1);
  return total;
}

}  // namespace jat
