// The transformer and the encoders of one engine: a step of any number of sessions is one call.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "linear.h"
#include "threads.h"

namespace jat {

struct Layer {
  std::vector<float> norm1_weight, norm1_bias, norm2_weight, norm2_bias;
  std::shared_ptr<Linear> qkv, attention_out, mlp_in, mlp_out;
  int window;  // tokens a query sees, itself included
};

// Which tokens of which sessions a step computes. All arrays are the caller's; S sessions, T tokens.
struct Plan {
  int num_sessions, num_tokens;
  const float* const* embeddings;     // [T] of [hidden_size], without positions; a session's in a row
  const int32_t* num_new;             // [S] tokens of each session, at least 1
  const int32_t* context_lens;        // [S] tokens in the cache before these; also the first position
  const int32_t* start_offsets;       // [S] slots of the first page before the oldest token
  const int32_t* const* page_tables;  // [S] of pages, oldest first
  const Linear* const* heads;         // [S], applied to the final hidden state of the last token
  float* const* out;                  // [S] of [padded_rows of the head]
};

class Model {
 public:
  Model(int hidden_size, int num_heads, DType kv_dtype, std::vector<float> positions, int num_threads,
        int spin_us, const std::string& instruction_set);

  void add_layer(Layer layer) { layers_.push_back(std::move(layer)); }
  void set_final_norm(std::vector<float> weight, std::vector<float> bias);

  // Bytes of a page of the KV cache: all layers' keys and values of 16 tokens.
  size_t page_bytes() const;
  int hidden_size() const { return hidden_size_; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  bool is_complete() const { return capacity_ > 0; }  // after set_final_norm
  int max_positions() const { return static_cast<int>(positions_.size()) / hidden_size_; }
  const char* instruction_set() const { return kernels_.name; }
  int num_threads() const { return pool_.size(); }

  void decode(const Plan& plan, uint8_t* pool);

  // out: [num_tokens, linear.padded_rows()] = x [num_tokens, linear.columns()] times the weights.
  void apply(const Linear& linear, const float* x, int num_tokens, float* out);

  double seconds = 0;  // spent in calls so far, for whoever wants to know what is not

 private:
  friend class ImageEncoder;

  // A thread's own.
  struct Scratch {
    std::vector<float> normal;     // a token after its norm
    std::vector<uint32_t> groups;  // the same, as a head's operand
    std::vector<float> scores;     // of attention
  };

  void reserve(int num_tokens);
  int operand_words() const;
  // The phases of a step, shared by the threads. Each output element is computed by one piece in one order,
  // whoever computes it and however many pieces there are.
  //
  // Activations x[rows[t]], normalised first if there are weights for that; valid until the next call.
  Operand prepare(DType dtype, const float* x, int x_stride, int columns, const int* rows, int num_tokens,
                  const float* norm_weight, const float* norm_bias);
  void multiply(const Linear& linear, const Operand& operand, int num_tokens, Epilogue epilogue, float* out,
                int out_stride, const int* rows);
  void attend(const Plan& plan, size_t layer, uint8_t* pool);
  void apply_heads(const Plan& plan);

  const int hidden_size_, num_heads_, head_dim_, padded_head_dim_, padded_hidden_;
  const DType kv_dtype_;
  const std::vector<float> positions_;  // [max_positions, hidden_size]
  const Kernels& kernels_;
  ThreadPool pool_;
  std::vector<Layer> layers_;
  std::vector<float> final_weight_, final_bias_;

  int capacity_ = 0, max_inner_ = 0;  // tokens reserved for; widest layer
  std::vector<float> x_, qkv_, attended_, inner_;
  std::vector<uint32_t> groups_;  // the operand
  std::vector<float> scales_;
  std::vector<int> first_tokens_, last_tokens_;  // of each session
  std::vector<Scratch> scratch_;                 // of each thread
};

}  // namespace jat
