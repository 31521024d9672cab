// A ring of shared-memory slots through which one warp streams what its block reads: weights, and cached keys
// and values.
//
// Nothing in it depends on activations, so the loading warp runs ahead of the computing warps, across phases
// and layers, as far as the ring reaches. Both sides walk the same sequence of pieces.
#pragma once

#include "primitives.cuh"
#include "step.h"

namespace jat {

#if JAT_HAS_CLUSTERS

// Bounds every wait. One that takes longer than timeout_ns sets `aborted`, and all other waits end soon
// after.
struct Patience {
  uint32_t* aborted;
  uint64_t timeout_ns;

  template <typename Condition>
  JAT_DEVICE void wait(Condition condition) const {
    uint64_t begin = 0;
    for (int polls = 1; !condition(); ++polls) {
      relax();
      if (polls % 64 != 0) continue;
      if (load_relaxed(aborted) != 0) return;
      const uint64_t now = now_ns();
      if (begin == 0) begin = now;
      if (now - begin > timeout_ns) return store_relaxed(aborted, 1);
    }
  }
};

// A position in the ring: the slot, and the parity of the number of rounds.
class Cursor {
 public:
  JAT_DEVICE int slot() const { return slot_; }
  JAT_DEVICE uint32_t parity() const { return parity_; }
  JAT_DEVICE void advance(int num_slots) {
    if (++slot_ < num_slots) return;
    slot_ = 0;
    parity_ ^= 1;
  }

 private:
  int slot_ = 0;
  uint32_t parity_ = 0;
};

// The view of both sides. Every consumer warp takes every piece, in order.
struct Ring {
  const StepModel& model;
  const Patience patience;
  char* const shared;
  Cursor cursor;

  JAT_DEVICE Ring(const StepModel& sizes, const Patience& bound, char* memory)
      : model(sizes), patience(bound), shared(memory) {}

  JAT_DEVICE char* slot() const { return shared + model.shared.ring + cursor.slot() * model.slot_bytes; }
  JAT_DEVICE Mbarrier* full() const {
    return reinterpret_cast<Mbarrier*>(shared + model.shared.full) + cursor.slot();
  }
  JAT_DEVICE Mbarrier* empty() const {
    return reinterpret_cast<Mbarrier*>(shared + model.shared.empty) + cursor.slot();
  }

  // Consumer: the next piece.
  JAT_DEVICE const char* take() {
    patience.wait([&] { return mbarrier_test(full(), cursor.parity()); });
    return slot();
  }
  JAT_DEVICE void give_back(int lane) {
    warp_barrier();
    if (lane == 0) mbarrier_arrive(empty());
    cursor.advance(model.num_slots);
  }

  // Producer: wait for a slot that all consumers have given back; `bytes` will be copied into it.
  JAT_DEVICE char* fill(uint32_t bytes) {
    patience.wait([&] { return mbarrier_test(empty(), cursor.parity() ^ 1); });
    mbarrier_arrive_expect(full(), bytes);
    return slot();
  }
  JAT_DEVICE void copy(char* target, const void* source, uint32_t bytes) {
    bulk_copy(target, source, bytes, full());
  }
  JAT_DEVICE void filled() { cursor.advance(model.num_slots); }
};

JAT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
JAT_DEVICE int larger(int a, int b) { return a > b ? a : b; }

// The cached keys of one layer that this block reads: every cluster_size-th page from first_page + rank on.
struct Pages {
  int first_page, num_pages;  // of this block
  int begin_slot, end_slot;   // slots of the session's page list that hold visible cached tokens

  JAT_DEVICE Pages(const StepModel& model, const StepInput& input, int window, int rank) {
    // The oldest key that row 0 sees; later rows see no older one.
    const int oldest = larger(0, input.context_len - window + 1);
    begin_slot = input.start_offset + oldest;
    end_slot = input.start_offset + input.context_len;
    first_page = begin_slot / kStepPageSize + rank;
    const int end_page = (end_slot + kStepPageSize - 1) / kStepPageSize;
    num_pages = larger(0, (end_page - first_page + model.cluster_size - 1) / model.cluster_size);
    if (begin_slot >= end_slot) num_pages = 0;
  }
  JAT_DEVICE int page(const StepModel& model, int index) const {
    return first_page + index * model.cluster_size;
  }
  // The slots [from, to) of a page that are read.
  JAT_DEVICE int from(int page) const { return larger(0, begin_slot - page * kStepPageSize); }
  JAT_DEVICE int to(int page) const { return smaller(kStepPageSize, end_slot - page * kStepPageSize); }
};

// The first neuron of a block. Blocks that have no head in the last round of the attention take more neurons.
JAT_DEVICE int first_neuron(const StepModel& model, int block) {
  if (block <= model.heavy_blocks) return model.heavy_neurons * block / model.heavy_blocks;
  return model.heavy_neurons + (model.inner - model.heavy_neurons) * (block - model.heavy_blocks) /
                                   (model.num_blocks - model.heavy_blocks);
}

JAT_DEVICE StepShare share_of_block(const StepModel& model, const StepInput& input) {
  const int block = block_index(), size = model.cluster_size, rank = block % size;
  StepShare share;
  share.rank = rank;
  share.cluster = block / size;
  share.num_clusters = model.num_blocks / size;
  share.column_begin = model.head_dim * rank / size;
  share.column_end = model.head_dim * (rank + 1) / size;
  share.output_begin = model.hidden * rank / size;
  share.output_end = model.hidden * (rank + 1) / size;
  share.neuron_begin = first_neuron(model, block);
  share.neuron_end = first_neuron(model, block + 1);
  share.head_row_begin = input.head_size * block / model.num_blocks;
  share.head_row_end = input.head_size * (block + 1) / model.num_blocks;
  return share;
}

// What the loading warp loads, in order. Block (step.cuh) takes the pieces in the same order.
template <typename W>
class Loader {
 public:
  JAT_DEVICE Loader(const StepModel& model, const StepInput& input, const Ring& ring)
      : model_(model),
        input_(input),
        ring_(ring),
        share_(*reinterpret_cast<const StepShare*>(ring.shared + model.shared.share)) {}

