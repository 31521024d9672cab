// Arguments of the persistent kernel: plain structs, no CUDA headers.
#pragma once

#include <cstdint>

namespace jat {

constexpr int kStepRows = 3;        // most tokens of a step
constexpr int kStepPageSize = 16;   // tokens of a page
constexpr int kStepMaxLayers = 32;  // the layers travel as a kernel argument
// Pages of the longest context: 2048 tokens, a start offset and the new tokens.
constexpr int kStepMaxPages = 136;
constexpr int kStepMaxValues = 1152;  // numbers of all continuous rows of a step
constexpr int kStepMaxHeadDim = 128;
constexpr int kStepMaxClusterSize = 16;
constexpr int kStepMaxWarps = 12;  // that compute

constexpr int kStepMaxPairs = 4;  // pairs of output columns of a computing thread

// The published size has kernels of its own, whose loops are unrolled.
constexpr int kPublishedHidden = 768;
constexpr int kPublishedHeadDim = 64;

// Synchronisation of a layer.
constexpr int kExchangesPerLayer = 2;       // grid barrier + reduction, after the attention and after the MLP
constexpr int kClusterBarriersPerHead = 2;  // after q, k, v and after the partial softmax

enum class StepType : int32_t { kFloat32, kBFloat16, kFloat16 };

// Addresses of device memory. W: the weight type, which is also the type of the cache.
struct StepLayer {
  const float* norm1_weight;  // [H]
  const float* norm1_bias;    // [H]
  const void* wqkv;           // W [3 H, H]
  const void* w_out_heads;    // W [num_heads, H (output), head_dim]
  const float* out_bias;      // [H]
  const float* norm2_weight;  // [H]
  const float* norm2_bias;    // [H]
  const void* w_fc;           // W [inner, H]
  const float* fc_bias;       // [inner]
  const void* w_proj_t;       // W [inner, H (output)]
  const float* proj_bias;     // [H]
  int32_t window;             // keys a query sees, itself included
};

// Byte offsets into a block's shared memory; every one is a multiple of 128.
struct StepShared {
  int32_t full;      // mbarrier [num_slots]: the slot has received its bytes
  int32_t empty;     // mbarrier [num_slots]: every consumer warp has read the slot
  int32_t siblings;  // mbarrier [2]: all cluster peers have written
  int32_t share;     // StepShare
  int32_t last;      // int32: this block is the last one to finish
  int32_t x;         // float [3, H], the residual stream
  int32_t normed;    // float [3, H], its LayerNorm, rounded to W
  int32_t qkv;       // float [3 (q, k, v), 3, head_dim], written by the whole cluster
  int32_t scores;    // float [3, block_keys], then their exponentials
  int32_t warp_out;  // float [num_warps, 3, head_dim]
  int32_t partial;   // float [cluster_size, 3, head_dim + 2 (maximum, sum)], written by the whole cluster
  int32_t attended;  // float [3, head_dim], rounded to W
  int32_t inner;     // float [block_neurons, 4 (rows)], rounded to W
  int32_t fc_bias;   // float [block_neurons]
  int32_t ring;      // bytes [num_slots, slot_bytes]
  int32_t bytes;     // of all
};

// The share of the work of one block, in its shared memory. Every range is [begin, end).
struct StepShare {
  int32_t rank, cluster, num_clusters;
  int32_t column_begin, column_end;  // of a head's q, k, v
  int32_t output_begin, output_end;  // of the hidden size, for out_proj
  int32_t neuron_begin, neuron_end;
  int32_t head_row_begin, head_row_end;
};

// Counters of the grid barriers, in device memory. The last block to finish sets them to zero.
struct StepControl {
  alignas(128) uint32_t arrived;   // arrivals of all blocks at the grid barriers of this step
  alignas(128) uint32_t aborted;   // 1 after a wait took too long: all other waits end soon
  alignas(128) uint32_t finished;  // blocks that have finished
};

// Sizes, weights and geometry: the same for every step.
struct StepModel {
  int32_t hidden, num_heads, head_dim, inner, num_layers, num_pages;
  StepType type;
  int32_t fixed_order;
  // Geometry. A block has 32 (num_warps + 1) threads: num_warps warps compute, one loads.
  int32_t num_blocks, cluster_size, num_warps, num_slots, slot_bytes;
  // Rows of a slot: of H weights, of head_dim weights, of 16 keys or values, of H floats.
  int32_t piece_rows, piece_outputs, piece_pages, piece_head_rows;
  int32_t block_keys;     // most scores of a block
  int32_t block_neurons;  // most neurons of a block
  int32_t heavy_blocks;   // blocks of the clusters that have one head more than the others
  int32_t heavy_neurons;  // neurons of all heavy blocks together; the other blocks share the rest
  StepShared shared;
  // Scratch
  StepControl* control;
  float* sums;   // [3 (rotating), 3, H]; zero between steps
  float* parts;  // [contributors, 3, H], fixed_order only
  // Weights
  const float* final_norm_weight;  // [H]
  const float* final_norm_bias;    // [H]
  const float* position_table;     // [positions, H]
  const float* continuous_bias;    // [H]
  void* kv_cache;                  // W [num_layers, num_pages, 2, num_heads, 16, head_dim]
  StepLayer layers[kStepMaxLayers];
};

// The inputs of one step. They are a kernel argument, so no block waits for the bus to read them.
struct StepInput {
  int32_t num_rows;      // 1..3
  int32_t context_len;   // cached tokens
  int32_t start_offset;  // slot of the oldest token in its page
  int32_t head_size;
  int32_t positions[kStepRows];
  int32_t slots[kStepRows];         // page * 16 + offset of the row's key and value; -1: not kept
  int32_t source_sizes[kStepRows];  // 0: the source is a finished embedding [H]; else an encoder [size, H]
  int32_t value_starts[kStepRows];  // in `values`
  const float* sources[kStepRows];  // null: the row is zero
  const float* head_rows;           // float [head_size, H]
  const float* head_bias;           // float [head_size] or null
  // Visible to the host: {float value, uint32 ticket} [head_size], each written in one store by a block of which
  // all waits ended well, and the ticket once a wait took too long.
  uint64_t* predictions;
  uint32_t* status;
  uint32_t ticket;      // of this step, not 0
  uint64_t timeout_ns;  // of one wait
  int32_t page_table[kStepMaxPages];
  float values[kStepMaxValues];
};

}  // namespace jat
