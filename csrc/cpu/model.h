// The transformer of one engine. A step of any number of sessions is one call.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "linear.h"
#include "threads/thread_pool.h"

namespace jat {

// One block of the transformer.
struct Layer {
  std::vector<float> norm1_weight, norm1_bias, norm2_weight, norm2_bias;
  std::shared_ptr<Linear> qkv, out_proj, mlp_in, mlp_out;
  int window;  // tokens that a query sees, itself included
};

// The tokens and sessions of a step: S sessions with T new tokens in total. The caller owns all arrays.
struct StepPlan {
  int num_sessions, num_tokens;
  const float* const* embeddings;     // [T] of [hidden_size], without positions; session by session
  const int32_t* num_new;             // [S] tokens of each session, at least 1
  const int32_t* context_lens;        // [S] tokens in the cache before these; also the first position
  const int32_t* start_offsets;       // [S] slots of the first page before the oldest token
  const int32_t* const* page_tables;  // [S] of pages, oldest first
  const int32_t* num_predicted;       // [S] newest tokens to predict after; null for one of each session
};

// The heads of agents, each applied to the final hidden state of its session's last token.
struct AgentHeads {
  const Linear* const* heads;  // [S]
  float* const* out;           // [S] of [padded_rows of the head]
};

class Model {
 public:
  // position_table: [max_positions, hidden_size].
  Model(int hidden_size, int num_heads, DType kv_dtype, std::vector<float> position_table, int num_threads,
        int spin_us, const std::string& instruction_set);

  void add_layer(Layer layer) { layers_.push_back(std::move(layer)); }
  void set_final_norm(std::vector<float> weight, std::vector<float> bias);

  // Bytes of a page of the KV cache: keys and values of kPageSize tokens in all layers.
  size_t page_bytes() const;
  int hidden_size() const { return hidden_size_; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  bool is_complete() const { return capacity_ > 0; }  // after set_final_norm
  int max_positions() const { return static_cast<int>(position_table_.size()) / hidden_size_; }
  const char* instruction_set() const { return kernels_.name; }
  int num_threads() const { return pool_.size(); }

  // Append the new tokens to the KV cache, which starts at `pool`, and predict after each session's last one.
  void decode(const StepPlan& plan, const AgentHeads& heads, uint8_t* pool);
  // The same for sessions with one head. out: [tokens predicted after, head.padded_rows()].
  void decode(const StepPlan& plan, const Linear& head, float* out, uint8_t* pool);

  // out [num_tokens, linear.padded_rows()] = x [num_tokens, linear.columns()] times the weights, plus the
  // bias.
  void apply(const Linear& linear, const float* x, int num_tokens, float* out);

  // Cumulative seconds in native calls; wall time minus this is Python overhead.
  double seconds = 0;

 private:
  friend class ImageEncoder;

  // Each thread has its own.
  struct Scratch {
    std::vector<float> normal;     // one token after LayerNorm
    std::vector<uint32_t> groups;  // the same as the operand of a head
    std::vector<float> scores;     // [kMaxQueries, slots] of attention
  };

  void reserve(int num_tokens);
  // Leave the residual stream after the last layer in x_, at the rows of predicted_, which are counted. ahead:
  // called for what is read after the last layer.
  template <typename AheadOf>
  int run_layers(const StepPlan& plan, uint8_t* pool, const AheadOf& ahead_of_head);
  // Of one head in a page: keys and values of kPageSize tokens.
  size_t head_bytes() const { return jat::head_bytes(kv_dtype_, padded_head_dim_); }
  int operand_words() const;

  // The phases of a step; the threads share each of them. One piece computes an output element, in one order,
  // so results depend neither on the number of threads nor on that of pieces.

  // Bring x[rows[t]] into the format of a layer's weights, after LayerNorm if `norm_weight` is not null. The
  // result is valid until the next call.
  Operand prepare(DType dtype, const float* x, int x_stride, int columns, const int* rows, int num_tokens,
                  const float* norm_weight, const float* norm_bias);
  // out[rows[t]] = epilogue(weights . token t), for all tokens; `rows` may be null. ahead: of the next phase.
  void multiply(const Linear& linear, const Operand& operand, int num_tokens, Epilogue epilogue, float* out,
                int out_stride, const int* rows, const Ahead* ahead);
  // attended_ = attention of all sessions and heads over their pages, from qkv_.
  void attend(const StepPlan& plan, size_t layer, uint8_t* pool, const Ahead* ahead);
  // What each thread reads first of a layer's weights, and of its keys and values; null if that is not worth
  // fetching. Valid until the next call.
  const Ahead* ahead_of(const Linear& linear, int num_tokens);
  const Ahead* ahead_of(const StepPlan& plan, size_t layer, const uint8_t* pool);
  // Parts of a piece of these phases.
  int product_piece(const Linear& linear, int num_tokens) const;
  int attention_piece(const StepPlan& plan, size_t layer) const;
  void apply_heads(int num_sessions, const AgentHeads& heads);

  const int hidden_size_, num_heads_, head_dim_, padded_head_dim_, padded_hidden_;
  const DType kv_dtype_;
  const std::vector<float> position_table_;  // [max_positions, hidden_size]
  const Kernels& kernels_;
  ThreadPool pool_;
  std::vector<Layer> layers_;
  std::vector<float> final_weight_, final_bias_;

  // Scratch for `capacity_` tokens, kept between steps.
  int capacity_ = 0;
  int max_inner_ = 0;                              // padded rows of the widest mlp_in
  std::vector<float> x_, qkv_, attended_, inner_;  // [capacity, ...]; x_ is the residual stream
  std::vector<uint32_t> groups_;                   // the operand of the next product, and its scales
  std::vector<float> scales_;
  std::vector<int> first_tokens_;  // of each session
  std::vector<int> predicted_;     // tokens to predict after
  std::vector<Scratch> scratch_;   // of each thread
  std::vector<Ahead> ahead_;       // of each thread
};

}  // namespace jat
