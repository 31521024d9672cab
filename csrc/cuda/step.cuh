// The persistent kernel (megakernel): embedding, all layers and the head of one agent's step in one launch.
//
// Grid: num_blocks blocks, one per SM, in clusters of cluster_size.
// Block: num_warps warps that compute, and one that loads weights and cached keys and values.
//
//   phase      who computes what                                                then
//   ---------  ---------------------------------------------------------------  ------------------------
//   embedding  each block: some groups of 8 columns of x                        grid barrier + reduction
//   attention  each cluster: some heads. In each block of the cluster:
//                LayerNorm, then its share of the rows of q, k, v               cluster barrier
//                scores and values of every cluster_size-th page                cluster barrier
//                its share of the outputs, summed over heads                    grid barrier + reduction
//   MLP        each block: some neurons, and what they add to all outputs       grid barrier + reduction
//   head       each block: some of the head's rows
//
// One block reads each weight, once. Every block keeps all of x, so a reduction sends 3 H sums to every
// block. Names in the code call a grid barrier with its reduction an exchange, and a cluster peer a sibling.
//
// Reductions. Values are added atomically into one of three rotating buffers: sum number n uses buffer n % 3.
// Between its wait for sum n and its arrival at sum n + 1 a block zeroes its share of buffer (n + 2) % 3.
//   - It is no longer read: it held sum n - 1, and every block has read that before it arrived at sum n.
//   - Nothing adds to it yet: sum n + 2 starts after the wait for sum n + 1, which orders the zeros before it.
//
// With fixed_order, contributors write their parts to rows of their own; after a grid barrier each block adds
// up its share of the columns in the order of the contributors; a second grid barrier publishes the sums.
//
// Timeout. A wait that takes too long raises `aborted`. All blocks then run to their end without waiting, on
// garbage, so that no block exits while others wait for it or write into its memory. The new keys and values
// are garbage too, and the status says so.
#pragma once

#include "dot.cuh"
#include "primitives.cuh"
#include "ring.cuh"
#include "step.h"

namespace jat {

#if JAT_HAS_CLUSTERS

constexpr float kNormEpsilon = 1e-5f;
constexpr float kMinusInfinity = -INFINITY;

template <typename W>
JAT_DEVICE float rounded(float value) {
  return to_float(from_float<W>(value));
}

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); tanh(u) = 1 - 2 / (exp(2 u) + 1).
JAT_DEVICE float gelu_new(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x * (1 - 1 / (fast_exp(2 * u) + 1));
}

// A computing thread's view of its block. kTiles: see Activations. kPairs: pairs of output columns per
// thread.
template <typename W, int kHidden>
class Block {
 public:
  JAT_DEVICE Block(const StepModel& model, const StepInput& input, char* shared, const Patience& patience)
      : model_(model),
        input_(input),
        shared_(shared),
        ring_(model, patience, shared),
        share_(*reinterpret_cast<const StepShare*>(shared + model.shared.share)),
        thread_(thread_index()),
        warp_(thread_ / 32),
        lane_(thread_ % 32) {}

  // To be called before the first barrier of the block.
  JAT_DEVICE void clear() {
    for (int i = thread_; i < kStepRows * hidden(); i += num_threads()) at(model_.shared.x)[i] = 0;
    // Rows that the step does not have are multiplied too, as zeros.
    for (int i = thread_; i < kStepRows * hidden(); i += num_threads()) at(model_.shared.normed)[i] = 0;
  }

  JAT_DEVICE void run() {
    const int last = kExchangesPerLayer * model_.num_layers;  // sum number 0 is x, then two a layer
    for (;; ++number_) {
      const bool is_mlp = number_ > 0 && number_ % 2 == 0;
      const StepLayer& layer = model_.layers[(number_ - 1) / 2];
      if (number_ > last && share_.head_row_begin == share_.head_row_end) break;
      if (is_mlp && number_ <= last) load_fc_bias(layer);  // in flight while this block waits for the others
      if (number_ > 0) advance();
      if (number_ == 0) {
        embed();
        arrive(1);
      } else if (number_ > last) {
        head();
        break;
      } else {
        if (is_mlp)
          mlp();
        else
          attention((number_ - 1) / 2);
        arrive(is_mlp ? model_.num_blocks : model_.num_heads);
      }
    }
    finish();
  }

