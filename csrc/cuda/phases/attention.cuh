// Attention: each cluster has some heads. Each of its blocks computes a share of q, k and v, attends to every
// cluster_size-th page of the context, and adds a share of the output projection.
#pragma once

#include "../fragments.cuh"
#include "../reduce.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

// Two numbers of W, or a float, as a register.
template <typename W>
JAT_DEVICE uint32_t to_word(float first, float second) {
  union {
    Pack<W, kPerWord<W>> numbers;
    uint32_t word;
  } packed;
  packed.numbers.values[0] = from_float<W>(first);
  if constexpr (sizeof(W) == 2) packed.numbers.values[1] = from_float<W>(second);
  return packed.word;
}

// Compute this block's share of q, k and v and send it to all blocks of the cluster; write k and v to their
// pages. 16-bit queries are sent as their rounded value and the rest, so that products with them are as exact as
// with floats.
template <typename B>
JAT_DEVICE void project_head(B& block, int layer, int head, const RowWeights<B>& loaded) {
  using W = typename B::Weight;
  constexpr bool kIsFloat = sizeof(W) == 4;
  const StepModel& model = block.model;
  const int head_dim = block.head_dim(), begin = block.share.qkv_begin;
  const int groups = loaded.groups > 0 ? kBlockGroups : block.share.qkv_end - begin;
  Mbarrier* mbarrier = block.peers(kPeersQkv);
  // One warp for each row; a lane has a column. Of a pair of 16-bit numbers the even lane sends the pair, the odd one
  // the rests of two queries. Where they go is computed before the products are there.
  const int row = block.warp, lane = block.lane, columns = groups * kGroup;
  const bool is_odd = !kIsFloat && lane % 2 == 1;
  struct Place {
    int part, word, at;  // query, key or value; its word; bytes in shared memory
  };
  const auto place_of = [&](int column) {
    const int place = begin * kGroup + column, part = place / head_dim;
    const int word = (place - part * head_dim) / kPerWord<W>;
    const int query = ((is_odd ? kStepRows : 0) + row) * model.query_stride + word;
    const int other = ((part - 1) * kStepRows + row) * block.head_words() + word;
    return Place{part, word, part == 0 ? model.shared.query + 4 * query : model.shared.new_keys + 4 * other};
  };
  Place place = place_of(lane);
  place = {computed(place.part), computed(place.word), computed(place.at)};
  if (loaded.groups > 0)
    multiply_loaded(block, loaded);
  else
    multiply_rows(block, groups, 0, [](const char*, int, int) {});
  block.barrier();

  if (row >= kStepRows) {
    trace(7);
    return;
  }
  JAT_UNROLL_BY(1)
  for (int first = 0; first < columns; first += 32) {
    if (first > 0) place = place_of(first + lane);
    const bool is_column = first + lane < columns;
    const float value = is_column ? sum_products(block, row, first + lane) : 0;
    const float neighbour = shuffle_xor(value, 1);
    if (!is_column || (is_odd && place.part > 0)) continue;
    const uint32_t bits = is_odd ? to_word<W>(neighbour - rounded<W>(neighbour), value - rounded<W>(value))
                                 : to_word<W>(value, neighbour);
    float* target = block.template at<float>(place.at);
    for_all_peers(block, [&](int rank) { store_async(target, mbarrier, rank, bits_float(bits)); });
    if (first == 0) trace(7);
    const int slot = row < block.input.num_rows ? block.input.slots[row] : -1;
    if (place.part == 0 || slot < 0) continue;
    const int64_t page = static_cast<int64_t>(layer) * model.num_pages + slot / kStepPageSize;
    const int64_t key =
        ((page * 2 + place.part - 1) * model.num_heads + head) * kStepPageSize + slot % kStepPageSize;
    static_cast<uint32_t*>(model.kv_cache)[key * block.head_words() + place.word] = bits;
  }
}

