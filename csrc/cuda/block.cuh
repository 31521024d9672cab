// A computing thread's view of its block: sizes, shared memory, and what it keeps from phase to phase.
#pragma once

#include "primitives.cuh"
#include "ring.cuh"
#include "step.h"

namespace jat {

#if JAT_HAS_CLUSTERS

constexpr float kMinusInfinity = -INFINITY;

// Adjacent numbers that are loaded and stored together.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};
template <typename W>
constexpr int kPerWord = 4 / static_cast<int>(sizeof(W));  // numbers of a register

// A maximum that numbers can be taken relative to: exp(-inf - anchor) is 0 also where all of them are -inf.
JAT_DEVICE float anchor(float maximum) { return maximum == kMinusInfinity ? 0 : maximum; }

template <typename W>
JAT_DEVICE float rounded(float value) {
  return to_float(from_float<W>(value));
}

// Sum over the 32 lanes.
JAT_DEVICE float sum_all(float value) {
  JAT_UNROLL
  for (int mask = 16; mask >= 1; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// kHidden: the hidden size of a kernel of its own, or 0 for any.
template <typename W, int kHidden>
struct Block {
  using Weight = W;
  static constexpr bool kPublished = kHidden > 0;
  static constexpr int kPublishedSlice = kPublishedHidden / kPublishedClusterSize;
  // Operands of several products fit into registers together.
  static constexpr bool kIsFast = kPublished && sizeof(W) == 2;
  // Pairs of adjacent columns of a row of x that a thread owns.
  static constexpr int kPairs = kPublished ? kHidden * kStepRows / (64 * kStepMaxWarps) : kStepMaxPairs;

  const StepModel& model;
  const StepInput& input;
  char* const shared;
  const SpinTimeout timeout;
  Ring ring;
  const StepShare& share;
  int thread, warp, lane;
  // The row of x whose LayerNorm this warp computes with others, its place among them, and what it owns of it:
  // columns 2 lane, 2 lane + 1 of each 64 that it takes.
  int row, row_part;
  float mean;         // of the row, at the LayerNorm before
  int number;         // of the current sum; see reduce.cuh
  uint32_t meetings;  // pairs of cluster barriers passed
  bool is_whole;      // no wait for cluster peers of this thread has taken too long

  JAT_DEVICE Block(const StepModel& sizes, const StepInput& inputs, char* memory, const SpinTimeout& bound)
      : model(sizes),
        input(inputs),
        shared(memory),
        timeout(bound),
        ring(sizes, bound, memory),
        share(*reinterpret_cast<const StepShare*>(memory + sizes.shared.share)),
        thread(thread_index()),
        mean(0),
        number(0),
        meetings(0),
        is_whole(true) {
    begin_phase();
  }

  // Say again who the thread is, so that the compiler does not keep the addresses of all phases from layer to layer:
  // they take more registers than there are.
  JAT_DEVICE void begin_phase() {
    thread = computed(thread);
    warp = static_cast<unsigned>(thread) / 32;
    lane = thread & 31;
    row = static_cast<unsigned>(warp) / static_cast<unsigned>(row_warps());
    row_part = warp - row * row_warps();
  }

  JAT_DEVICE int hidden() const { return kPublished ? kHidden : model.hidden; }
  JAT_DEVICE int head_dim() const { return kPublished ? kPublishedHeadDim : model.head_dim; }
  JAT_DEVICE int num_warps() const { return kPublished ? kStepMaxWarps : model.num_warps; }
  JAT_DEVICE int num_threads() const { return 32 * num_warps(); }
  JAT_DEVICE int row_warps() const { return num_warps() / kStepRows; }
  // Words of 4 bytes of a head's numbers.
  JAT_DEVICE int head_words() const { return head_dim() / kPerWord<W>; }
  JAT_DEVICE int k_pairs() const {
    return kPublished ? kHidden * static_cast<int>(sizeof(W)) / 64 : model.k_pairs;
  }
  // Where this block is; in the published size known without a load.
  static JAT_DEVICE unsigned index() { return static_cast<unsigned>(block_index()); }
  JAT_DEVICE int rank() const {
    return kPublished ? static_cast<int>(index() % kPublishedClusterSize) : share.rank;
  }
  JAT_DEVICE int cluster() const {
    return kPublished ? static_cast<int>(index() / kPublishedClusterSize) : share.cluster;
  }
  JAT_DEVICE int num_clusters() const {
    return kPublished ? static_cast<int>(static_cast<unsigned>(model.num_blocks) / kPublishedClusterSize)
                      : share.num_clusters;
  }
  JAT_DEVICE int cluster_size() const { return kPublished ? kPublishedClusterSize : model.cluster_size; }
  // Of this block's slice of the columns of x: those of its output tiles of out_proj. See reduce.cuh.
  JAT_DEVICE int slice_begin() const { return kPublished ? rank() * kPublishedSlice : share.slice_begin; }
  JAT_DEVICE int slice_columns() const { return kPublished ? kPublishedSlice : share.slice_columns; }
  JAT_DEVICE int slice_stride() const { return kPublished ? kPublishedSlice : model.slice_stride; }
  // Warps that share an output tile of out_proj.
  JAT_DEVICE int out_splits_log2() const { return kPublished ? 2 : model.out_splits_log2; }
  JAT_DEVICE int output_tiles() const { return kPublished ? kHidden / kOutputTile : model.output_tiles; }

  template <typename T>
  JAT_DEVICE T* at(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  // Of all warps that compute.
  JAT_DEVICE void barrier() const { consumer_barrier(num_threads()); }

  JAT_DEVICE Mbarrier* peers(int which) const { return at<Mbarrier>(model.shared.peers) + which; }
  // Say how many bytes the cluster sends to one of them in a round. By one thread, before the first round and, when it
  // has waited for a round, at any time before the next wait; so it is done where the thread would wait anyhow.
  JAT_DEVICE void expect_peers(int which) const {
    if (!is_whole) return;  // the round has not ended, and an arrival more than it expects is undefined
    const int word = static_cast<int>(sizeof(float));
    const int bytes = which == kPeersQkv       ? head_dim() * (word + 2 * static_cast<int>(sizeof(W)))
                      : which == kPeersSoftmax ? cluster_size() * (head_dim() + 2) * word
                      : which == kPeersParts   ? cluster_size() * slice_columns() * word
                                               : hidden() * word;
    mbarrier_arrive_expect(peers(which), kStepRows * bytes);
  }
  // Whether this thread says so for barriers at which all threads wait. Its warp has less to do than the first ones.
  JAT_DEVICE bool announces() const { return thread == num_threads() - 32; }
  // Wait until all of the cluster's numbers of this round, whose parity is given, are here.
  JAT_DEVICE void wait(int which, uint32_t parity) {
    is_whole = timeout.wait([&] { return mbarrier_test_cluster(peers(which), parity); }) && is_whole;
  }
  // Wait for q, k and v or the partial softmax of a head. The two barriers alternate, so a peer sends to one of them
  // again only when this block has passed it: the other one was in between.
  JAT_DEVICE void wait_for_peers(int which) {
    wait(which, meetings & 1);
    meetings += which;
  }
};

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
