// Prints the arguments of the persistent kernel for a step of the published size, as its launch would pass them.
//
// Output: regions, each 16 bytes of name, the address and the size (uint64), and its bytes. "model" and "input" are the
// kernel's arguments; other regions lie in global memory. Weights, keys, values and packets are never read by the clock,
// so they have addresses and no bytes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "layout.h"
#include "step.h"

namespace {

constexpr int kHidden = 768, kHeads = 12, kMostLayers = 12, kPositions = 512, kPages = 64;
constexpr int kValues = 32;  // of a continuous row, and of the prediction
constexpr int kSharedBytes = 227 * 1024;

char* next = reinterpret_cast<char*>(uintptr_t{0x7e0000000000});

template <typename T>
T* address(size_t bytes) {
  char* const begin = next;
  next += (bytes + 4095) / 4096 * 4096;
  return reinterpret_cast<T*>(begin);
}

void print(const char* name, const void* address, const void* bytes, size_t size) {
  char label[16] = {};
  std::strncpy(label, name, sizeof label - 1);
  const uint64_t where[2] = {reinterpret_cast<uintptr_t>(address), size};
  std::fwrite(label, sizeof label, 1, stdout);
  std::fwrite(where, sizeof where, 1, stdout);
  std::fwrite(bytes, size, 1, stdout);
}

}  // namespace

// Arguments: blocks, blocks of a cluster, cached tokens, layers.
int main(int count, char** arguments) {
  if (count != 5) return 1;
  jat::StepModel model = {};
  model.hidden = kHidden;
  model.num_heads = kHeads;
  model.head_dim = kHidden / kHeads;
  model.inner = 4 * kHidden;
  model.num_layers = std::atoi(arguments[4]);
  model.num_pages = kPages;
  model.type = jat::StepType::kBFloat16;
  model.num_warps = jat::default_num_warps(kHidden);
  model.num_blocks = std::atoi(arguments[1]);
  model.cluster_size = std::atoi(arguments[2]);
  jat::lay_out(model, kPositions, kSharedBytes, 64);

  static jat::StepControl control = {};
  static jat::StepLayer layers[kMostLayers];
  const size_t row = kHidden * sizeof(float), square = size_t{kHidden} * kHidden * 2;
  for (int index = 0; index < kMostLayers; ++index) {
    jat::StepLayer& layer = layers[index];
    layer.norm1_weight = address<const float>(row);
    layer.norm1_bias = address<const float>(row);
    layer.qkv = address<const void>(3 * square);
    layer.out_proj = address<const void>(square);
    layer.out_proj_bias = address<const float>(row);
    layer.norm2_weight = address<const float>(row);
    layer.norm2_bias = address<const float>(row);
    layer.mlp_in = address<const void>(4 * square);
    layer.mlp_in_bias = address<const float>(4 * row);
    layer.mlp_out = address<const void>(4 * square);
    layer.mlp_out_bias = address<const float>(row);
    model.windows[index] = index % 2 == 0 ? kPositions : kPositions / 2;
  }
  model.layers = layers;
  model.control = &control;
  model.packets = address<jat::StepPacket>(jat::packet_bytes(model));
  model.final_norm_weight = address<const float>(row);
  model.final_norm_bias = address<const float>(row);
  model.position_table = address<const float>(kPositions * row);
  model.continuous_bias = address<const float>(row);
  model.kv_cache = address<void>(kMostLayers * kPages * size_t{2} * jat::kStepPageSize * kHidden * 2);

  // Three new tokens: observation, action and reward; rows 0 and 2 are encoded, row 1 is an embedding.
  jat::StepInput input = {};
  input.num_rows = jat::kStepRows;
  input.context_len = std::atoi(arguments[3]);
  input.head_size = kValues;
  for (int token = 0; token < jat::kStepRows; ++token) {
    input.positions[token] = input.context_len + token;
    input.slots[token] = input.context_len + token;
    input.source_sizes[token] = token == 1 ? 0 : kValues;
    input.value_starts[token] = kValues * token;
    input.sources[token] = address<const float>(kValues * row);
  }
  for (int page = 0; page < kPages; ++page) input.page_table[page] = page;
  input.head_rows = address<const float>(kValues * row);
  input.head_bias = address<const float>(kValues * sizeof(float));
  input.predictions = address<uint64_t>(kValues * sizeof(uint64_t));
  input.status = address<uint32_t>(64);
  input.ticket = 1;
  input.timeout_ns = 100000000;

  print("model", nullptr, &model, sizeof model);
  print("input", nullptr, &input, sizeof input);
  print("control", &control, &control, sizeof control);
  print("layers", layers, layers, sizeof layers);
  const int64_t bytes[2] = {jat::bytes_per_step(model, input.context_len), model.ring_bytes};
  print("bytes", nullptr, bytes, sizeof bytes);
  const int32_t counts[2] = {jat::num_grid_barriers(model), model.shared.bytes};
  print("counts", nullptr, counts, sizeof counts);
}