 private:
  static constexpr bool kPublished = kHidden > 0;
  static constexpr int kTiles = kHidden / (32 * kLoad<W>);
  static constexpr int kPairs = kPublished ? kHidden / (64 * kStepMaxWarps) : kStepMaxPairs;

  JAT_DEVICE int hidden() const { return kPublished ? kHidden : model_.hidden; }
  JAT_DEVICE int head_dim() const { return kPublished ? kPublishedHeadDim : model_.head_dim; }
  JAT_DEVICE int num_warps() const { return kPublished ? kStepMaxWarps : model_.num_warps; }
  JAT_DEVICE int num_threads() const { return 32 * num_warps(); }
  JAT_DEVICE float* at(int offset) const { return reinterpret_cast<float*>(shared_ + offset); }
  JAT_DEVICE void barrier() const { consumer_barrier(num_threads()); }

  // ---- grid barriers and reductions

  // Add to the current sum. contributor: the row of `parts` for it, that of a block or a head.
  JAT_DEVICE void publish(int contributor, int row, int column, float value) {
    if (row >= input_.num_rows) return;
    if (model_.fixed_order)
      model_.parts[(contributor * kStepRows + row) * hidden() + column] = value;
    else
      add_global(sums(number_) + row * hidden() + column, value);
  }

  JAT_DEVICE float* sums(int number) const { return model_.sums + number % 3 * kStepRows * hidden(); }

  // Arrive at the grid barrier: this block has published all of its parts. With fixed_order, also add up
  // those of all contributors.
  JAT_DEVICE void arrive(int contributors) {
    barrier();
    if (thread_ == 0) arrive_global(&model_.control->arrived);
    ++arrivals_;
    if (model_.fixed_order) {
      if (thread_ == 0) wait_for_blocks();
      barrier();
      const int count = kStepRows * hidden(), block = block_index();
      for (int i = count * block / model_.num_blocks + thread_; i < count * (block + 1) / model_.num_blocks;
           i += num_threads()) {
        float sum = 0;
        if (i < input_.num_rows * hidden())
          for (int c = 0; c < contributors; ++c) sum += load_global(model_.parts + c * count + i);
        sums(number_)[i] = sum;
      }
      barrier();
      if (thread_ == 0) arrive_global(&model_.control->arrived);
      ++arrivals_;
    }
  }

  // To be called by one thread; a barrier must follow for the other threads of the block.
  JAT_DEVICE void wait_for_blocks() const {
    const uint32_t all = arrivals_ * model_.num_blocks;
    ring_.patience.wait([&] { return load_acquire(&model_.control->arrived) >= all; });
  }

