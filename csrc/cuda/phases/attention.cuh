// Attention: each cluster has some heads. Each of its blocks computes a share of q, k and v, attends to every
// cluster_size-th page of the context, and adds a share of the output projection.
#pragma once

#include "../fragments.cuh"
#include "../reduce.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

// Compute this block's share of q, k and v and send it to all blocks of the cluster; write k and v to their
// pages.
template <typename B>
JAT_DEVICE void project_head(B& block, int layer, int head) {
  using W = typename B::Weight;
  const StepModel& model = block.model;
  const int head_dim = block.head_dim(), groups = block.share.qkv_end - block.share.qkv_begin;
  Mbarrier* mbarrier = block.peers(0);
  if (block.thread == 0)
    mbarrier_arrive_expect(mbarrier, kStepRows * head_dim * static_cast<int>(sizeof(float) + 2 * sizeof(W)));
  multiply_rows(block, groups, 0, [](const char*, int, int) {});
  block.barrier();

  // 8 lanes for each 4 columns of a row: they send it to different peers.
  JAT_UNROLL_BY(1)
  for (int unit = block.thread >> 3; unit < kStepRows * groups * (kGroup / 4); unit += block.num_threads() / 8) {
    const int row = unit % kStepRows, place = unit / kStepRows * 4;
    const auto sum = sum_products<4>(block, row, place);
    const int global = block.share.qkv_begin * kGroup + place, part = global / head_dim, column = global - part * head_dim;
    if (part == 0) {
      float* query = block.template at<float>(model.shared.query) + row * head_dim + column;
      JAT_UNROLL_BY(1)
      for (int rank = block.lane & 7; rank < model.cluster_size; rank += 8)
        store_async(query, mbarrier, rank, sum.values[0], sum.values[1], sum.values[2], sum.values[3]);
      continue;
    }
    union {
      Pack<W, 4> numbers;
      float words[sizeof(W)];
    } packed;
    JAT_UNROLL
    for (int i = 0; i < 4; ++i) packed.numbers.values[i] = from_float<W>(sum.values[i]);
    W* target = block.template at<W>(model.shared.new_keys) + ((part - 1) * kStepRows + row) * head_dim + column;
    float* words = reinterpret_cast<float*>(target);
    JAT_UNROLL_BY(1)
    for (int rank = block.lane & 7; rank < model.cluster_size; rank += 8) {
      if constexpr (sizeof(W) == 4)
        store_async(words, mbarrier, rank, packed.words[0], packed.words[1], packed.words[2], packed.words[3]);
      else
        store_async(words, mbarrier, rank, packed.words[0], packed.words[1]);
    }
    const int slot = row < block.input.num_rows ? block.input.slots[row] : -1;
    if ((block.lane & 7) != 0 || slot < 0) continue;
    const int64_t page = static_cast<int64_t>(layer) * model.num_pages + slot / kStepPageSize;
    W* cached = static_cast<W*>(model.kv_cache) +
                (((page * 2 + part - 1) * model.num_heads + head) * kStepPageSize + slot % kStepPageSize) * head_dim;
    *reinterpret_cast<Pack<W, 4>*>(cached + column) = packed.numbers;
  }
}

// A warp's running softmax over its keys, and the sums of their values.
template <typename B>
class WarpAttention {
  using W = typename B::Weight;
  static constexpr int kMaxHeadDim = B::kPublished ? kPublishedHeadDim : kStepMaxHeadDim;
  static constexpr int kChunks = kMaxHeadDim / (8 * kLoad<W>);  // 16-byte loads of a key by one of 8 lanes
  static constexpr int kColumns = kMaxHeadDim / 64;             // pairs of columns of a lane