// A warp's running softmax over its keys, and the sums of their values. Scores come from tensor cores: lane
// 4 g + t has those of row g (of 3) and keys 2 t and 2 t + 1 of 8.
template <typename B>
class WarpAttention {
  using W = typename B::Weight;
  static constexpr int kMaxHeadDim = B::kPublished ? kPublishedHeadDim : kStepMaxHeadDim;
  static constexpr int kPairs = kMaxHeadDim / kPerWord<W> / 16;  // of k tiles of a key
  static constexpr int kColumns = kMaxHeadDim / 64;              // pairs of columns of a lane
  static constexpr int kParts = sizeof(W) == 4 ? 1 : 2;          // of a query: its rounded value and the rest
  static constexpr bool kIsLoaded = B::kIsFast;                  // keys and values fit into registers
  static constexpr int kUnroll = kIsLoaded ? kPairs / 2 : 1;

 public:
  JAT_DEVICE explicit WarpAttention(const B& block, int window)
      : block_(block),
        window_(window),
        weights_(block.template at<float>(block.model.shared.weights) + block.warp * 9 * 4) {}

  // Take 8 keys, those [from, to) of which are there, and their values, and load what fits into registers. index: of
  // the first one in the context.
  JAT_DEVICE void load(const W* keys, const W* values, int from, int to, int index) {
    // Behind the new tokens' keys lies what other warps write.
    keys_at_ = keys + smaller(block_.lane >> 2, larger(to - 1, 0)) * block_.head_dim();
    values_at_ = values, from_ = from, to_ = to, index_ = index;
    if constexpr (kIsLoaded) {
      JAT_UNROLL
      for (int pair = 0; pair < kPairs; pair += 2) load_keys(pair, keys_[pair], keys_[pair + 1]);
      JAT_UNROLL
      for (int i = 0; i < 8; ++i) values_[i] = load_value(i, 0);
    }
  }

  // Attend to the keys that were loaded.
  JAT_DEVICE void add() {
    const int row = block_.lane >> 2, key = 2 * (block_.lane & 3), from = from_, to = to_, index = index_;
    float score[2];
    multiply_keys(score);
    // No 1 / sqrt(head_dim): GPT-Neo omits it. -inf where the row does not see the key.
    const int last = block_.input.context_len + row;
    JAT_UNROLL
    for (int k = 0; k < 2; ++k) {
      const bool is_there = key + k >= from && key + k < to;
      const int place = index + key + k;
      if (!is_there || place > last || place <= last - window_) score[k] = kMinusInfinity;
    }
    float most = fmaxf(fmaxf(score[0], score[1]), maximum_);
    most = fmaxf(most, shuffle_xor(most, 1));
    most = fmaxf(most, shuffle_xor(most, 2));
    const float relative = anchor(most), scale = fast_exp(maximum_ - relative);
    maximum_ = most;
    const float weight[2] = {fast_exp(score[0] - relative), fast_exp(score[1] - relative)};
    sum_ = sum_ * scale + weight[0] + weight[1];
    if (row < kStepRows) {
      weights_[key * 4 + row] = weight[0];
      weights_[(key + 1) * 4 + row] = weight[1];
      if (key == 0) weights_[8 * 4 + row] = scale;
    }
    warp_barrier();

    const auto* weights = reinterpret_cast<const Pack<float, 4>*>(weights_);
    if (!is_first_) {
      const Pack<float, 4> scales = weights[8];
      JAT_UNROLL
      for (int r = 0; r < kStepRows; ++r) {
        JAT_UNROLL
        for (int k = 0; k < kColumns; ++k) {
          out_[r][k].values[0] *= scales.values[r];
          out_[r][k].values[1] *= scales.values[r];
        }
      }
    }
    is_first_ = false;
    JAT_UNROLL
    for (int i = 0; i < 8; ++i) {
      const Pack<float, 4> of_key = weights[i];
      JAT_UNROLL
      for (int k = 0; k < kColumns; ++k) {
        float value[2];
        to_floats(kIsLoaded ? values_[kIsLoaded ? i : 0] : load_value(i, k), value);
        JAT_UNROLL
        for (int r = 0; r < kStepRows; ++r) {
          out_[r][k].values[0] += of_key.values[r] * value[0];
          out_[r][k].values[1] += of_key.values[r] * value[1];
        }
      }
    }
    warp_barrier();  // the weights have been read
  }