  // x += the previous sum (+ its bias); normed = LayerNorm(x). One warp per row, so that only this warp
  // waits. vectors: the ring's piece with weight, bias and, if has_bias, the sum's bias.
  JAT_DEVICE void norm_row(int row, const float* vectors) {
    const int hidden = this->hidden();
    float* x = at(model_.shared.x) + row * hidden;
    float* normed = at(model_.shared.normed) + row * hidden;
    if (lane_ == 0) wait_for_blocks();
    warp_barrier();
    const int last = number_ - 1, final = model_.num_layers * kExchangesPerLayer;
    const bool has_bias = last > 0;
    const float* added = sums(last) + row * hidden;
    // Loads before stores, so that the loads of all columns are in flight together.
    constexpr int kBatch = kTiles > 0 ? kTiles * kLoad<W> : 8;
    float total = 0;
    for (int first = lane_; first < hidden; first += 32 * kBatch) {
      float batch[kBatch];
      JAT_UNROLL
      for (int i = 0; i < kBatch; ++i)
        batch[i] = first + 32 * i < hidden ? load_global(added + first + 32 * i) : 0;
      JAT_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int column = first + 32 * i;
        if (column >= hidden) continue;
        const float value = x[column] + batch[i] + (has_bias ? vectors[2 * hidden + column] : 0);
        x[column] = value;
        total += value;
      }
    }
    if (!model_.fixed_order && last < final) {
      const int block = block_index();
      for (int column = hidden * block / model_.num_blocks + lane_;
           column < hidden * (block + 1) / model_.num_blocks; column += 32)
        sums(last + 2)[row * hidden + column] = 0;
    }
    const float mean = sum_all(total) / hidden;
    float squares = 0;
    for (int column = lane_; column < hidden; column += 32) {
      const float centred = x[column] - mean;
      squares += centred * centred;
    }
    const float variance = sum_all(squares) / hidden;
    // An infinite variance would turn every row into its bias, finite and wrong; 0 * inf makes it NaN.
    const float scale = inverse_sqrt(variance + kNormEpsilon) + 0 * variance;
    for (int column = lane_; column < hidden; column += 32) {
      const float value = (x[column] - mean) * scale * vectors[column] + vectors[hidden + column];
      normed[column] = last < final ? rounded<W>(value) : value;  // the head's rows are float32
    }
  }

  JAT_DEVICE void advance() {
    const float* vectors = reinterpret_cast<const float*>(ring_.take());
    for (int row = warp_; row < input_.num_rows; row += num_warps()) norm_row(row, vectors);
    ring_.give_back(lane_);
#if !JAT_PLANT_MISSING_BARRIER
    barrier();
#endif
  }

  // ---- phases

  // x = sum_j values[j] encoder[j, :] + bias, or a finished row, + position. 8 columns at a time, one sector
  // of memory.
  JAT_DEVICE void embed() {
    const int hidden = this->hidden(), groups = hidden / 8, block = block_index();
    const int splits = larger(1, num_warps() / kStepRows);
    float* stage = at(model_.shared.warp_out);  // [row, split, 8]
    for (int group = groups * block / model_.num_blocks; group < groups * (block + 1) / model_.num_blocks;
         ++group) {
      const int column = group * 8 + (lane_ & 7);
      for (int unit = warp_; unit < input_.num_rows * splits; unit += num_warps()) {
        const int row = unit / splits, step = 4 * splits;
        const float* encoder = input_.sources[row];
        float sum = 0;
        if (encoder != nullptr) {
          const float* values = input_.values + input_.value_starts[row];
          JAT_UNROLL_BY(8)
          for (int j = unit % splits * 4 + (lane_ >> 3); j < input_.source_sizes[row]; j += step)
            sum += values[j] * encoder[static_cast<int64_t>(j) * hidden + column];
        }
        sum += shuffle_xor(sum, 8);
        sum += shuffle_xor(sum, 16);
        if (lane_ < 8) stage[unit * 8 + lane_] = sum;
      }
      barrier();
      for (int i = thread_; i < input_.num_rows * 8; i += num_threads()) {
        const int row = i / 8, out = group * 8 + i % 8;
        const float* source = input_.sources[row];
        float x = 0;
        if (source != nullptr) {
          x = input_.source_sizes[row] > 0 ? model_.continuous_bias[out] : source[out];
          for (int split = 0; split < splits; ++split) x += stage[(row * splits + split) * 8 + i % 8];
          x += model_.position_table[static_cast<int64_t>(input_.positions[row]) * hidden + out];
        }
        publish(0, row, out, x);
      }
      barrier();
    }
  }

  // Take the pieces of `count` rows from the ring and call use(index, row) for the rows of this warp. turn:
  // the number of rows dealt to warps before, so that the next row goes to the next warp.
  template <typename T, typename Use>
  JAT_DEVICE void rows(int count, int columns, int most, int turn, Use use) {
    for (int first = 0; first < count; first += most) {
      const T* piece = reinterpret_cast<const T*>(ring_.take());
      const int end = smaller(first + most, count), begin = turn + first;
      int index = first + (warp_ + num_warps() - begin % num_warps()) % num_warps();
      for (; index < end; index += num_warps()) use(index, piece + (index - first) * columns);
      ring_.give_back(lane_);
    }
  }

  JAT_DEVICE void attention(int layer) {
    const int window = model_.layers[layer].window;
    const Pages pages(model_, input_, window, share_.rank);
    for (int head = share_.cluster; head < model_.num_heads; head += share_.num_clusters) {
      project_head(layer, head);
      cluster_meet(0);
      score(pages, window);
      soften(local_keys(pages));
      sum_values(pages);
      cluster_meet(1);
      combine();
      project_out(head);
    }
  }

  // Cluster barrier: afterwards a block sees what its peers wrote into its memory. The two barriers
  // alternate, so a block arrives at one of them again only when all have passed it: the other one was in
  // between.
  JAT_DEVICE void cluster_meet(int which) {
    Mbarrier* mbarrier = reinterpret_cast<Mbarrier*>(shared_ + model_.shared.siblings) + which;
    barrier();
    if (thread_ < model_.cluster_size) mbarrier_arrive_sibling(mbarrier, thread_);
    ring_.patience.wait([&] { return mbarrier_test_cluster(mbarrier, meetings_ & 1); });
    meetings_ += which;
  }

  // Compute this block's rows of q, k, v and write them to all blocks of the cluster, k and v also to their
  // pages.
  JAT_DEVICE void project_head(int layer, int head) {
    const int hidden = this->hidden(), head_dim = this->head_dim(),
              count = share_.column_end - share_.column_begin;
    const Activations<W, kTiles> activations(at(model_.shared.normed), hidden, lane_);
    JAT_UNROLL_BY(1)
    for (int part = 0; part < 3; ++part) {
      rows<W>(count, hidden, model_.piece_rows, part * count, [&](int index, const W* weight) {
        float products[4];
        activations.dot(weight, products);
        const float sum = sum_warp(products, lane_);
        const int row = lane_ >> 3, column = share_.column_begin + index;
        if (row >= kStepRows) return;
        const float value = part == 0 ? sum : rounded<W>(sum);
        float* target = at(model_.shared.qkv) + (part * kStepRows + row) * head_dim + column;
        for (int rank = lane_ & 7; rank < model_.cluster_size; rank += 8) *sibling(target, rank) = value;
        if (part == 0 || (lane_ & 7) != 0 || row >= input_.num_rows || input_.slots[row] < 0) return;
        const int slot = input_.slots[row];
        const int64_t place = static_cast<int64_t>(layer) * model_.num_pages + slot / kStepPageSize;
        W* page = static_cast<W*>(model_.kv_cache) +
                  ((place * 2 + part - 1) * model_.num_heads + head) * kStepPageSize * head_dim;
        page[slot % kStepPageSize * head_dim + column] = from_float<W>(sum);
      });
    }
  }

  // A block has 16 scores for each of its pages; the last block of the cluster also those of the new tokens.
  JAT_DEVICE bool has_new_keys() const { return share_.rank == model_.cluster_size - 1; }
  JAT_DEVICE int local_keys(const Pages& pages) const {
    return pages.num_pages * kStepPageSize + (has_new_keys() ? kStepRows : 0);
  }

  // scores[row, key] = q . k (no 1 / sqrt(head_dim): GPT-Neo omits it), -inf where the row does not see the
  // key. 8 lanes per key.
  JAT_DEVICE void score(const Pages& pages, int window) {
    const int head_dim = this->head_dim(), num_keys = pages.num_pages * kStepPageSize,
              keys = model_.block_keys;
    const int most = model_.piece_pages * kStepPageSize;
    const HeadActivations query(at(model_.shared.qkv), head_dim, lane_ & 7);
    float* scores = at(model_.shared.scores);
    const int row = lane_ >> 1 & 3;
    for (int first = 0; first < num_keys; first += most) {
      const W* piece = reinterpret_cast<const W*>(ring_.take());
      const int end = smaller(first + most, num_keys);
      for (int begin = first + warp_ * 4; begin < end; begin += num_warps() * 4) {
        const int key = begin + (lane_ >> 3);  // in range: a piece has whole pages, a multiple of 4 keys
        const int page = pages.page(model_, key / kStepPageSize), place = key % kStepPageSize;
        const bool cached = place >= pages.from(page) && place < pages.to(page);
        float products[4] = {};
        if (cached) query.dot(piece + (key - first) * head_dim, products);
        const float sum = sum_group(products, lane_);
        const int index = page * kStepPageSize + place - input_.start_offset;
        const bool seen = cached && index > input_.context_len + row - window;
        if (row < kStepRows && (lane_ & 1) == 0) scores[row * keys + key] = seen ? sum : kMinusInfinity;
      }
      ring_.give_back(lane_);
    }
    if (has_new_keys()) {
      const float* q = at(model_.shared.qkv);
      const float* k = q + kStepRows * head_dim;
      for (int key = warp_; key < kStepRows; key += num_warps()) {
        float products[4] = {};
        for (int t = 0; t < kStepRows; ++t)
          for (int d = lane_; d < head_dim; d += 32)
            products[t] += q[t * head_dim + d] * k[key * head_dim + d];
        const float sum = sum_warp(products, lane_);
        const int t = lane_ >> 3;
        const bool seen = key <= t && key > t - window;
        if (t < kStepRows && (lane_ & 7) == 0)
          scores[t * keys + num_keys + key] = seen ? sum : kMinusInfinity;
      }
    }
    barrier();
  }

  // Partial softmax: scores = exp(scores - maximum); maximum and sum go to all blocks of the cluster. One
  // warp per row.
  JAT_DEVICE void soften(int num_keys) {
    const int head_dim = this->head_dim();
    for (int row = warp_; row < kStepRows; row += num_warps()) {
      float* scores = at(model_.shared.scores) + row * model_.block_keys;
      float most = kMinusInfinity, sum = 0;
      for (int key = lane_; key < num_keys; key += 32) most = fmaxf(most, scores[key]);
      for (int mask = 16; mask >= 1; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
      for (int key = lane_; key < num_keys; key += 32) {
        const float exponential = most == kMinusInfinity ? 0 : fast_exp(scores[key] - most);
        scores[key] = exponential;
        sum += exponential;
      }
      sum = sum_all(sum);
      float* target = at(model_.shared.partial) + (share_.rank * kStepRows + row) * (head_dim + 2) + head_dim;
      for (int rank = lane_; rank < model_.cluster_size; rank += 32) {
        sibling(target, rank)[0] = most;
        sibling(target, rank)[1] = sum;
      }
    }
    barrier();
  }

  // Sum of exponential * v over this block's keys, to all blocks of the cluster. A warp takes every
  // num_warps-th key, a lane pairs of columns.
  JAT_DEVICE void sum_values(const Pages& pages) {
    const int head_dim = this->head_dim(), num_keys = pages.num_pages * kStepPageSize,
              keys = model_.block_keys;
    const int most = model_.piece_pages * kStepPageSize;
    const float* weights = at(model_.shared.scores);
    float sums[2][kStepRows][2] = {};  // columns 2 lane .. and 64 + 2 lane ..
    const auto add = [&](int key, const auto* values) {
      JAT_UNROLL
      for (int k = 0; k < 2; ++k) {
        const int column = k * 64 + 2 * lane_;
        if (column >= head_dim) continue;
        JAT_UNROLL
        for (int t = 0; t < kStepRows; ++t) {
          sums[k][t][0] += weights[t * keys + key] * to_float(values[column]);
          sums[k][t][1] += weights[t * keys + key] * to_float(values[column + 1]);
        }
      }
    };
    for (int first = 0; first < num_keys; first += most) {
      const W* piece = reinterpret_cast<const W*>(ring_.take());
      const int end = smaller(first + most, num_keys);
      for (int key = first + warp_; key < end; key += num_warps()) {
        const int page = pages.page(model_, key / kStepPageSize), place = key % kStepPageSize;
        // The other slots of the page were not copied and may hold NaN.
        if (place >= pages.from(page) && place < pages.to(page)) add(key, piece + (key - first) * head_dim);
      }
      ring_.give_back(lane_);
    }
    if (has_new_keys())
      for (int key = warp_; key < kStepRows; key += num_warps())
        add(num_keys + key, at(model_.shared.qkv) + (2 * kStepRows + key) * head_dim);

    float* out = at(model_.shared.warp_out);
    JAT_UNROLL
    for (int k = 0; k < 2; ++k) {
      const int column = k * 64 + 2 * lane_;
      if (column >= head_dim) continue;
      JAT_UNROLL
      for (int t = 0; t < kStepRows; ++t) {
        out[(warp_ * kStepRows + t) * head_dim + column] = sums[k][t][0];
        out[(warp_ * kStepRows + t) * head_dim + column + 1] = sums[k][t][1];
      }
    }
    barrier();
    for (int i = thread_; i < kStepRows * head_dim; i += num_threads()) {
      float sum = 0;
      for (int warp = 0; warp < num_warps(); ++warp) sum += out[warp * kStepRows * head_dim + i];
      float* target = at(model_.shared.partial) + (share_.rank * kStepRows + i / head_dim) * (head_dim + 2) +
                      i % head_dim;
      for (int rank = 0; rank < model_.cluster_size; ++rank) *sibling(target, rank) = sum;
    }
  }

  // Merge the partial softmaxes of the cluster, each scaled to the common maximum:
  // attended = sum of values / sum of sums.
  JAT_DEVICE void combine() {
    const int head_dim = this->head_dim(), stride = kStepRows * (head_dim + 2);
    for (int i = thread_; i < kStepRows * head_dim; i += num_threads()) {
      const float* partial = at(model_.shared.partial) + i / head_dim * (head_dim + 2);
      float most = kMinusInfinity, sum = 0, value = 0;
      for (int rank = 0; rank < model_.cluster_size; ++rank)
        most = fmaxf(most, partial[rank * stride + head_dim]);
      for (int rank = 0; rank < model_.cluster_size; ++rank) {
        const float maximum = partial[rank * stride + head_dim];
        const float scale = maximum == kMinusInfinity ? 0 : fast_exp(maximum - most);
        sum += scale * partial[rank * stride + head_dim + 1];
        value += scale * partial[rank * stride + i % head_dim];
      }
      at(model_.shared.attended)[i] = rounded<W>(value / sum);
    }
    barrier();
  }

  // out_proj: this head's part of this block's outputs. 8 lanes per output.
  JAT_DEVICE void project_out(int head) {
    const int head_dim = this->head_dim(), count = share_.output_end - share_.output_begin;
    const int most = model_.piece_outputs;
    const HeadActivations attended(at(model_.shared.attended), head_dim, lane_ & 7);
    const int row = lane_ >> 1 & 3;
    for (int first = 0; first < count; first += most) {
      const W* piece = reinterpret_cast<const W*>(ring_.take());
      const int end = smaller(first + most, count);
      for (int begin = first + warp_ * 4; begin < end; begin += num_warps() * 4) {
        const int output = begin + (lane_ >> 3);
        float products[4] = {};
        if (output < end) attended.dot(piece + (output - first) * head_dim, products);
        const float sum = sum_group(products, lane_);
        if (output < end && (lane_ & 1) == 0) publish(head, row, share_.output_begin + output, sum);
      }
      ring_.give_back(lane_);
    }
  }

  JAT_DEVICE void load_fc_bias(const StepLayer& layer) {
    for (int i = thread_; i < share_.neuron_end - share_.neuron_begin; i += num_threads())
      at(model_.shared.fc_bias)[i] = layer.fc_bias[share_.neuron_begin + i];
  }

  JAT_DEVICE void mlp() {
    const int hidden = this->hidden(), count = share_.neuron_end - share_.neuron_begin;
    const float* biases = at(model_.shared.fc_bias);
    float* inner = at(model_.shared.inner);
    {
      const Activations<W, kTiles> activations(at(model_.shared.normed), hidden, lane_);
      rows<W>(count, hidden, model_.piece_rows, 0, [&](int index, const W* weight) {
        float products[4];
        activations.dot(weight, products);
        const float sum = sum_warp(products, lane_);
        if ((lane_ & 7) == 0) inner[index * 4 + (lane_ >> 3)] = rounded<W>(gelu_new(sum + biases[index]));
      });
    }
    barrier();
    float sums[kPairs][kStepRows][2] = {};
    const int most = model_.piece_rows;
    for (int first = 0; first < count; first += most) {
      const W* piece = reinterpret_cast<const W*>(ring_.take());
      const int rows = smaller(most, count - first);
      JAT_UNROLL
      for (int k = 0; k < kPairs; ++k) {
        const int column = 2 * (k * num_threads() + thread_);
        if (column >= hidden) continue;
        JAT_UNROLL_BY(4)
        for (int row = 0; row < rows; ++row) {
          const auto w = *reinterpret_cast<const Pack<W, 2>*>(piece + row * hidden + column);
          const auto a = *reinterpret_cast<const Pack<float, 4>*>(inner + (first + row) * 4);
          JAT_UNROLL
          for (int t = 0; t < kStepRows; ++t) {
            sums[k][t][0] += a.values[t] * to_float(w.values[0]);
            sums[k][t][1] += a.values[t] * to_float(w.values[1]);
          }
        }
      }
      ring_.give_back(lane_);
    }
    JAT_UNROLL
    for (int k = 0; k < kPairs; ++k) {
      const int column = 2 * (k * num_threads() + thread_);
      if (column < hidden)
        for (int t = 0; t < kStepRows; ++t) publish_pair(t, column, sums[k][t][0], sums[k][t][1]);
    }
  }

  JAT_DEVICE void publish_pair(int row, int column, float first, float second) {
    if (model_.fixed_order) {
      publish(block_index(), row, column, first);
      publish(block_index(), row, column + 1, second);
    } else if (row < input_.num_rows) {
      add_global(sums(number_) + row * hidden() + column, first, second);
    }
  }

  // Write the predictions for the last row to the host's memory. Not rounded to W: the head's rows are
  // float32.
  JAT_DEVICE void head() {
    const int hidden = this->hidden(), count = share_.head_row_end - share_.head_row_begin;
    const int row = input_.num_rows - 1;
    const float* normed = at(model_.shared.normed) + row * hidden;
    rows<float>(count, hidden, model_.piece_head_rows, 0, [&](int index, const float* weight) {
      float sum = 0;
      for (int column = lane_ * 4; column < hidden; column += 128) {
        const auto w = *reinterpret_cast<const Pack<float, 4>*>(weight + column);
        const auto x = *reinterpret_cast<const Pack<float, 4>*>(normed + column);
        JAT_UNROLL
        for (int i = 0; i < 4; ++i) sum += w.values[i] * x.values[i];
      }
      sum = sum_all(sum);
      const int output = share_.head_row_begin + index;
      // A block that gave up said so before it arrived, so who has seen all arrivals sees it, too.
      if (lane_ == 0 && load_relaxed(&model_.control->aborted) == 0)
        store_prediction(input_.predictions + output,
                         sum + (input_.head_bias != nullptr ? input_.head_bias[output] : 0), input_.ticket);
    });
  }

  // The last block to finish tells the host if the step was given up, and zeroes counters and sums for the next.
  JAT_DEVICE void finish() {
    volatile int32_t* last = reinterpret_cast<volatile int32_t*>(shared_ + model_.shared.last);
    barrier();
    if (thread_ == 0) {
      *last = count_global(&model_.control->finished) == static_cast<uint32_t>(model_.num_blocks - 1);
    }
    barrier();
    if (!*last) return;
    if (thread_ == 0) {
      if (load_relaxed(&model_.control->aborted) != 0) store_system(input_.status, input_.ticket);
      model_.control->arrived = 0;
      model_.control->finished = 0;
      model_.control->aborted = 0;
    }
    for (int i = thread_; i < 3 * kStepRows * hidden(); i += num_threads()) model_.sums[i] = 0;
  }

  const StepModel& model_;
  const StepInput& input_;
  char* const shared_;
  Ring ring_;
  const StepShare& share_;
  const int thread_, warp_, lane_;
  int number_ = 0;         // of the current sum
  uint32_t arrivals_ = 0;  // of this block at grid barriers
  uint32_t meetings_ = 0;  // pairs of cluster barriers passed
};

