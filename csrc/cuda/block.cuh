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
template <typename W>
constexpr int kLoad = 16 / static_cast<int>(sizeof(W));  // numbers of a 16-byte load

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
        meetings(0) {
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
  JAT_DEVICE int output_tiles() const { return kPublished ? kHidden / kOutputTile : model.output_tiles; }

  template <typename T>
  JAT_DEVICE T* at(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  // Of all warps that compute.
  JAT_DEVICE void barrier() const { consumer_barrier(num_threads()); }

  JAT_DEVICE Mbarrier* peers(int which) const { return at<Mbarrier>(model.shared.peers) + which; }
  // Say how many bytes the cluster sends to one of them in a round: before the first round and after each.
  JAT_DEVICE void expect_peers(int which) const {
    if (thread != 0) return;
    const int word = static_cast<int>(sizeof(float));
    const int bytes = which == kPeersQkv       ? head_dim() * (word + 2 * static_cast<int>(sizeof(W)))
                      : which == kPeersSoftmax ? model.cluster_size * (head_dim() + 2) * word
                      : which == kPeersParts   ? model.cluster_size * share.slice_columns * word
                                               : hidden() * word;
    mbarrier_arrive_expect(peers(which), kStepRows * bytes);
  }
  // Wait until all of the cluster's numbers of this round, whose parity is given, are here.
  JAT_DEVICE void wait(int which, uint32_t parity) const {
    // After a timeout the phase has not ended, and an arrival more than it expects is undefined.
    if (timeout.wait([&] { return mbarrier_test_cluster(peers(which), parity); })) expect_peers(which);
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