  // Write maximum, sum and values to the block's memory.
  JAT_DEVICE void store() {
    const int head_dim = block_.head_dim(), lane = block_.lane;
    sum_ += shuffle_xor(sum_, 1);
    sum_ += shuffle_xor(sum_, 2);
    auto* states = block_.template at<Pack<float, 2>>(block_.model.shared.states);
    if (lane < 4 * kStepRows && (lane & 3) == 0)
      states[(lane >> 2) * block_.num_warps() + block_.warp] = {{maximum_, sum_}};
    float* outs = block_.template at<float>(block_.model.shared.outs) + block_.warp * kStepRows * head_dim;
    JAT_UNROLL
    for (int row = 0; row < kStepRows; ++row) {
      JAT_UNROLL
      for (int k = 0; k < kColumns; ++k) {
        const int column = k * 64 + 2 * lane;
        if (B::kPublished || column < head_dim)
          *reinterpret_cast<Pack<float, 2>*>(outs + row * head_dim + column) = out_[row][k];
      }
    }
  }

 private:
  // Two adjacent values: a word of 16-bit numbers, or two words of floats.
  using ValueWords = Pack<uint32_t, 2 / kPerWord<W>>;
  static JAT_DEVICE void to_floats(const ValueWords& words, float (&value)[2]) {
    union {
      ValueWords words;
      Pack<W, 2> numbers;
    } both = {words};
    value[0] = to_float(both.numbers.values[0]);
    value[1] = to_float(both.numbers.values[1]);
  }

  // A lane's words of two pairs of k tiles. Keys lie a multiple of 128 bytes apart in the published size, so every
  // other one loads its pairs in another order, from other banks.
  JAT_DEVICE void load_keys(int pair, Words& first, Words& second) const {
    const int words = block_.head_words(), lane = block_.lane;
    const uint32_t* key = reinterpret_cast<const uint32_t*>(keys_at_);
    const int word = 16 * pair + 4 * (lane & 3);
    if constexpr (B::kPublished) {
      const bool is_swapped = (lane & 4) != 0;
      const Words a = load_words(key + word + (is_swapped ? 16 : 0)),
                  b = load_words(key + word + (is_swapped ? 0 : 16));
      JAT_UNROLL
      for (int i = 0; i < 4; ++i) {
        first.values[i] = is_swapped ? b.values[i] : a.values[i];
        second.values[i] = is_swapped ? a.values[i] : b.values[i];
      }
    } else {
      first = second = {{0, 0, 0, 0}};
      if (word < words) first = load_words(key + word);
      if (word + 16 < words) second = load_words(key + word + 16);
    }
  }
  // Two adjacent values of a key; zeros where it was not copied and may be NaN.
  JAT_DEVICE ValueWords load_value(int key, int k) const {
    const int column = k * 64 + 2 * block_.lane;
    if (key < from_ || key >= to_ || (!B::kPublished && column >= block_.head_dim())) return {};
    return *reinterpret_cast<const ValueWords*>(values_at_ + key * block_.head_dim() + column);
  }

  JAT_DEVICE void multiply_keys(float (&score)[2]) const {
    const int words = block_.head_words(), stride = block_.model.query_stride;
    const uint32_t* query = block_.template at<uint32_t>(block_.model.shared.query);
    float c[kParts][4] = {};
    const auto multiply_pair = [&](int pair, const Words& key) {
      JAT_UNROLL
      for (int part = 0; part < kParts; ++part)
        multiply<W>(c[part], row_words(query + part * kStepRows * stride, stride, pair, block_.lane, words),
                    key);
    };
    JAT_UNROLL_BY(kUnroll)
    for (int pair = 0; pair < kPairs; pair += 2) {
      if (!B::kPublished && 16 * pair >= words) break;
      if constexpr (kIsLoaded) {
        multiply_pair(pair, keys_[pair]);
        multiply_pair(pair + 1, keys_[pair + 1]);
      } else {
        Words first, second;
        load_keys(pair, first, second);
        multiply_pair(pair, first);
        multiply_pair(pair + 1, second);
      }
    }
    JAT_UNROLL
    for (int k = 0; k < 2; ++k) score[k] = kParts == 2 ? c[0][k] + c[kParts - 1][k] : c[0][k];
  }