template <typename W, int kHidden>
JAT_DEVICE void step_block(const StepModel& model, const StepInput& input) {
  char* shared = shared_memory();
  const Patience patience = {&model.control->aborted, input.timeout_ns};
  Ring ring(model, patience, shared);
  const bool loads = thread_index() >= model.num_warps * 32;
  if (loads) {
    if (thread_index() == model.num_warps * 32) {
      JAT_UNROLL_BY(1)
      for (int slot = 0; slot < model.num_slots; ++slot) {
        mbarrier_init(reinterpret_cast<Mbarrier*>(shared + model.shared.full) + slot, 1);
        mbarrier_init(reinterpret_cast<Mbarrier*>(shared + model.shared.empty) + slot, model.num_warps);
      }
      Mbarrier* siblings = reinterpret_cast<Mbarrier*>(shared + model.shared.siblings);
      for (int which = 0; which < kClusterBarriersPerHead; ++which)
        mbarrier_init(&siblings[which], model.cluster_size);
      mbarrier_init_fence();
      *reinterpret_cast<StepShare*>(shared + model.shared.share) = share_of_block(model, input);
    }
    warp_barrier();
    cluster_barrier();
    if (thread_index() == model.num_warps * 32) Loader<W>(model, input, ring).run();
    warp_barrier();
  } else {
    Block<W, kHidden> block(model, input, shared, patience);
    block.clear();
    cluster_barrier();
    block.run();
    warp_barrier();
  }
  cluster_barrier();  // cluster peers may still be writing into this block's memory
}

#endif  // JAT_HAS_CLUSTERS

template <typename W, int kHidden>
JAT_KERNEL void
#ifdef __CUDACC__
__launch_bounds__(32 * (kStepMaxWarps + 1), 1)
#endif
    step_kernel(const StepModel* model, JAT_ARGUMENT StepInput input) {
#if JAT_HAS_CLUSTERS
  step_block<W, kHidden>(*model, input);
#endif
}

}  // namespace jat
