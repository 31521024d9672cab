// The persistent kernel (megakernel): embedding, all layers and the head of one agent's step in one launch.
//
// Grid: num_blocks blocks, one per SM, in clusters of cluster_size.
// Block: num_warps warps that compute, and one that loads weights and cached keys and values (ring.cuh).
//
//   phase      who computes what                                                then
//   ---------  ---------------------------------------------------------------  ------------------------
//   embedding  each cluster: all of it; each of its blocks: its columns of x    cluster barrier
//   attention  each cluster: some heads. In each block of the cluster:
//                LayerNorm, then its share of the rows of q, k, v               cluster barrier
//                softmax over every cluster_size-th page                        cluster barrier
//                its share of the outputs, summed over heads                    reduction
//   MLP        each block: LayerNorm, some neurons, and what they add to
//                all outputs                                                    reduction
//   head       each block: some of the head's rows
//
// One block reads each weight, once. Every block keeps all of x, so a reduction (reduce.cuh) sends 3 H sums to
// every block. What goes to cluster peers completes on an mbarrier of the peer, which counts its bytes. All sums
// are taken in a fixed order, so a step is bitwise repeatable.
//
// Timeout. A wait that takes too long raises `aborted`. All blocks then run to their end without waiting, on
// garbage, so that no block exits while others wait for it or write into its memory; loading stops. The new keys
// and values are garbage too, no prediction is written, and the status says so.
#pragma once

#include "phases/attention.cuh"
#include "phases/embed.cuh"
#include "phases/head.cuh"
#include "phases/mlp.cuh"
#include "phases/norm.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

// Sum number 0 is the embedding; then each layer has one of the attention and one of the MLP.
template <typename B>
JAT_DEVICE void run(B& block) {
  const int last = kReductionsPerLayer * block.model.num_layers;
  if (block.thread == 0)
    for (int which = 0; which < kPeersBarriers; ++which) block.expect_peers(which);
  trace(0);
  embed(block);
  JAT_UNROLL_BY(1)
  while (block.number < last) {
    {
      RowWeights<B> weights;
      normalise<false>(
          block,
          [&] {
            if (block.cluster() < block.model.num_heads)
              weights.load(block, block.share.qkv_end - block.share.qkv_begin, false);
          },
          [] {});
      attention(block, block.number / kReductionsPerLayer, weights);
    }
    send_attention(block);
    {
      MlpWeights<B> weights;
      normalise<false>(block, [&] { weights.load_in(block); }, [&] { weights.load_out(block); });
      mlp(block, weights);
    }
    trace(1);
    send_mlp(block);
  }
  // Also without rows of the head: cluster peers need the last sums, and wait with this block for theirs.
  float bias = 0;
  normalise<true>(block, [&] { bias = load_head_bias(block, block.warp); }, [] {});
  trace(14);
  head(block, bias);
  trace(15);
  finish(block);
}

template <typename W, int kHidden>
JAT_DEVICE void step_block(const StepModel& model, const StepInput& input) {
  char* shared = shared_memory();
  const SpinTimeout timeout = {&model.control->aborted, input.timeout_ns};
  const int thread = thread_index(), num_threads = 32 * model.num_warps;
  StepShare& share = *reinterpret_cast<StepShare*>(shared + model.shared.share);
  LayerPages* pages = reinterpret_cast<LayerPages*>(shared + model.shared.pages);
  if (thread >= num_threads) {
    // A layer for each lane. Constants are read one at a time.
    const int lane = thread - num_threads;
    int window = 1;
    JAT_UNROLL_BY(4)
    for (int layer = 0; layer < model.num_layers; ++layer)
      window = layer == lane ? model.windows[layer] : window;
    if (lane < model.num_layers)
      pages[lane] = pages_of_layer(model, input, window, block_index() % model.cluster_size);
    if (thread == num_threads) {
      Mbarrier* full = reinterpret_cast<Mbarrier*>(shared + model.shared.full);
      Mbarrier* empty = reinterpret_cast<Mbarrier*>(shared + model.shared.empty);
      Mbarrier* peers = reinterpret_cast<Mbarrier*>(shared + model.shared.peers);
      JAT_UNROLL_BY(1)
      for (int piece = 0; piece < kRingPieces; ++piece) {
        mbarrier_init(full + piece, 1);
        mbarrier_init(empty + piece, model.num_warps);
      }
      for (int which = 0; which < kPeersBarriers; ++which) mbarrier_init(peers + which, 1);
      mbarrier_init_fence();
      share = share_of_block(model, input);
    }
    warp_barrier();
    cluster_barrier();
    if (thread == num_threads)
      Loader<W>(model, input, RingWriter(model, timeout, shared), share, pages).run();
    warp_barrier();
  } else {
    // Rows that the step does not have are multiplied too, as zeros, and so is the padding of rows.
    uint32_t* normed = reinterpret_cast<uint32_t*>(shared + model.shared.normed);
    JAT_UNROLL_BY(1)
    for (int i = thread; i < kStepRows * model.normed_stride; i += num_threads) normed[i] = 0;
    cluster_barrier();
    Block<W, kHidden> block(model, input, shared, timeout);
    run(block);
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
    step_kernel(JAT_ARGUMENT StepModel model, JAT_ARGUMENT StepInput input) {
#if JAT_HAS_CLUSTERS
  step_block<W, kHidden>(model, input);
#endif
}

}  // namespace jat
