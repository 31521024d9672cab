// Arguments of the persistent kernel: plain structs, no CUDA headers.
#pragma once

#include <cstdint>

namespace jat {

constexpr int kStepRows = 3;        // most tokens of a step
constexpr int kStepPageSize = 16;   // tokens of a page
constexpr int kStepMaxLayers = 32;  // their windows travel as a kernel argument
// Pages of the longest context: 2048 tokens, a start offset and the new tokens.
constexpr int kStepMaxPages = 136;
constexpr int kStepMaxValues = 1152;  // numbers of all continuous rows of a step
constexpr int kStepMaxHeadDim = 128;
constexpr int kStepMaxClusterSize = 16;
constexpr int kStepMaxWarps = 12;  // that compute; a multiple of kStepRows
constexpr int kStepMaxPairs = 4;   // pairs of adjacent columns of x that a thread owns
constexpr int kRingPieces = 16;    // most pieces in the ring

constexpr int kGroup = 8;        // rows of a matrix, or neurons, that are dealt out together
constexpr int kOutputTile = 32;  // outputs of a tile of a matrix whose inputs are dealt out

// The published size in clusters of eight has kernels of its own, whose loops are unrolled.
constexpr int kPublishedHidden = 768;
constexpr int kPublishedHeadDim = 64;
constexpr int kPublishedClusterSize = 8;

// Synchronisation of a layer.
constexpr int kReductionsPerLayer = 2;  // over all blocks, after the attention and after the MLP

// The mbarriers at which numbers of cluster peers arrive.
constexpr int kPeersQkv = 0, kPeersSoftmax = 1;
constexpr int kPeersParts = 2;  // of a slice of the sums of an MLP
constexpr int kPeersSums = 3;   // two, of even and of odd sums
constexpr int kPeersBarriers = 5;

constexpr uint32_t kTicketSums = 128;  // tickets of packets in a step

enum class StepType : int32_t { kFloat32, kBFloat16, kFloat16 };

// Addresses of device memory. W: the weight type, which is also the type of the cache. The matrices lie in the
// order in which tensor cores read them: jat_engine/backends/cuda/fragments.py.
struct StepLayer {
  const float* norm1_weight;   // [H]
  const float* norm1_bias;     // [H]
  const void* qkv;             // W [num_heads, groups of q, k and v: 3 head_dim / 8, group_bytes]
  const void* out_proj;        // W [num_heads, output_tiles, half-tiles of head_dim, 512 bytes]
  const float* out_proj_bias;  // [H]
  const float* norm2_weight;   // [H]
  const float* norm2_bias;     // [H]
  const void* mlp_in;          // W [inner / 8, group_bytes]
  const float* mlp_in_bias;    // [inner]
  const void* mlp_out;         // W [half-tiles of inner, output_tiles, 512 bytes]
  const float* mlp_out_bias;   // [H]
};

// Byte offsets into a block's shared memory; every one is a multiple of 128.
struct StepShared {
  int32_t full;     // mbarrier [kRingPieces]: the piece has received its bytes
  int32_t empty;    // mbarrier [kRingPieces]: every computing warp has read the piece
  int32_t peers;    // mbarrier [kPeersBarriers]: all cluster peers have written
  int32_t ends;     // uint32 [kRingPieces], of the loader
  int32_t share;    // StepShare
  int32_t last;     // int32: this block is the last one to finish
  int32_t normed;   // W [3, normed_stride words], the LayerNorm of x; for the head float [H]
  int32_t x;        // float [3, H], the residual stream; each number is its owning thread's
  int32_t sums;     // float [2, 3, H]: what is added to x, by even and odd sums; written by the whole cluster
  int32_t outputs;  // float [1 << out_splits_log2, 3, slice_stride]: parts of the slice of an attention's sum
  int32_t moments;  // float2 [num_warps]: sums of x and of its squares
  int32_t products;  // float [columns, 3, num_warps]: each warp's part of q, k, v or of the neurons
  int32_t query;     // words [1 or 2 (rounded, rest), 3, query_stride], written by the whole cluster
  int32_t pages;     // {int32 first_page, num_pages} [num_layers]: the cached pages that this block reads
  int32_t new_keys;  // W [2 (key, value), 3, head_dim], and room to read 8 keys; written by the whole cluster
  int32_t weights;   // float [num_warps, 9, 4]: softmax of 8 keys, and the rescaling, of each row
  int32_t states;    // float2 [3, num_warps]: maximum and sum of each warp's softmax
  int32_t outs;      // float [num_warps, 3, head_dim]: each warp's sums of values
  // float [cluster_size, 3, slice_stride], in the place of `outs`: parts of this block's slice of an MLP's sum, written
  // by the whole cluster. The embedding uses it as well.
  int32_t parts;
  // float [cluster_size, 3, head_dim + 4]: values, maximum and sum of a softmax, written by the whole cluster.
  int32_t partial;
  int32_t attended;  // W [3, attended_stride words]
  int32_t inner;     // W [3, inner_stride words]
  int32_t biases;    // float [block_neurons]
  int32_t ring;      // bytes [ring_bytes]
  int32_t bytes;     // of all
};

// The share of the work of one block, in its shared memory. Every range is [begin, end).
struct StepShare {
  int32_t rank, cluster, num_clusters;
  int32_t qkv_begin, qkv_end;  // groups of a head's q, k and v together
  int32_t out_begin, out_end;  // output tiles of out_proj: those of the slice
  int32_t slice_begin, slice_columns;
  int32_t neuron_begin, neuron_end;  // groups of neurons
  int32_t head_row_begin, head_row_end;
};

// In device memory. The last block to finish sets it to zero.
struct StepControl {
  alignas(128) uint32_t aborted;   // 1 after a wait took too long: all other waits end soon
  alignas(128) uint32_t finished;  // blocks that have finished
};

// The sums of a column in one cluster, stored as one number.
struct alignas(16) StepPacket {
  float values[kStepRows];
  uint32_t ticket;
};

// Sizes, geometry and addresses: the same for every step.
struct StepModel {
  int32_t hidden, num_heads, head_dim, inner, num_layers, num_pages;  // inner: a multiple of 8
  StepType type;
  // Geometry. A block has 32 (num_warps + 1) threads: num_warps warps compute, one loads.
  int32_t num_blocks, cluster_size, num_warps, num_slots, slot_bytes, ring_bytes;
  // Most units of a piece of the ring: groups of q, k, v or of neurons, output tiles of out_proj, pages (keys and
  // values), groups of mlp_out, and rows of the head.
  int32_t piece_groups, piece_tiles, piece_pages, piece_neurons, piece_head_rows;
  int32_t k_pairs;           // pairs of k tiles (64 bytes) of a row of H weights
  int32_t group_bytes;       // of 8 rows of H weights
  int32_t output_tiles;      // of H outputs
  int32_t head_half_tiles;   // half k tiles (16 bytes) of head_dim weights
  int32_t group_half_tiles;  // of 8 neurons
  int32_t out_splits_log2;   // output tiles of out_proj have their head_dim split over so many warps
  int32_t normed_stride, query_stride, attended_stride, inner_stride;  // words of 4 bytes
  int32_t block_neurons;                                               // most neurons of a block
  int32_t slice_stride;                                                // most columns of a slice
  StepShared shared;
  // Scratch
  StepControl* control;
  StepPacket* packets;  // [3 (rotating), num_clusters, H]
  // Weights
  const StepLayer* layers;          // [num_layers], in device memory
  const float* final_norm_weight;   // [H]
  const float* final_norm_bias;     // [H]
  const float* position_table;      // [positions, H]
  const float* continuous_bias;     // [H]
  void* kv_cache;                   // W [num_layers, num_pages, 2, num_heads, 16, head_dim]
  int32_t windows[kStepMaxLayers];  // keys a query sees, itself included
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
  const float* sources[kStepRows];  // multiples of 16 bytes; null: the row is zero
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