 public:
  JAT_DEVICE explicit WarpAttention(const B& block, int window)
      : block_(block),
        window_(window),
        lane_row_(block.lane >> 1 & 3),
        weights_(block.template at<float>(block.model.shared.weights) + block.warp * 9 * 4) {
    const float* query = block.template at<float>(block.model.shared.query);
    JAT_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int column = (chunk * 8 + (block.lane & 7)) * kLoad<W>;
      JAT_UNROLL
      for (int row = 0; row < kStepRows; ++row) {
        JAT_UNROLL
        for (int i = 0; i < kLoad<W>; i += 4) {
          Pack<float, 4> four = {};
          if (column < block.head_dim())
            four = *reinterpret_cast<const Pack<float, 4>*>(query + row * block.head_dim() + column + i);
          JAT_UNROLL
          for (int j = 0; j < 4; ++j) query_[row][chunk][i + j] = four.values[j];
        }
      }
    }
  }

  // Attend to 8 keys, those [from, to) of which are there. index: of the first one in the context.
  JAT_DEVICE void add(const W* keys, const W* values, int from, int to, int index) {
    const int head_dim = block_.head_dim();
    float score[2];
    JAT_UNROLL
    for (int k = 0; k < 2; ++k) score[k] = score_of(keys, 4 * k + (block_.lane >> 3), from, to, index);
    float most = fmaxf(score[0], score[1]);
    most = fmaxf(most, shuffle_xor(most, 8));
    most = fmaxf(most, shuffle_xor(most, 16));
    most = fmaxf(most, maximum_);
    // A score that is NaN must stay one, so the test is not for the maximum.
    const float scale = maximum_ == kMinusInfinity ? 0 : fast_exp(maximum_ - most);
    sum_ *= scale;
    warp_barrier();  // the weights of the keys before have been read
    JAT_UNROLL
    for (int k = 0; k < 2; ++k) {
      const float weight = score[k] == kMinusInfinity ? 0 : fast_exp(score[k] - most);
      sum_ += weight;
      if ((block_.lane & 1) == 0) weights_[(4 * k + (block_.lane >> 3)) * 4 + lane_row_] = weight;
    }
    if ((block_.lane & 1) == 0 && block_.lane < 8) weights_[8 * 4 + lane_row_] = scale;
    maximum_ = most;
    warp_barrier();

    const auto* weights = reinterpret_cast<const Pack<float, 4>*>(weights_);
    if (!is_first_) {
      JAT_UNROLL
      for (int row = 0; row < kStepRows; ++row) {
        JAT_UNROLL
        for (int k = 0; k < kColumns; ++k) {
          JAT_UNROLL
          for (int i = 0; i < 2; ++i) out_[row][k].values[i] *= weights[8].values[row];
        }
      }
    }
    is_first_ = false;
    JAT_UNROLL
    for (int key = 0; key < 8; ++key) {
      if (key < from || key >= to) continue;  // its value was not copied and may be NaN
      const Pack<float, 4> weight = weights[key];
      JAT_UNROLL
      for (int k = 0; k < kColumns; ++k) {
        const int column = k * 64 + 2 * block_.lane;
        if (!B::kPublished && column >= head_dim) continue;
        const auto value = *reinterpret_cast<const Pack<W, 2>*>(values + key * head_dim + column);
        JAT_UNROLL
        for (int row = 0; row < kStepRows; ++row) {
          JAT_UNROLL
          for (int i = 0; i < 2; ++i) out_[row][k].values[i] += weight.values[row] * to_float(value.values[i]);
        }
      }
    }
  }

  // Write maximum, sum and values to the block's memory.
  JAT_DEVICE void store() {
    const int head_dim = block_.head_dim(), warps = block_.num_warps();
    sum_ += shuffle_xor(sum_, 8);
    sum_ += shuffle_xor(sum_, 16);
    auto* states = block_.template at<Pack<float, 2>>(block_.model.shared.states);
    if (block_.lane < 2 * kStepRows && (block_.lane & 1) == 0) states[lane_row_ * warps + block_.warp] = {{maximum_, sum_}};
    float* outs = block_.template at<float>(block_.model.shared.outs) + block_.warp * kStepRows * head_dim;
    JAT_UNROLL
    for (int row = 0; row < kStepRows; ++row) {
      JAT_UNROLL
      for (int k = 0; k < kColumns; ++k) {
        const int column = k * 64 + 2 * block_.lane;
        if (B::kPublished || column < head_dim) *reinterpret_cast<Pack<float, 2>*>(outs + row * head_dim + column) = out_[row][k];
      }
    }
  }

 private:
  // q . k (no 1 / sqrt(head_dim): GPT-Neo omits it) of row lane_row_, -inf where the row does not see the key.
  // 8 lanes for each key.
  JAT_DEVICE float score_of(const W* keys, int key, int from, int to, int index) const {
    const int head_dim = block_.head_dim(), lane = block_.lane;
    const bool is_there = key >= from && key < to;
    float products[4] = {};
    JAT_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int column = (chunk * 8 + (lane & 7)) * kLoad<W>;
      if (!is_there || (!B::kPublished && column >= head_dim)) continue;
      const auto load = *reinterpret_cast<const Pack<W, kLoad<W>>*>(keys + key * head_dim + column);
      JAT_UNROLL
      for (int i = 0; i < kLoad<W>; ++i) {
        const float value = to_float(load.values[i]);
        JAT_UNROLL
        for (int row = 0; row < kStepRows; ++row) products[row] += value * query_[row][chunk][i];
      }
    }
    // Sums over 8 lanes of 4 values at once: each lane gets that of its row.
    const bool upper = (lane & 4) != 0, odd = (lane & 2) != 0;
    const float a = (upper ? products[2] : products[0]) + shuffle_xor(upper ? products[0] : products[2], 4);
    const float b = (upper ? products[3] : products[1]) + shuffle_xor(upper ? products[1] : products[3], 4);
    float sum = (odd ? b : a) + shuffle_xor(odd ? a : b, 2);
    sum += shuffle_xor(sum, 1);
    const int last = block_.input.context_len + lane_row_, place = index + key;
    return is_there && place <= last && place > last - window_ ? sum : kMinusInfinity;
  }

  const B& block_;
  const int window_, lane_row_;
  float* const weights_;
  float query_[kStepRows][kChunks][kLoad<W>];
  Pack<float, 2> out_[kStepRows][kColumns] = {};
  float maximum_ = kMinusInfinity, sum_ = 0;  // of lane_row_; the sum is of this lane's keys
  bool is_first_ = true;
};

