// A ring of shared memory through which one warp streams what its block reads: weights, and cached keys and
// values.
//
// Nothing in it depends on activations, so the loading warp runs ahead of the computing warps, across phases
// and layers, as far as the ring reaches. Both sides walk the same sequence of pieces. A piece lies in one
// stretch; one that does not fit before the ring's end begins at its start.
#pragma once

#include "primitives.cuh"
#include "step.h"

namespace jat {

#if JAT_HAS_CLUSTERS

JAT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
JAT_DEVICE int larger(int a, int b) { return a > b ? a : b; }

// Bounds every wait. One that takes longer than timeout_ns sets `aborted`, and all other waits end soon
// after.
struct SpinTimeout {
  uint32_t* aborted;
  uint64_t timeout_ns;

  // Returns whether the condition came true.
  template <typename Condition>
  JAT_DEVICE bool wait(Condition condition) const {
    uint64_t begin = 0;
    for (int polls = 1; !condition(); ++polls) {
      relax();
      if (polls % 64 != 0) continue;
      if (load_relaxed(aborted) != 0) return false;
      const uint64_t now = now_ns();
      if (begin == 0) begin = now;
      if (now - begin > timeout_ns) {
        store_relaxed(aborted, 1);
        system_fence();  // before the garbage that this thread sends from here on
        return false;
      }
    }
    return true;
  }
};

// The next piece: its mbarriers, the parity of their phase, and where it lies.
struct RingCursor {
  int piece = 0;
  uint32_t parity = 0;
  uint32_t end = 0;  // of the piece before

  // Returns where a piece of so many bytes begins.
  JAT_DEVICE uint32_t place(uint32_t bytes, uint32_t ring_bytes) {
    const uint32_t size = (bytes + 127) / 128 * 128;
    const uint32_t begin = end + size > ring_bytes ? 0 : end;
    end = begin + size;
    return begin;
  }
  JAT_DEVICE void advance() {
    if (++piece < kRingPieces) return;
    piece = 0;
    parity ^= 1;
  }
};

// The view of the computing warps. Each of them takes every piece, in order.
class Ring {
 public:
  JAT_DEVICE Ring(const StepModel& model, const SpinTimeout& timeout, char* shared)
      : timeout_(timeout),
        full_(reinterpret_cast<Mbarrier*>(shared + model.shared.full)),
        empty_(reinterpret_cast<Mbarrier*>(shared + model.shared.empty)),
        memory_(shared + model.shared.ring),
        bytes_(model.ring_bytes) {}

  JAT_DEVICE const char* take(uint32_t bytes) {
    const char* piece = memory_ + cursor_.place(bytes, bytes_);
    timeout_.wait([&] { return mbarrier_test(full_ + cursor_.piece, cursor_.parity); });
    return piece;
  }
  JAT_DEVICE void give_back(int lane) {
    warp_barrier();
    if (lane == 0) mbarrier_arrive(empty_ + cursor_.piece);
    cursor_.advance();
  }

 private:
  const SpinTimeout timeout_;
  Mbarrier* const full_;
  Mbarrier* const empty_;
  char* const memory_;
  const uint32_t bytes_;
  RingCursor cursor_;
};

// The view of the loading thread.
class RingWriter {
 public:
  JAT_DEVICE RingWriter(const StepModel& model, const SpinTimeout& timeout, char* shared)
      : timeout_(timeout),
        full_(reinterpret_cast<Mbarrier*>(shared + model.shared.full)),
        empty_(reinterpret_cast<Mbarrier*>(shared + model.shared.empty)),
        ends_(reinterpret_cast<uint32_t*>(shared + model.shared.ends)),
        memory_(shared + model.shared.ring),
        bytes_(model.ring_bytes) {}

  // Wait until there is room for a piece of so many bytes, and begin it. copied: the bytes of its copies.
  JAT_DEVICE void begin(uint32_t bytes) { begin(bytes, bytes); }
  JAT_DEVICE void begin(uint32_t bytes, uint32_t copied) {
    if (aborted_ != 0) stopped_ = true;
    if (stopped_) return;
    const uint32_t before = cursor_.end, place = cursor_.place(bytes, bytes_);
    // Positions count all bytes since the start, those included that were skipped at the ring's end.
    position_ += (place < before ? bytes_ - before : 0) + (cursor_.end - place);
    while (count_ - released_.count == kRingPieces ||
           static_cast<int32_t>(position_ - bytes_ - released_.position) > 0) {
      if (!timeout_.wait([&] { return mbarrier_test(empty_ + released_.piece, released_.parity); })) {
        stopped_ = true;
        return;
      }
      released_.position = ends_[released_.piece];
      ++released_.count;
      if (++released_.piece == kRingPieces) {
        released_.piece = 0;
        released_.parity ^= 1;
      }
    }
    ends_[cursor_.piece] = position_;
    ++count_;
    aborted_ = load_relaxed(timeout_.aborted);  // looked at when the next piece begins
    mbarrier_arrive_expect(full_ + cursor_.piece, copied);
    target_ = memory_ + place;
  }
  JAT_DEVICE void copy(int offset, const void* source, uint32_t bytes) {
    if (!stopped_) bulk_copy(target_ + offset, source, bytes, full_ + cursor_.piece);
  }
  JAT_DEVICE void end() {
    if (!stopped_) cursor_.advance();
  }