  const B& block_;
  const int window_;
  float* const weights_;
  Pack<float, 2> out_[kStepRows][kColumns] = {};
  float maximum_ = kMinusInfinity, sum_ = 0;  // of the lane's row; the sum is of this lane's keys
  bool is_first_ = true;
  const W* keys_at_ = nullptr;  // this lane's key
  const W* values_at_ = nullptr;
  Words keys_[kIsLoaded ? kPairs : 1] = {};
  ValueWords values_[kIsLoaded ? 8 : 1] = {};
  int from_ = 0, to_ = 0, index_ = 0;
};

// Softmax over this block's keys, by warp: each takes every num_warps-th 8 keys, half a page, from the fourth warp
// on, since the first three are busy sending. The new tokens' keys are the last 8 of the cluster's last block. The
// first keys are loaded before the wait for the queries.
template <typename B>
JAT_DEVICE void attend(B& block, const LayerPages& pages, int window) {
  using W = typename B::Weight;
  const StepModel& model = block.model;
  const int head_dim = block.head_dim(), page_numbers = kStepPageSize * head_dim, most = model.piece_pages;
  const int oldest = oldest_key(block.input, window), num_pages = pages.num_pages;
  const bool has_new_keys = block.rank() == block.cluster_size() - 1;
  WarpAttention<B> attention(block, window);
  int unit = block.warp >= kStepRows ? block.warp - kStepRows : block.warp + block.num_warps() - kStepRows;
  bool has_waited = false;
  const auto wait = [&] {
    if (has_waited) return;
    block.wait_for_peers(kPeersQkv);
    trace(8);
    has_waited = true;
  };
  JAT_UNROLL_BY(1)
  for (int first = 0;; first += most) {
    const int count = larger(smaller(most, num_pages - first), 0);
    const W* piece = nullptr;
    if (count > 0)
      piece =
          reinterpret_cast<const W*>(block.ring.take(count * 2 * page_numbers * static_cast<int>(sizeof(W))));
    const bool is_last = first + most >= num_pages;
    const int end = 2 * (first + count), units = is_last && has_new_keys ? end + 1 : end;
    JAT_UNROLL_BY(1)
    for (; unit < units; unit += block.num_warps()) {
      if (unit < end) {
        const int page = pages.first_page + unit / 2 * model.cluster_size, place = unit % 2 * 8;
        const PageSlots slots(block.input, oldest, page);
        const W* keys = piece + (unit / 2 - first) * 2 * page_numbers + place * head_dim;
        attention.load(keys, keys + page_numbers, slots.from - place, slots.to - place,
                       page * kStepPageSize + place - block.input.start_offset);
        wait();
      } else {
        wait();
        const W* keys = block.template at<W>(model.shared.new_keys);
        attention.load(keys, keys + kStepRows * head_dim, 0, block.input.num_rows, block.input.context_len);
      }
      attention.add();
    }
    if (count > 0) block.ring.give_back(block.lane);
    if (is_last) break;
  }
  wait();
  attention.store();
}

