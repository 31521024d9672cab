#include "model.h"

#include <algorithm>
#include <cstring>

namespace jat {

namespace {

// Ranges that a thread's part of a phase is taken in: evens out threads that are held up.
constexpr int kShares = 6;

}  // namespace

Model::Model(int hidden_size, int num_heads, DType kv_dtype, std::vector<float> positions, int num_threads,
             int spin_us, const std::string& instruction_set)
    : hidden_size_(hidden_size),
      num_heads_(num_heads),
      head_dim_(hidden_size / num_heads),
      padded_head_dim_(round_up(head_dim_, kBlockRows)),
      padded_hidden_(round_up(hidden_size, kPanelRows)),
      kv_dtype_(kv_dtype),
      positions_(std::move(positions)),
      kernels_(select_kernels(instruction_set)),
      pool_(num_threads, spin_us),
      scratch_(static_cast<size_t>(num_threads)) {}

void Model::set_final_norm(std::vector<float> weight, std::vector<float> bias) {
  final_weight_ = std::move(weight);
  final_bias_ = std::move(bias);
  for (const Layer& layer : layers_) max_inner_ = std::max(max_inner_, layer.mlp_in->padded_rows());
  queues_ = std::vector<WorkQueue>(5 * layers_.size() + 1);
  const size_t slots = positions_.size() / hidden_size_ + 2 * kPageSize;
  for (Scratch& scratch : scratch_) {
    scratch.floats.resize(std::max(max_inner_, padded_hidden_));
    scratch.groups.resize(static_cast<size_t>(kMaxOwnTokens) * operand_words());
    scratch.scales.resize(kMaxOwnTokens);
    scratch.scores.resize(kMaxQueries * slots);
  }
  reserve(kMaxOwnTokens);
}

size_t Model::page_bytes() const {
  const size_t element = kv_dtype_ == DType::kFloat32 ? 4 : 2;
  return layers_.size() * 2 * num_heads_ * kPageSize * padded_head_dim_ * element;
}

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
  last_tokens_.resize(tokens);
  capacity_ = static_cast<int>(tokens);  // last: memory may run out before
}

Operand Model::prepare(int thread, DType dtype, const float* x, int x_stride, int columns, const int* rows,
                       int num_tokens, const float* norm_weight, const float* norm_bias) {
  Scratch& own = scratch_[thread];
  const bool shared = num_tokens > kMaxOwnTokens;
  const int stride = num_groups(dtype, columns);
  uint32_t* groups = shared ? groups_.data() : own.groups.data();
  float* scales = shared ? scales_.data() : own.scales.data();
  const int step = shared ? pool_.size() : 1;
  for (int t = shared ? thread : 0; t < num_tokens; t += step) {
    const float* source = x + static_cast<size_t>(rows ? rows[t] : t) * x_stride;
    if (norm_weight != nullptr) {
      kernels_.layer_norm(source, norm_weight, norm_bias, columns, own.floats.data());
      source = own.floats.data();
    }
    kernels_.prepare(dtype, source, columns, groups + static_cast<size_t>(t) * stride, scales + t);
  }
  if (shared) pool_.barrier();
  return {groups, scales, stride};
}

void Model::multiply(WorkQueue& queue, const Linear& linear, const Operand& operand, int num_tokens,
                     Epilogue epilogue, float* out, int out_stride, const int* rows) {
  const int total = linear.num_blocks();
  const int size = std::max(2, round_up(total / (kShares * pool_.size()), 2));
  const LinearView view = linear.view();
  int begin, end;
  while (queue.take(total, size, begin, end))
    kernels_.linear(view, operand, num_tokens, begin, end, epilogue, out, out_stride, rows);
}