// Softmax over this block's keys, by warp: each takes every num_warps-th 8 keys, half a page. The new tokens'
// keys are the last 8 of the cluster's last block.
template <typename B>
JAT_DEVICE void attend(B& block, const Pages& pages, int window, int units) {
  using W = typename B::Weight;
  const StepModel& model = block.model;
  const int head_dim = block.head_dim(), page_numbers = kStepPageSize * head_dim, most = model.piece_pages;
  WarpAttention<B> attention(block, window);
  int unit = block.warp;
  for (int first = 0; first < pages.num_pages; first += most) {
    const int end = smaller(first + most, pages.num_pages);
    const W* piece = reinterpret_cast<const W*>(
        block.ring.take((end - first) * 2 * page_numbers * static_cast<int>(sizeof(W))));
    JAT_UNROLL_BY(1)
    for (; unit < 2 * end; unit += block.num_warps()) {
      const int page = pages.page(model, unit / 2), place = unit % 2 * 8;
      const W* keys = piece + (unit / 2 - first) * 2 * page_numbers + place * head_dim;
      attention.add(keys, keys + page_numbers, pages.from(page) - place, pages.to(page) - place,
                    page * kStepPageSize + place - block.input.start_offset);
    }
    block.ring.give_back(block.lane);
  }
  if (unit < units) {
    const W* keys = block.template at<W>(model.shared.new_keys);
    attention.add(keys, keys + kStepRows * head_dim, 0, block.input.num_rows, block.input.context_len);
  }
  attention.store();
}

// Merge the softmaxes of the first `warps` warps, and send maximum, sum and values to all blocks of the cluster.
// One warp for each row; its halves send to different peers.
template <typename B>
JAT_DEVICE void send_partial(B& block, int warps) {
  const StepModel& model = block.model;
  const int head_dim = block.head_dim(), row = block.warp;
  const auto* states = block.template at<Pack<float, 2>>(model.shared.states) + row * block.num_warps();
  const float* outs = block.template at<float>(model.shared.outs) + row * head_dim;
  float* partial = block.template at<float>(model.shared.partial) + (block.share.rank * kStepRows + row) * (head_dim + 4);
  Mbarrier* mbarrier = block.peers(1);
  float most = kMinusInfinity;
  JAT_UNROLL_BY(4)
  for (int warp = 0; warp < warps; ++warp) most = fmaxf(most, states[warp].values[0]);
  JAT_UNROLL_BY(1)
  for (int column = 4 * (block.lane & 15); column < head_dim; column += 64) {
    float sum = 0;
    Pack<float, 4> value = {};
    JAT_UNROLL_BY(4)
    for (int warp = 0; warp < warps; ++warp) {
      const Pack<float, 2> state = states[warp];
      const auto out = *reinterpret_cast<const Pack<float, 4>*>(outs + warp * kStepRows * head_dim + column);
      const float scale = state.values[0] == kMinusInfinity ? 0 : fast_exp(state.values[0] - most);
      sum += scale * state.values[1];
      JAT_UNROLL
      for (int i = 0; i < 4; ++i) value.values[i] += scale * out.values[i];
    }
    JAT_UNROLL_BY(1)
    for (int rank = block.lane >> 4; rank < model.cluster_size; rank += 2) {
      store_async(partial + column, mbarrier, rank, value.values[0], value.values[1], value.values[2], value.values[3]);
      if (column == 0) store_async(partial + head_dim, mbarrier, rank, most, sum);
    }
  }
}