  // Wait for all copies: computing warps that were aborted have not, and the block must not exit before.
  JAT_DEVICE void drain() const {
    const uint64_t begin = now_ns();
    JAT_UNROLL_BY(1)
    for (int piece = 0; piece < kRingPieces; ++piece) {
      const uint32_t parity = piece < cursor_.piece ? cursor_.parity : cursor_.parity ^ 1;
      while (!mbarrier_test(full_ + piece, parity) && now_ns() - begin < timeout_.timeout_ns + 1000000)
        relax();
    }
  }

 private:
  const SpinTimeout timeout_;
  Mbarrier* const full_;
  Mbarrier* const empty_;
  uint32_t* const ends_;
  char* const memory_;
  const uint32_t bytes_;
  RingCursor cursor_;
  char* target_ = nullptr;
  uint32_t count_ = 0, position_ = 0, aborted_ = 0;
  bool stopped_ = false;
  struct {
    uint32_t count = 0, position = 0, parity = 0;
    int piece = 0;
  } released_;
};

// The cached pages of one layer that this block reads: every cluster_size-th from first_page on.
struct LayerPages {
  int32_t first_page, num_pages;
};

// The oldest key that row 0 sees in a layer; later rows see no older one.
JAT_DEVICE int oldest_key(const StepInput& input, int window) {
  return larger(0, input.context_len - window + 1);
}

JAT_DEVICE LayerPages pages_of_layer(const StepModel& model, const StepInput& input, int window, int rank) {
  const int begin_slot = input.start_offset + oldest_key(input, window);
  const int end_slot = input.start_offset + input.context_len;
  const int first = begin_slot / kStepPageSize + rank, end = (end_slot + kStepPageSize - 1) / kStepPageSize;
  const bool has_any = begin_slot < end_slot && end > first;
  return {first, has_any ? (end - first + model.cluster_size - 1) / model.cluster_size : 0};
}

// The slots [from, to) of a page that hold visible cached tokens.
struct PageSlots {
  int from, to;
  JAT_DEVICE PageSlots(const StepInput& input, int oldest, int page)
      : from(larger(0, input.start_offset + oldest - page * kStepPageSize)),
        to(smaller(kStepPageSize, input.start_offset + input.context_len - page * kStepPageSize)) {}
};

// The first group of neurons of a block. The last blocks take one more, since the last clusters have no head in
// the last round of the attention.
JAT_DEVICE int first_neuron_group(const StepModel& model, int block) {
  const int groups = model.inner / kGroup, each = groups / model.num_blocks;
  return each * block + larger(0, block - (model.num_blocks - groups % model.num_blocks));
}

JAT_DEVICE StepShare share_of_block(const StepModel& model, const StepInput& input) {
  const int block = block_index(), size = model.cluster_size, rank = block % size, blocks = model.num_blocks;
  const int groups = 3 * model.head_dim / kGroup;
  StepShare share;
  share.rank = rank;
  share.cluster = block / size;
  share.num_clusters = blocks / size;
  share.qkv_begin = groups * rank / size;
  share.qkv_end = groups * (rank + 1) / size;
  share.out_begin = model.output_tiles * rank / size;
  share.out_end = model.output_tiles * (rank + 1) / size;
  share.slice_begin = share.out_begin * kOutputTile;
  share.slice_columns = smaller(share.out_end * kOutputTile, model.hidden) - share.slice_begin;
  share.neuron_begin = first_neuron_group(model, block);
  share.neuron_end = first_neuron_group(model, block + 1);
  share.head_row_begin = input.head_size * block / blocks;
  share.head_row_end = input.head_size * (block + 1) / blocks;
  return share;
}

// What the loading warp loads, in order. The phases take the pieces in the same order.
template <typename W>
class Loader {
 public:
  JAT_DEVICE Loader(const StepModel& model, const StepInput& input, const RingWriter& ring,
                    const StepShare& share, const LayerPages* pages)
      : model_(model), input_(input), ring_(ring), share_(share), pages_(pages) {}