void Model::decode(const Plan& plan, uint8_t* pool) {
  const int num_tokens = plan.num_tokens;
  reserve(num_tokens);
  for (WorkQueue& queue : queues_) queue.reset();
  for (int session = 0, t = 0; session < plan.num_sessions; ++session) {
    first_tokens_[session] = t;
    for (int i = 0; i < plan.num_new[session]; ++i, ++t) {
      const float* token = plan.embeddings[t];
      const float* offset =
          positions_.data() + static_cast<size_t>(plan.context_lens[session] + i) * hidden_size_;
      float* x = x_.data() + static_cast<size_t>(t) * padded_hidden_;
      for (int j = 0; j < hidden_size_; ++j) x[j] = token[j] + offset[j];
    }
    last_tokens_[session] = t - 1;
  }

  const int qkv_stride = round_up(3 * hidden_size_, kPanelRows);
  const size_t element = kv_dtype_ == DType::kFloat32 ? 4 : 2;
  const size_t head_bytes = static_cast<size_t>(kPageSize) * padded_head_dim_ * element;  // keys, or values
  const size_t layer_bytes = 2 * num_heads_ * head_bytes;
  const size_t bytes_per_page = page_bytes();

  pool_.run([&](int thread) {
    float* scores = scratch_[thread].scores.data();
    const int score_stride = static_cast<int>(scratch_[thread].scores.size()) / kMaxQueries;
    for (size_t l = 0; l < layers_.size(); ++l) {
      const Layer& layer = layers_[l];
      WorkQueue* queues = queues_.data() + 5 * l;
      // Of the last layer only the last tokens are read; the others leave keys and values.
      const bool last = l + 1 == layers_.size();
      const int* rows = last ? last_tokens_.data() : nullptr;
      const int active = last ? plan.num_sessions : num_tokens;

      Operand operand = prepare(thread, layer.qkv->dtype(), x_.data(), padded_hidden_, hidden_size_, nullptr,
                                num_tokens, layer.norm1_weight.data(), layer.norm1_bias.data());
      multiply(queues[0], *layer.qkv, operand, num_tokens, Epilogue::kStore, qkv_.data(), qkv_stride,
               nullptr);
      pool_.barrier();

      int begin, end;
      while (queues[1].take(plan.num_sessions * num_heads_, 1, begin, end)) {
        const int session = begin / num_heads_, head = begin % num_heads_;
        const int first = first_tokens_[session], count = plan.num_new[session];
        const float* q = qkv_.data() + static_cast<size_t>(first) * qkv_stride + head * head_dim_;
        kernels_.attend({kv_dtype_,
                         head_dim_,
                         padded_head_dim_,
                         count,
                         last ? count - 1 : 0,
                         plan.context_lens[session],
                         plan.start_offsets[session],
                         layer.window,
                         q,
                         q + hidden_size_,
                         q + 2 * hidden_size_,
                         qkv_stride,
                         pool + l * layer_bytes + head * 2 * head_bytes,
                         bytes_per_page,
                         head_bytes,
                         plan.page_tables[session],
                         attended_.data() + static_cast<size_t>(first) * padded_hidden_ + head * head_dim_,
                         padded_hidden_,
                         scores,
                         score_stride});
      }
      pool_.barrier();

      operand = prepare(thread, layer.attention_out->dtype(), attended_.data(), padded_hidden_, hidden_size_,
                        rows, active, nullptr, nullptr);
      multiply(queues[2], *layer.attention_out, operand, active, Epilogue::kAdd, x_.data(), padded_hidden_,
               rows);
      pool_.barrier();

      operand = prepare(thread, layer.mlp_in->dtype(), x_.data(), padded_hidden_, hidden_size_, rows, active,
                        layer.norm2_weight.data(), layer.norm2_bias.data());
      multiply(queues[3], *layer.mlp_in, operand, active, Epilogue::kGelu, inner_.data(), max_inner_,
               nullptr);
      pool_.barrier();

      operand = prepare(thread, layer.mlp_out->dtype(), inner_.data(), max_inner_, layer.mlp_out->columns(),
                        nullptr, active, nullptr, nullptr);
      multiply(queues[4], *layer.mlp_out, operand, active, Epilogue::kAdd, x_.data(), padded_hidden_, rows);
      pool_.barrier();
    }

    // Heads, a session at a time.
    Scratch& own = scratch_[thread];
    int begin, end;
    while (queues_.back().take(plan.num_sessions, 1, begin, end)) {
      const Linear& head = *plan.heads[begin];
      const float* x = x_.data() + static_cast<size_t>(last_tokens_[begin]) * padded_hidden_;
      kernels_.layer_norm(x, final_weight_.data(), final_bias_.data(), hidden_size_, own.floats.data());
      kernels_.prepare(head.dtype(), own.floats.data(), hidden_size_, own.groups.data(), own.scales.data());
      kernels_.linear(head.view(), {own.groups.data(), own.scales.data(), head.operand_stride()}, 1, 0,
                      head.num_blocks(), Epilogue::kStore, plan.out[begin], 0, nullptr);
    }
  });
}

void Model::apply(const Linear& linear, const float* x, int num_tokens, float* out) {
  const int columns = linear.columns(), stride = linear.operand_stride();
  const size_t words = static_cast<size_t>(num_tokens) * stride;
  if (groups_.size() < words) groups_.resize(words);
  if (scales_.size() < static_cast<size_t>(num_tokens)) scales_.resize(num_tokens);
  const Operand operand{groups_.data(), scales_.data(), stride};
  const auto prepare_token = [&](int t) {
    kernels_.prepare(linear.dtype(), x + static_cast<size_t>(t) * columns, columns,
                     groups_.data() + static_cast<size_t>(t) * stride, scales_.data() + t);
  };
  constexpr size_t kFewBytes = 1 << 18;  // not worth waking threads for
  if (linear.bytes() * num_tokens < kFewBytes) {
    for (int t = 0; t < num_tokens; ++t) prepare_token(t);
    kernels_.linear(linear.view(), operand, num_tokens, 0, linear.num_blocks(), Epilogue::kStore, out,
                    linear.padded_rows(), nullptr);
    return;
  }
  WorkQueue& queue = queues_[0];
  queue.reset();
  pool_.run([&](int thread) {
    for (int t = thread; t < num_tokens; t += pool_.size()) prepare_token(t);
    pool_.barrier();
    multiply(queue, linear, operand, num_tokens, Epilogue::kStore, out, linear.padded_rows(), nullptr);
  });
}

}  // namespace jat