  JAT_DEVICE void run() {
    const float* bias = nullptr;
    for (int index = 0; index < model_.num_layers; ++index) {
      const StepLayer& layer = model_.layers[index];
      norm(layer.norm1_weight, layer.norm1_bias, bias);
      const Pages pages(model_, input_, layer.window, share_.rank);
      for (int head = share_.cluster; head < model_.num_heads; head += share_.num_clusters) {
        const W* wqkv = static_cast<const W*>(layer.wqkv);
        JAT_UNROLL_BY(1)
        for (int part = 0; part < 3; ++part)
          rows(wqkv + static_cast<int64_t>(part * model_.hidden + head * model_.head_dim) * model_.hidden,
               share_.column_begin, share_.column_end, model_.hidden, model_.piece_rows);
        JAT_UNROLL_BY(1)
        for (int part = 0; part < 2; ++part) cached(index, head, part, pages);
        rows(static_cast<const W*>(layer.w_out_heads) +
                 static_cast<int64_t>(head) * model_.hidden * model_.head_dim,
             share_.output_begin, share_.output_end, model_.head_dim, model_.piece_outputs);
      }
      norm(layer.norm2_weight, layer.norm2_bias, layer.out_bias);
      JAT_UNROLL_BY(1)
      for (int part = 0; part < 2; ++part)
        rows(static_cast<const W*>(part == 0 ? layer.w_fc : layer.w_proj_t), share_.neuron_begin,
             share_.neuron_end, model_.hidden, model_.piece_rows);
      bias = layer.proj_bias;
    }
    if (share_.head_row_begin == share_.head_row_end) return;
    norm(model_.final_norm_weight, model_.final_norm_bias, bias);
    rows(input_.head_rows, share_.head_row_begin, share_.head_row_end, model_.hidden, model_.piece_head_rows);
  }

 private:
  // The vectors of a LayerNorm, and the bias of the sum before it.
  JAT_DEVICE void norm(const float* weight, const float* shift, const float* bias) {
    const uint32_t bytes = model_.hidden * sizeof(float);
    char* slot = ring_.fill(bias != nullptr ? 3 * bytes : 2 * bytes);
    ring_.copy(slot, weight, bytes);
    ring_.copy(slot + bytes, shift, bytes);
    if (bias != nullptr) ring_.copy(slot + 2 * bytes, bias, bytes);
    ring_.filled();
  }

  template <typename T>
  JAT_DEVICE void rows(const T* matrix, int begin, int end, int columns, int most) {
    const int row_bytes = columns * static_cast<int>(sizeof(T));
    for (int row = begin; row < end; row += most) {
      const uint32_t bytes = smaller(most, end - row) * row_bytes;
      ring_.copy(ring_.fill(bytes), matrix + static_cast<int64_t>(row) * columns, bytes);
      ring_.filled();
    }
  }

  // Keys (part 0) or values (part 1) of a head. Only slots of visible cached tokens: the step may be writing
  // its new tokens to the others.
  JAT_DEVICE void cached(int layer, int head, int part, const Pages& pages) {
    const int row_bytes = model_.head_dim * static_cast<int>(sizeof(W)),
              page_bytes = kStepPageSize * row_bytes;
    const int most = model_.piece_pages;
    const char* cache = static_cast<const char*>(model_.kv_cache);
    for (int first = 0; first < pages.num_pages; first += most) {
      const int end = smaller(first + most, pages.num_pages);
      uint32_t bytes = 0;
      for (int index = first; index < end; ++index) {
        const int page = pages.page(model_, index);
        bytes += (pages.to(page) - pages.from(page)) * row_bytes;
      }
      char* slot = ring_.fill(bytes);
      for (int index = first; index < end; ++index) {
        const int page = pages.page(model_, index), from = pages.from(page), to = pages.to(page);
        const int64_t place = static_cast<int64_t>(layer) * model_.num_pages + input_.page_table[page];
        const char* source = cache + ((place * 2 + part) * model_.num_heads + head) * page_bytes;
        ring_.copy(slot + (index - first) * page_bytes + from * row_bytes, source + from * row_bytes,
                   (to - from) * row_bytes);
      }
      ring_.filled();
    }
  }

  const StepModel& model_;
  const StepInput& input_;
  Ring ring_;
  const StepShare& share_;
};

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