  JAT_DEVICE void run() {
    const float* bias = nullptr;
    const int tile_bytes = model_.head_half_tiles * 512,
              neuron_bytes = model_.group_half_tiles * model_.output_tiles * 512;
    JAT_UNROLL_BY(1)
    for (int index = 0; index < model_.num_layers; ++index) {
      const StepLayer layer = model_.layers[index];
      norm(layer.norm1_weight, layer.norm1_bias, bias);
      JAT_UNROLL_BY(1)
      for (int head = share_.cluster; head < model_.num_heads; head += share_.num_clusters) {
        const int64_t qkv_groups = 3 * model_.head_dim / kGroup;
        units(bytes(layer.qkv) + head * qkv_groups * model_.group_bytes, share_.qkv_begin, share_.qkv_end,
              model_.group_bytes, model_.piece_groups, nullptr);
        cached(index, head);
        units(bytes(layer.out_proj) + static_cast<int64_t>(head) * model_.output_tiles * tile_bytes,
              share_.out_begin, share_.out_end, tile_bytes, model_.piece_tiles, nullptr);
      }
      norm(layer.norm2_weight, layer.norm2_bias, layer.out_proj_bias);
      units(bytes(layer.mlp_in), share_.neuron_begin, share_.neuron_end, model_.group_bytes,
            model_.piece_groups, layer.mlp_in_bias);
      units(bytes(layer.mlp_out), share_.neuron_begin, share_.neuron_end, neuron_bytes, model_.piece_neurons,
            nullptr);
      bias = layer.mlp_out_bias;
    }
    norm(model_.final_norm_weight, model_.final_norm_bias, bias);
    units(bytes(input_.head_rows), share_.head_row_begin, share_.head_row_end,
          model_.hidden * static_cast<int>(sizeof(float)), model_.piece_head_rows, nullptr);
    ring_.drain();
  }

 private:
  static JAT_DEVICE const char* bytes(const void* address) { return static_cast<const char*>(address); }

  // The vectors of a LayerNorm, and the bias of the sum before it.
  JAT_DEVICE void norm(const float* weight, const float* shift, const float* bias) {
    const uint32_t bytes = model_.hidden * sizeof(float);
    ring_.begin(bias != nullptr ? 3 * bytes : 2 * bytes);
    ring_.copy(0, weight, bytes);
    ring_.copy(bytes, shift, bytes);
    if (bias != nullptr) ring_.copy(2 * bytes, bias, bytes);
    ring_.end();
  }

  // Units [begin, end) of unit_bytes each; behind those of a piece the biases of their neurons.
  JAT_DEVICE void units(const char* source, int begin, int end, int unit_bytes, int most,
                        const float* biases) {
    JAT_UNROLL_BY(1)
    for (int unit = begin; unit < end; unit += most) {
      const int count = smaller(most, end - unit), size = count * unit_bytes;
      const int bias_bytes = count * kGroup * static_cast<int>(sizeof(float));
      ring_.begin(biases != nullptr ? size + bias_bytes : size);
      ring_.copy(0, source + static_cast<int64_t>(unit) * unit_bytes, size);
      if (biases != nullptr) ring_.copy(size, biases + unit * kGroup, bias_bytes);
      ring_.end();
    }
  }

  // Pages of a head: the keys of each, then its values. Only slots of visible cached tokens: the step may be
  // writing its new tokens to the others.
  JAT_DEVICE void cached(int layer, int head) {
    const int row_bytes = model_.head_dim * static_cast<int>(sizeof(W)),
              page_bytes = kStepPageSize * row_bytes;
    const int most = model_.piece_pages, oldest = oldest_key(input_, model_.windows[layer]);
    const char* cache = static_cast<const char*>(model_.kv_cache);
    const LayerPages pages = pages_[layer];
    JAT_UNROLL_BY(1)
    for (int first = 0; first < pages.num_pages; first += most) {
      const int count = smaller(most, pages.num_pages - first),
                begin = pages.first_page + first * model_.cluster_size;
      uint32_t used = 0;
      JAT_UNROLL_BY(1)
      for (int index = 0; index < count; ++index) {
        const PageSlots slots(input_, oldest, begin + index * model_.cluster_size);
        used += 2 * (slots.to - slots.from) * row_bytes;
      }
      // The piece takes the room of whole pages, and expects the bytes that are copied.
      ring_.begin(count * 2 * page_bytes, used);
      JAT_UNROLL_BY(1)
      for (int copy = 0; copy < 2 * count; ++copy) {
        const int page = begin + copy / 2 * model_.cluster_size;
        const PageSlots slots(input_, oldest, page);
        const int64_t place = static_cast<int64_t>(layer) * model_.num_pages + input_.page_table[page];
        const char* source = cache + ((place * 2 + copy % 2) * model_.num_heads + head) * page_bytes;
        const int from = slots.from * row_bytes;
        ring_.copy(copy * page_bytes + from, source + from, slots.to * row_bytes - from);
      }
      ring_.end();
    }
  }

  const StepModel& model_;
  const StepInput& input_;
  RingWriter ring_;
  const StepShare& share_;
  const LayerPages* const pages_;
};

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