// Merge the softmaxes of all warps, and send maximum, sum and values to all blocks of the cluster. One warp for each
// row; its halves send to different peers.
template <typename B>
JAT_DEVICE void send_partial(B& block) {
  const StepModel& model = block.model;
  const int head_dim = block.head_dim(), row = block.warp, warps = block.num_warps();
  const auto* states = block.template at<Pack<float, 2>>(model.shared.states) + row * warps;
  // The published number of warps fits into registers.
  constexpr int kLoaded = B::kPublished ? kStepMaxWarps : 1;
  Pack<float, 2> loaded[kLoaded] = {};
  if (B::kPublished) {
    JAT_UNROLL
    for (int warp = 0; warp + 1 < kLoaded; warp += 2) {
      const Words two = load_words(states + warp);
      loaded[warp] = {{bits_float(two.values[0]), bits_float(two.values[1])}};
      loaded[warp + 1] = {{bits_float(two.values[2]), bits_float(two.values[3])}};
    }
  }
  const auto state_of = [&](int warp) {
    return B::kPublished ? loaded[B::kPublished ? warp : 0] : states[warp];
  };
  const float* outs = block.template at<float>(model.shared.outs) + row * head_dim;
  float* partial =
      block.template at<float>(model.shared.partial) + (block.rank() * kStepRows + row) * (head_dim + 4);
  Mbarrier* mbarrier = block.peers(kPeersSoftmax);
  float most = kMinusInfinity;
  JAT_UNROLL_BY(12)
  for (int warp = 0; warp < warps; ++warp) most = fmaxf(most, state_of(warp).values[0]);
  const float relative = anchor(most);
  JAT_UNROLL_BY(1)
  for (int column = 4 * (block.lane & 15); column < head_dim; column += 64) {
    float sum = 0;
    Pack<float, 4> value = {};
    JAT_UNROLL_BY(12)
    for (int warp = 0; warp < warps; ++warp) {
      const Pack<float, 2> state = state_of(warp);
      const Words out = load_words(outs + warp * kStepRows * head_dim + column);
      const float scale = fast_exp(state.values[0] - relative);
      sum += scale * state.values[1];
      JAT_UNROLL
      for (int i = 0; i < 4; ++i) value.values[i] += scale * bits_float(out.values[i]);
    }
    const auto send = [&](int rank) {
      store_async(partial + column, mbarrier, rank, value.values[0], value.values[1], value.values[2],
                  value.values[3]);
      if (column == 0) store_async(partial + head_dim, mbarrier, rank, most, sum);
    };
    constexpr int kUnroll = B::kPublished ? kPublishedClusterSize / 2 : 1;
    JAT_UNROLL_BY(kUnroll)
    for (int rank = block.lane >> 4; rank < block.cluster_size(); rank += 2) send(rank);
  }
}

// Merge the partial softmaxes of the cluster, each scaled to the common maximum:
// attended = sum of values / sum of sums. One warp for each row.
template <typename B>
JAT_DEVICE void combine(B& block) {
  using W = typename B::Weight;
  const StepModel& model = block.model;
  constexpr int kUnroll = B::kPublished ? kPublishedClusterSize : 1;
  const int size = block.cluster_size();
  const int head_dim = block.head_dim(), row = block.warp, stride = kStepRows * (head_dim + 4);
  const float* partial = block.template at<float>(model.shared.partial) + row * (head_dim + 4);
  W* attended =
      reinterpret_cast<W*>(block.template at<uint32_t>(model.shared.attended) + row * model.attended_stride);
  Pack<float, 2> loaded[kUnroll] = {};  // of all ranks where they are few
  const auto state_of = [&](int rank) {
    return *reinterpret_cast<const Pack<float, 2>*>(partial + rank * stride + head_dim);
  };
  if (B::kPublished) {
    JAT_UNROLL
    for (int rank = 0; rank < kUnroll; ++rank) loaded[rank] = state_of(rank);
  }
  float most = kMinusInfinity;
  JAT_UNROLL_BY(kUnroll)
  for (int rank = 0; rank < size; ++rank)
    most = fmaxf(most, (B::kPublished ? loaded[B::kPublished ? rank : 0] : state_of(rank)).values[0]);
  const float relative = anchor(most);
  JAT_UNROLL_BY(1)
  for (int column = 2 * block.lane; column < head_dim; column += 64) {
    float sum = 0;
    Pack<float, 2> value = {};
    JAT_UNROLL_BY(kUnroll)
    for (int rank = 0; rank < size; ++rank) {
      const auto state = B::kPublished ? loaded[B::kPublished ? rank : 0] : state_of(rank);
      const auto part = *reinterpret_cast<const Pack<float, 2>*>(partial + rank * stride + column);
      const float scale = fast_exp(state.values[0] - relative);
      sum += scale * state.values[1];
      value.values[0] += scale * part.values[0];
      value.values[1] += scale * part.values[1];
    }
    *reinterpret_cast<Pack<W, 2>*>(attended + column) = {
        {from_float<W>(fast_divide(value.values[0], sum)), from_float<W>(fast_divide(value.values[1], sum))}};
  }
}

