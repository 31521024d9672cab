// The arithmetic of a step as a table of functions. isa/ has one for each instruction set; dispatch.h
// chooses.
//
// Layout of weights. 16 rows make a block. A block is a sequence of 64-byte groups, each the 16 rows' next 1
// (float32), 2 (bfloat16) or 4 (int8) columns, 4 bytes a row. Two blocks make a panel; their groups
// alternate, so that a panel is read as one stream:
//
//   panel  | block 0, group 0 | block 1, group 0 | block 0, group 1 | block 1, group 1 | ...
//   group  | row 0: 4 bytes | row 1: 4 bytes | ... | row 15: 4 bytes |
//
// int4, see int4.h: 32 columns make a group. A panel's group is 8 of those 64-byte groups, each 8 columns of one
// block (a byte has column c in its low and column c + 4 in its high half), the blocks alternating, and then the
// scales of both blocks' rows and their minima:
//
//   panel  | block 0, columns 0-7 | block 1, columns 0-7 | ... | block 1, columns 24-31 | 32 scales, 32 minima | ...
//
// Activations of a token are the same columns, 4 bytes a group. One load of 64 bytes of weights serves all
// tokens of a tile, and lanes are rows, so nothing is summed across lanes.
//
// Every result is computed in one order, whatever the size of the tile and the other tokens: a session's
// results do not depend, bit for bit, on what else is in a step.
#pragma once

#include <cstddef>
#include <cstdint>

#include "int4.h"

namespace jat {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2, kInt4 = 3 };

constexpr int kBlockRows = 16;
constexpr int kPanelRows = 2 * kBlockRows;
constexpr int kGroupBytes = 64;
constexpr int kPageSize = 16;      // tokens in a page of the KV cache; a page's keys are a block of 16 rows
constexpr int kMaxStepTokens = 3;  // new tokens of one agent in a step
constexpr int kMaxQueries = 4;     // new tokens of one session that are attended for at a time
constexpr int kMaxHeadDim = 256;

constexpr int kInt4GroupWords = kInt4Columns / 4 + 1;  // of activations: bytes, and -16 times their sum
constexpr int kInt4PanelBytes = (2 * kInt4Columns / 8 + 1) * kGroupBytes;  // of weights: a group of a panel

constexpr int columns_per_group(DType dtype) {
  return dtype == DType::kFloat32    ? 1
         : dtype == DType::kBFloat16 ? 2
         : dtype == DType::kInt8     ? 4
                                     : kInt4Columns;
}
constexpr int num_groups(DType dtype, int columns) {
  return (columns + columns_per_group(dtype) - 1) / columns_per_group(dtype);
}
// Bytes of the weights of one block, the half of a panel.
constexpr size_t block_bytes(DType dtype, int columns) {
  const size_t group = dtype == DType::kInt4 ? kInt4PanelBytes / 2 : kGroupBytes;
  return num_groups(dtype, columns) * group;
}
// 4-byte words of a token's activations.
constexpr int operand_words(DType dtype, int columns) {
  return num_groups(dtype, columns) * (dtype == DType::kInt4 ? kInt4GroupWords : 1);
}
constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Bytes of a page's keys and of its values for one head, with their scales; attention.inl has the layout.
constexpr size_t key_bytes(DType dtype, int padded_head_dim) {
  const size_t scales = dtype == DType::kInt8 ? 2 * sizeof(float) * kPageSize : 0;
  return static_cast<size_t>(num_groups(dtype, padded_head_dim)) * kGroupBytes + scales;
}
constexpr size_t value_bytes(DType dtype, int padded_head_dim) {
  const size_t scales = dtype == DType::kInt8 ? sizeof(float) * kPageSize : 0;
  return static_cast<size_t>(num_groups(dtype, padded_head_dim)) * kGroupBytes + scales;
}

constexpr size_t head_bytes(DType dtype, int padded_head_dim) {
  return key_bytes(dtype, padded_head_dim) + value_bytes(dtype, padded_head_dim);
}

// Activations of T tokens in the format of a linear layer's weights.
struct Operand {
  const uint32_t* groups;  // [T, stride]
  const float* scales;     // [T], int8 and int4 only
  int stride;
};

// Weights of a linear layer. int8: weight = scale of its row * q, q in [-127, 127]. int4: see int4.h.
struct LinearView {
  DType dtype;
  int num_groups;
  const uint8_t* panels;      // [num_blocks / 2, num_groups, 2, 64 bytes]; int4: 576 bytes a group
  const float* bias;          // [num_blocks * 16], or null
  const float* scales;        // [num_blocks * 16], int8 and int4 only
  const int32_t* correction;  // [num_blocks * 16], int8 only: 128 * (sum of the row's q)
};

// What is done with a product before it is written.
enum class Epilogue : int {
  kStore,  // out = product + bias
  kGelu,   // out = gelu(product + bias)
  kAdd     // out += product + bias
};

// One session and head: append the new tokens' keys and values, then attend.
struct AttentionItem {
  DType kv_dtype;
  int head_dim, padded_head_dim;
  int num_new;             // tokens to append
  int first_query;         // new tokens before this one are appended, but not attended for
  int context_len;         // tokens in the cache before the new ones
  int start_offset;        // slots of the first page before the oldest token
  int window;              // tokens that a query sees, itself included
  const float *q, *k, *v;  // of the first new token; the next one is `qkv_stride` floats on
  int qkv_stride;
  uint8_t* pool;         // this layer's and head's keys in page 0
  size_t page_bytes;     // from there to the next page
  size_t values_offset;  // from a page's keys to its values
  const int32_t* page_table;
  bool is_fetched;  // the session's previous head was attended just before, with `is_next`
  bool is_next;     // its next head, the memory behind this one, is attended next
  float* out;       // of the first new token
  int out_stride;
  float* scratch;  // [kMaxQueries, scratch_stride], for scores
  int scratch_stride;
};

// A 3 x 3 convolution of stride 2.
struct ConvView {
  int in_channels, out_channels, in_size, out_size;
  const float* weight;  // [out_channels / 16, 3, 3, in_channels, 16]
};

struct Kernels {
  const char* name;

  // x [columns] -> groups; int8 and int4: also the scale.
  void (*prepare)(DType dtype, const float* x, int columns, uint32_t* groups, float* scale);

  void (*layer_norm)(const float* x, const float* weight, const float* bias, int columns, float* out);

  // out[rows[t], 16 b + r] = row 16 b + r of the weights . token t, for the blocks b in [begin, end) and the
  // T tokens. `rows` may be null: then token t goes to row t.
  void (*linear)(const LinearView& linear, const Operand& operand, int num_tokens, int begin, int end,
                 Epilogue epilogue, float* out, int out_stride, const int* rows);

  void (*attend)(const AttentionItem& item);

  // Row y of a convolution. in: [in_size + 2, in_size + 2, in_channels] with a border of zeros; out: row y of
  // [out_size, out_size, out_channels].
  void (*convolve_row)(const ConvView& conv, const float* in, int y, float* out);

  // 16 channels of [num_pixels, channels], in place: zero mean, unit variance, leaky ReLU. means: [16], of
  // the result.
  void (*normalize_channels)(float* x, int num_pixels, int channels, float* means);

  // About `count` dot products of a group of weights, from registers. out: [16], of no meaning.
  void (*repeat_dots)(DType dtype, int count, float* out);
};

// isa/*.cpp; the first two on x86-64 only.
extern const Kernels kAvx512Kernels, kAvx2Kernels, kGenericKernels;

}  // namespace jat
