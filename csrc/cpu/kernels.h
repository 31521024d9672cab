// The arithmetic of a step, compiled once for each instruction set; `select_kernels` chooses at run time.
//
// Weights are stored in blocks of 16 rows. A block is a sequence of 64-byte groups: the 16 rows' next 1
// (float32), 2 (bfloat16) or 4 (int8) columns. Activations of one token are the same groups' columns, 4 bytes
// each. So one load of 64 bytes of weights serves every token of a tile, and lanes are rows: nothing is
// summed across lanes. Two blocks make a panel, their groups alternating, so that a panel is read as one
// stream. Every result is computed in one order that depends on neither the tile's size nor the other tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace jat {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

constexpr int kBlockRows = 16;
constexpr int kPanelRows = 2 * kBlockRows;
constexpr int kGroupBytes = 64;
constexpr int kPageSize = 16;  // tokens in a page of the KV cache; a page's keys are a block of 16 rows
constexpr int kMaxQueries = 4;
constexpr int kMaxHeadDim = 256;

constexpr int columns_per_group(DType dtype) {
  return dtype == DType::kFloat32 ? 1 : dtype == DType::kBFloat16 ? 2 : 4;
}
constexpr int num_groups(DType dtype, int columns) {
  return (columns + columns_per_group(dtype) - 1) / columns_per_group(dtype);
}
constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// What a linear layer multiplies: activations of T tokens in the weights' format.
struct Operand {
  const uint32_t* groups;  // [T, stride]
  const float* scales;     // [T], int8 only
  int stride;
};

struct LinearView {
  DType dtype;
  int num_groups;
  const uint8_t* panels;      // [num_blocks / 2, num_groups, 2, 64 bytes]
  const float* bias;          // [num_blocks * 16], or null
  const float* scales;        // [num_blocks * 16], int8 only
  const int32_t* correction;  // [num_blocks * 16], int8 only
};

enum class Epilogue : int { kStore, kGelu, kAdd };

// One session and head: append the new tokens' keys and values, then attend.
struct AttentionItem {
  DType kv_dtype;  // float32 or bfloat16
  int head_dim, padded_head_dim, num_new, first_query, context_len, start_offset, window;
  const float *q, *k, *v;  // of the first new token; the next one is `qkv_stride` floats on
  int qkv_stride;
  uint8_t* pool;         // this layer's and head's keys in page 0
  size_t page_bytes;     // from there to the next page
  size_t values_offset;  // from a page's keys to its values
  const int32_t* page_table;
  float* out;  // of the first new token; queries before `first_query` are left out
  int out_stride;
  float* scratch;  // [kMaxQueries, scratch_stride] scores
  int scratch_stride;
};

struct ConvView {
  int in_channels, out_channels, in_size, out_size;
  const float* weight;  // [out_channels / 16, 3, 3, in_channels, 16]
};

struct Kernels {
  const char* name;
  // x [columns] -> groups; int8: also the scale.
  void (*prepare)(DType dtype, const float* x, int columns, uint32_t* groups, float* scale);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int columns, float* out);
  // out[rows[t], 16 * b + r] for the blocks [begin, end) and the T tokens; `rows` null means t itself.
  void (*linear)(const LinearView& linear, const Operand& operand, int num_tokens, int begin, int end,
                 Epilogue epilogue, float* out, int out_stride, const int* rows);
  void (*attend)(const AttentionItem& item);
  // Row y of a 3 x 3 convolution of stride 2. in: [in_size + 2, in_size + 2, in_channels] with a border of
  // zeros; out: row y of [out_size, out_size, out_channels].
  void (*convolve_row)(const ConvView& conv, const float* in, int y, float* out);
  // 16 channels of [num_pixels, channels]: zero mean, unit variance, leaky ReLU, in place; their means
  // afterwards.
  void (*normalize_channels)(float* x, int num_pixels, int channels, float* means);
};

// `name`: "avx512", "avx2", "generic", or "auto" for the best the processor has. Throws
// std::invalid_argument.
const Kernels& select_kernels(const std::string& name);
// Those that the running processor has, best first.
std::vector<std::string> available_kernels();

}  // namespace jat
