#include "model.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"

namespace jat {

namespace {

// Pieces per thread of a phase: several, so that threads which are late or slow can do less.
constexpr int kPiecesPerThread = 6;

// The least bytes of weights, keys or values of a piece: 2 us, ten times the cost of handing out a piece.
constexpr size_t kMinPieceBytes = 48 << 10;

// A phase that reads less than this, 15 us, stays with the caller: to share it costs some microseconds, since
// the activations move between cores.
constexpr size_t kMinSharedBytes = 384 << 10;

// A product reads its weights once for about this many tokens, a tile of them.
constexpr int kTokensPerRead = 4;

// Steps of more tokens compute longer than they read, and gain nothing from fetching ahead.
constexpr int kMaxTokensAhead = 8;

// In phases that do little for each token; also some microseconds.
constexpr int kTokensPerPiece = 8;

// Parts per piece of a phase. part_bytes: that one part reads, times the number of reads if it is read often.
int piece_size(int num_parts, size_t part_bytes, int num_threads) {
  if (num_parts * part_bytes < kMinSharedBytes) return num_parts;
  const int least = static_cast<int>(kMinPieceBytes / part_bytes) + 1;
  return std::max(least, num_parts / (kPiecesPerThread * num_threads));
}

// Tokens of a session to predict after.
int num_predicted(const StepPlan& plan, int session) {
  return plan.num_predicted != nullptr ? plan.num_predicted[session] : 1;
}

}  // namespace

Model::Model(int hidden_size, int num_heads, DType kv_dtype, std::vector<float> position_table,
             int num_threads, int spin_us, const std::string& instruction_set)
    : hidden_size_(hidden_size),
      num_heads_(num_heads),
      head_dim_(hidden_size / num_heads),
      padded_head_dim_(round_up(head_dim_, kBlockRows)),
      padded_hidden_(round_up(hidden_size, kPanelRows)),
      kv_dtype_(kv_dtype),
      position_table_(std::move(position_table)),
      kernels_(select_kernels(instruction_set)),
      pool_(num_threads, spin_us),
      scratch_(static_cast<size_t>(num_threads)),
      ahead_(static_cast<size_t>(num_threads)) {}

void Model::set_final_norm(std::vector<float> weight, std::vector<float> bias) {
  final_weight_ = std::move(weight);
  final_bias_ = std::move(bias);

  for (const Layer& layer : layers_) max_inner_ = std::max(max_inner_, layer.mlp_in->padded_rows());
  // A context may begin and end within a page.
  const size_t slots = position_table_.size() / hidden_size_ + 2 * kPageSize;
  for (Scratch& scratch : scratch_) {
    scratch.normal.resize(padded_hidden_);
    scratch.groups.resize(padded_hidden_);
    scratch.scores.resize(kMaxQueries * slots);
  }
  reserve(kMaxStepTokens);
}

size_t Model::page_bytes() const { return layers_.size() * num_heads_ * head_bytes(); }

int Model::operand_words() const { return std::max(max_inner_, padded_hidden_); }

void Model::reserve(int num_tokens) {
  if (num_tokens <= capacity_) return;
  const size_t tokens = std::max(num_tokens, 2 * capacity_);
  x_.resize(tokens * padded_hidden_);
  attended_.resize(tokens * padded_hidden_);
  qkv_.resize(tokens * round_up(3 * hidden_size_, kPanelRows));
  inner_.resize(tokens * max_inner_);
  groups_.resize(tokens * operand_words());
  scales_.resize(tokens);
  first_tokens_.resize(tokens);
  predicted_.resize(tokens);
  capacity_ = static_cast<int>(tokens);  // last, since memory may run out before
}

Operand Model::prepare(DType dtype, const float* x, int x_stride, int columns, const int* rows,
                       int num_tokens, const float* norm_weight, const float* norm_bias) {
  const int stride = jat::operand_words(dtype, columns);
  pool_.run(num_tokens, kTokensPerPiece, [&](int begin, int end, int thread) {
    float* normal = scratch_[thread].normal.data();
    for (int t = begin; t < end; ++t) {
      const float* source = x + static_cast<size_t>(rows ? rows[t] : t) * x_stride;
      if (norm_weight != nullptr) {
        kernels_.layer_norm(source, norm_weight, norm_bias, columns, normal);
        source = normal;
      }
      kernels_.prepare(dtype, source, columns, groups_.data() + static_cast<size_t>(t) * stride,
                       scales_.data() + t);
    }
  });
  return {groups_.data(), scales_.data(), stride};
}

int Model::product_piece(const Linear& linear, int num_tokens) const {
  const size_t part_bytes = linear.block_bytes() * std::max(1, num_tokens / kTokensPerRead);
  // A multiple of two blocks, so that no panel is split.
  return round_up(piece_size(linear.num_blocks(), part_bytes, pool_.size()), 2);
}

void Model::multiply(const Linear& linear, const Operand& operand, int num_tokens, Epilogue epilogue,
                     float* out, int out_stride, const int* rows, const Ahead* ahead) {
  const LinearView view = linear.view();
  const auto task = [&](int begin, int end, int) {
    kernels_.linear(view, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
  };
  pool_.run(linear.num_blocks(), product_piece(linear, num_tokens), task, ahead);
}

const Ahead* Model::ahead_of(const Linear& linear, int num_tokens) {
  const int size = product_piece(linear, num_tokens);
  if (num_tokens > kMaxTokensAhead || size >= linear.num_blocks()) return nullptr;
  for (int thread = 0; thread < pool_.size(); ++thread) {
    const int block = pool_.first_part(linear.num_blocks(), size, thread);
    const uint8_t* begin = linear.view().panels + block * linear.block_bytes();
    for (int i = 0; i < Ahead::kChunks; ++i) ahead_[thread].chunks[i] = begin + i * Ahead::kChunkBytes;
  }
  return ahead_.data();
}

int Model::attention_piece(const StepPlan& plan, size_t layer) const {
  // A part is one head of one session; what it reads is the mean over the sessions.
  size_t num_keys = 0;
  for (int session = 0; session < plan.num_sessions; ++session) {
    const int visible = std::min(plan.context_lens[session] + plan.num_new[session], layers_[layer].window);
    num_keys += static_cast<size_t>(visible) * ((plan.num_new[session] + kMaxQueries - 1) / kMaxQueries);
  }
  return piece_size(plan.num_sessions * num_heads_, num_keys / plan.num_sessions * head_bytes() / kPageSize,
                    pool_.size());
}

const Ahead* Model::ahead_of(const StepPlan& plan, size_t layer, const uint8_t* pool) {
  const int num_parts = plan.num_sessions * num_heads_, size = attention_piece(plan, layer);
  if (plan.num_tokens > kMaxTokensAhead || size >= num_parts) return nullptr;
  for (int thread = 0; thread < pool_.size(); ++thread) {
    const int part = std::min(pool_.first_part(num_parts, size, thread), num_parts - 1);
    const int session = part / num_heads_, length = plan.context_lens[session] + plan.num_new[session];
    const int oldest = std::max(0, plan.context_lens[session] + 1 - layers_[layer].window);
    const int first = (plan.start_offsets[session] + oldest) / kPageSize;
    const int end = (plan.start_offsets[session] + length + kPageSize - 1) / kPageSize;
    const uint8_t* head = pool + (layer * num_heads_ + part % num_heads_) * head_bytes();
    for (int i = 0; i < Ahead::kChunks; ++i)
      ahead_[thread].chunks[i] =
          first + i < end ? head + plan.page_tables[session][first + i] * page_bytes() : nullptr;
  }
  return ahead_.data();
}

void Model::attend(const StepPlan& plan, size_t layer, uint8_t* pool, const Ahead* ahead) {
  const bool is_last = layer + 1 == layers_.size();
  const int window = layers_[layer].window;
  const int qkv_stride = round_up(3 * hidden_size_, kPanelRows);
  const size_t layer_bytes = num_heads_ * head_bytes();

  const auto attend_head = [&](int session, int head, bool is_fetched, bool is_next, Scratch& own) {
    const int first = first_tokens_[session], count = plan.num_new[session];
    const float* q = qkv_.data() + static_cast<size_t>(first) * qkv_stride + head * head_dim_;
    AttentionItem item;
    item.kv_dtype = kv_dtype_;
    item.head_dim = head_dim_;
    item.padded_head_dim = padded_head_dim_;
    item.num_new = count;
    item.first_query = is_last ? count - num_predicted(plan, session) : 0;
    item.context_len = plan.context_lens[session];
    item.start_offset = plan.start_offsets[session];
    item.window = window;
    item.q = q;
    item.k = q + hidden_size_;
    item.v = q + 2 * hidden_size_;
    item.qkv_stride = qkv_stride;
    item.pool = pool + layer * layer_bytes + head * head_bytes();
    item.page_bytes = page_bytes();
    item.values_offset = key_bytes(kv_dtype_, padded_head_dim_);
    item.page_table = plan.page_tables[session];
    item.is_fetched = is_fetched;
    item.is_next = is_next;
    item.out = attended_.data() + static_cast<size_t>(first) * padded_hidden_ + head * head_dim_;
    item.out_stride = padded_hidden_;
    item.scratch = own.scores.data();
    item.scratch_stride = static_cast<int>(own.scores.size()) / kMaxQueries;
    kernels_.attend(item);
  };

  const auto task = [&](int begin, int end, int thread) {
    for (int i = begin; i < end; ++i) {
      const int head = i % num_heads_;
      attend_head(i / num_heads_, head, i > begin && head > 0, i + 1 < end && head + 1 < num_heads_,
                  scratch_[thread]);
    }
  };
  pool_.run(plan.num_sessions * num_heads_, attention_piece(plan, layer), task, ahead);
}

void Model::apply_heads(int num_sessions, const AgentHeads& agents) {
  const auto apply_head = [&](int session, Scratch& own) {
    const Linear& head = *agents.heads[session];
    const float* x = x_.data() + static_cast<size_t>(predicted_[session]) * padded_hidden_;
    float scale = 0;
    kernels_.layer_norm(x, final_weight_.data(), final_bias_.data(), hidden_size_, own.normal.data());
    kernels_.prepare(head.dtype(), own.normal.data(), hidden_size_, own.groups.data(), &scale);
    kernels_.linear(head.view(), {own.groups.data(), &scale, head.operand_stride()}, 1, 0, head.num_blocks(),
                    Epilogue::kStore, agents.out[session], 0, nullptr);
  };
  const int size = piece_size(num_sessions, agents.heads[0]->bytes(), pool_.size());
  pool_.run(num_sessions, size, [&](int begin, int end, int thread) {
    for (int session = begin; session < end; ++session) apply_head(session, scratch_[thread]);
  });
}

void Model::decode(const StepPlan& plan, const AgentHeads& heads, uint8_t* pool) {
  run_layers(plan, pool, [](int) { return nullptr; });
  apply_heads(plan.num_sessions, heads);
}

void Model::decode(const StepPlan& plan, const Linear& head, float* out, uint8_t* pool) {
  const int count = run_layers(plan, pool, [&](int tokens) { return ahead_of(head, tokens); });
  if (count == 0) return;
  const Operand operand = prepare(head.dtype(), x_.data(), padded_hidden_, hidden_size_, predicted_.data(),
                                  count, final_weight_.data(), final_bias_.data());
  multiply(head, operand, count, Epilogue::kStore, out, head.padded_rows(), nullptr, nullptr);
}

template <typename AheadOf>
int Model::run_layers(const StepPlan& plan, uint8_t* pool, const AheadOf& ahead_of_head) {
  const int num_tokens = plan.num_tokens;
  reserve(num_tokens);

  // x = embedding + position.
  int num_active = 0;
  for (int session = 0, t = 0; session < plan.num_sessions; ++session) {
    first_tokens_[session] = t;
    for (int i = 0; i < plan.num_new[session]; ++i, ++t) {
      const float* token = plan.embeddings[t];
      const float* position =
          position_table_.data() + static_cast<size_t>(plan.context_lens[session] + i) * hidden_size_;
      float* x = x_.data() + static_cast<size_t>(t) * padded_hidden_;
      for (int j = 0; j < hidden_size_; ++j) x[j] = token[j] + position[j];
    }
    for (int i = num_predicted(plan, session); i > 0; --i) predicted_[num_active++] = t - i;
  }

  const int qkv_stride = round_up(3 * hidden_size_, kPanelRows);
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    // Of the last layer only the tokens to predict after are needed; the others leave their keys and values.
    const bool is_last = l + 1 == layers_.size();
    const int* rows = is_last ? predicted_.data() : nullptr;
    const int active = is_last ? num_active : num_tokens;

    // x += out_proj(attention(qkv(norm1(x))))
    Operand operand = prepare(layer.qkv->dtype(), x_.data(), padded_hidden_, hidden_size_, nullptr,
                              num_tokens, layer.norm1_weight.data(), layer.norm1_bias.data());
    multiply(*layer.qkv, operand, num_tokens, Epilogue::kStore, qkv_.data(), qkv_stride, nullptr,
             ahead_of(plan, l, pool));
    attend(plan, l, pool, ahead_of(*layer.out_proj, active));
    if (active == 0) break;
    operand = prepare(layer.out_proj->dtype(), attended_.data(), padded_hidden_, hidden_size_, rows, active,
                      nullptr, nullptr);
    multiply(*layer.out_proj, operand, active, Epilogue::kAdd, x_.data(), padded_hidden_, rows,
             ahead_of(*layer.mlp_in, active));

    // x += mlp_out(gelu(mlp_in(norm2(x))))
    operand = prepare(layer.mlp_in->dtype(), x_.data(), padded_hidden_, hidden_size_, rows, active,
                      layer.norm2_weight.data(), layer.norm2_bias.data());
    multiply(*layer.mlp_in, operand, active, Epilogue::kGelu, inner_.data(), max_inner_, nullptr,
             ahead_of(*layer.mlp_out, active));
    operand = prepare(layer.mlp_out->dtype(), inner_.data(), max_inner_, layer.mlp_out->columns(), nullptr,
                      active, nullptr, nullptr);
    multiply(*layer.mlp_out, operand, active, Epilogue::kAdd, x_.data(), padded_hidden_, rows,
             is_last ? ahead_of_head(active) : ahead_of(*layers_[l + 1].qkv, num_tokens));
  }
  return num_active;
}

void Model::apply(const Linear& linear, const float* x, int num_tokens, float* out) {
  const size_t words = static_cast<size_t>(num_tokens) * linear.operand_stride();
  if (groups_.size() < words) groups_.resize(words);
  if (scales_.size() < static_cast<size_t>(num_tokens)) scales_.resize(num_tokens);
  const Operand operand =
      prepare(linear.dtype(), x, linear.columns(), linear.columns(), nullptr, num_tokens, nullptr, nullptr);
  multiply(linear, operand, num_tokens, Epilogue::kStore, out, linear.padded_rows(), nullptr, nullptr);
}

}  // namespace jat