// Merge the partial softmaxes of the cluster, each scaled to the common maximum:
// attended = sum of values / sum of sums. One warp for each row.
template <typename B>
JAT_DEVICE void combine(B& block) {
  using W = typename B::Weight;
  const StepModel& model = block.model;
  const int head_dim = block.head_dim(), row = block.warp, stride = kStepRows * (head_dim + 4), size = model.cluster_size;
  const float* partial = block.template at<float>(model.shared.partial) + row * (head_dim + 4);
  W* attended = reinterpret_cast<W*>(block.template at<uint32_t>(model.shared.attended) + row * model.attended_stride);
  float most = kMinusInfinity;
  JAT_UNROLL_BY(8)
  for (int rank = 0; rank < size; ++rank) most = fmaxf(most, partial[rank * stride + head_dim]);
  JAT_UNROLL_BY(1)
  for (int column = 2 * block.lane; column < head_dim; column += 64) {
    float sum = 0;
    Pack<float, 2> value = {};
    JAT_UNROLL_BY(8)
    for (int rank = 0; rank < size; ++rank) {
      const auto state = *reinterpret_cast<const Pack<float, 2>*>(partial + rank * stride + head_dim);
      const auto part = *reinterpret_cast<const Pack<float, 2>*>(partial + rank * stride + column);
      const float scale = state.values[0] == kMinusInfinity ? 0 : fast_exp(state.values[0] - most);
      sum += scale * state.values[1];
      value.values[0] += scale * part.values[0];
      value.values[1] += scale * part.values[1];
    }
    *reinterpret_cast<Pack<W, 2>*>(attended + column) = {
        {from_float<W>(fast_divide(value.values[0], sum)), from_float<W>(fast_divide(value.values[1], sum))}};
  }
}

// out_proj: this head's part of this block's outputs. A warp has an output tile, or a share of its k.
template <typename B>
JAT_DEVICE void project_out(B& block, int head) {
  using W = typename B::Weight;
  const StepModel& model = block.model;
  const int halves = B::kPublished ? kPublishedHeadDim * static_cast<int>(sizeof(W)) / 16 : model.head_half_tiles;
  const int log2 = model.out_splits_log2, tile_words = halves * 32, most = model.piece_tiles;
  const int count = block.share.out_end - block.share.out_begin, row = block.lane >> 2;
  const bool is_row = row < kStepRows;
  const uint32_t* attended = block.template at<uint32_t>(model.shared.attended) +
                             (is_row ? row : 0) * model.attended_stride + (block.lane & 3);
  for (int first = 0; first < count; first += most) {
    const int tiles = smaller(most, count - first), split_halves = halves >> log2;
    const Words* weights =
        reinterpret_cast<const Words*>(block.ring.take(tiles * tile_words * static_cast<int>(sizeof(Words))));
    JAT_UNROLL_BY(1)
    for (int unit = block.warp; unit < tiles << log2; unit += block.num_warps()) {
      const int tile = unit >> log2, half = (unit & ((1 << log2) - 1)) * split_halves;
      float c[2][4] = {};
      multiply_tile<W>(c, weights + tile * tile_words + half * 32 + block.lane, 32, attended + 4 * half, is_row,
                       split_halves);
      publish_tile(block, head, block.share.out_begin + first + tile, c, false);
    }
    block.ring.give_back(block.lane);
  }
}

template <typename B>
JAT_DEVICE void attention(B& block, int layer) {
  const StepModel& model = block.model;
  const int window = model.windows[layer];
  const Pages pages(model, block.input, window, block.share.rank);
  // The last block of the cluster also has the keys of the new tokens.
  const int units = 2 * pages.num_pages + (block.share.rank == model.cluster_size - 1 ? 1 : 0);
  JAT_UNROLL_BY(1)
  for (int head = block.share.cluster; head < model.num_heads; head += block.share.num_clusters) {
    trace(4);
    project_head(block, layer, head);
    trace(5);
    block.wait_for_peers(0);
    trace(6);
    attend(block, pages, window, units);
    if (block.thread == 0)
      mbarrier_arrive_expect(block.peers(1), model.cluster_size * kStepRows * (block.head_dim() + 2) * 4);
    block.barrier();
    trace(7);
    if (block.warp < kStepRows) send_partial(block, smaller(units, block.num_warps()));
    trace(8);
    block.wait_for_peers(1);
    trace(9);
    if (block.warp < kStepRows) combine(block);
    block.barrier();
    project_out(block, head);
  }
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