// out_proj: this head's part of this block's slice. A warp has an output tile, or a share of its k. The weights of
// the published size in a cluster of 8 are loaded before the wait for the partial softmaxes.
template <typename B>
class OutputProjection {
  using W = typename B::Weight;
  // Half-tiles of a quarter of a head: 12 warps share three tiles.
  static constexpr int kQuarter = kPublishedHeadDim * static_cast<int>(sizeof(W)) / 64;

 public:
  JAT_DEVICE OutputProjection(B& block, int head)
      : block_(block),
        again_(head != block.cluster()),
        count_(B::kPublished ? kPublishedHidden / kOutputTile / kPublishedClusterSize
                             : block.share.out_end - block.share.out_begin),
        halves_(B::kPublished ? kPublishedHeadDim * static_cast<int>(sizeof(W)) / 16
                              : block.model.head_half_tiles),
        is_loaded_(B::kIsFast && block.model.piece_tiles >= count_) {
    if (!is_loaded_) return;
    const Words* weights = take(count_) + (block.warp >> 2) * tile_words() + (block.warp & 3) * kQuarter * 32;
    JAT_UNROLL
    for (int half = 0; half < kQuarter; ++half) weights_[half] = load_words(weights + half * 32 + block.lane);
    block.ring.give_back(block.lane);
  }

  JAT_DEVICE void run() {
    const StepModel& model = block_.model;
    const int row = block_.lane >> 2, log2 = block_.out_splits_log2(), most = model.piece_tiles;
    const bool is_row = row < kStepRows;
    const uint32_t* attended = block_.template at<uint32_t>(model.shared.attended) +
                               (is_row ? row : 0) * model.attended_stride + (block_.lane & 3);
    if (is_loaded_) {
      float c[2][4] = {};
      multiply_tile<W, kQuarter>(c, weights_, attended + 4 * (block_.warp & 3) * kQuarter, is_row);
      keep_tile(block_, block_.warp & 3, block_.warp >> 2, c, again_);
      return;
    }
    JAT_UNROLL_BY(1)
    for (int first = 0; first < count_; first += most) {
      const int tiles = smaller(most, count_ - first), split_halves = halves_ >> log2;
      const Words* weights = take(tiles);
      JAT_UNROLL_BY(1)
      for (int unit = block_.warp; unit < tiles << log2; unit += block_.num_warps()) {
        const int tile = unit >> log2, half = (unit & ((1 << log2) - 1)) * split_halves;
        float c[2][4] = {};
        multiply_tile<W>(c, weights + tile * tile_words() + half * 32 + block_.lane, 32, attended + 4 * half,
                         is_row, split_halves);
        keep_tile(block_, unit & ((1 << log2) - 1), first + tile, c, again_);
      }
      block_.ring.give_back(block_.lane);
    }
  }

 private:
  JAT_DEVICE int tile_words() const { return halves_ * 32; }
  JAT_DEVICE const Words* take(int tiles) {
    return reinterpret_cast<const Words*>(
        block_.ring.take(tiles * tile_words() * static_cast<int>(sizeof(Words))));
  }

  B& block_;
  const bool again_;  // the block has the outputs of another head
  const int count_, halves_;
  const bool is_loaded_;
  Words weights_[kQuarter] = {};
};

// loaded: the weights of q, k and v of the first head.
template <typename B>
JAT_DEVICE void attention(B& block, int layer, RowWeights<B>& loaded) {
  const StepModel& model = block.model;
  const int window = model.windows[layer];
  JAT_UNROLL_BY(1)
  for (int head = block.cluster(); head < model.num_heads; head += block.num_clusters()) {
    trace(6);
    block.begin_phase();  // else the compiler computes the addresses of the whole loop here
    project_head(block, layer, head, loaded);
    loaded = {};  // its registers are needed
    attend(block, block.template at<LayerPages>(model.shared.pages)[layer], window);
    block.barrier();
    trace(9);
    if (block.warp < kStepRows) send_partial(block);
    if (block.announces()) block.expect_peers(kPeersQkv);
    trace(10);
    OutputProjection<B> output(block, head);
    block.wait_for_peers(kPeersSoftmax);
    trace(11);
    if (block.warp < kStepRows) combine(block);
    if (block.announces()) block.expect_peers(kPeersSoftmax);
    block.barrier();
    output.run();
  }
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
