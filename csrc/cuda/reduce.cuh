// Reduction over all blocks: what each of them adds to x is summed, and every block gets all sums.
//
// Without atomic additions, counters, fences and buffers to zero, and always in the same order. The columns of x are
// divided among the ranks of a cluster: a slice is what one of them has. Sum number n takes three ways:
//
//   1. Within the cluster. Each block has a part of all sums (MLP), which it stores to the peers that have the slices;
//      or its warps have parts of its own slice (attention). The block adds up the parts of its slice.
//   2. Between clusters, through device memory. It stores its sums as packets, and reads and adds up those of the
//      blocks of its rank in all clusters. A packet is {three rows of a column, ticket}, stored and loaded as one
//      number of 16 bytes, which is never seen in part. So its ticket says that the numbers next to it are there: what
//      lay in its place before is of the sum three before, or of the step before. (Tickets repeat after 2^25 steps.)
//   3. Within the cluster. It stores the sums of its slice to all peers.
//
// The embedding, sum number 0, takes the last of them alone: each cluster computes all of it.
//
// What may be overwritten. Whoever sends its slice of sum n has, from every peer, a slice of sum n - 1 or parts for
// sum n - 1 or n; a peer sends these when it has read sum n - 2.
//   - Sums: so two buffers alternate. One would not do: without a head, a peer that sends sum n has had nothing from
//     this block since it sent its slice of sum n - 1, and may still wait for others or read.
//   - Parts: whoever sends parts for sum n has all of sum n - 1, of which each peer sent a slice when it had read the
//     parts for sum n - 2.
//   - Packets: sum n takes buffer n % 3. Of two sums in a row one is of an MLP, to which all clusters contribute. So
//     whoever sends packets of sum n has had some of sum n - 1 or n - 2 from every block of its rank, which sent them
//     when it had read those of sum n - 3. Two buffers would not do: a cluster without a head sends nothing for the
//     attention's sum n - 1, and may still read sum n - 2.
// So nothing has to be zeroed or acknowledged. tests/helpers/schedule.py checks all of this.
#pragma once

#include "block.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

// Call use(rank) for all blocks of the cluster.
template <typename B, typename Use>
JAT_DEVICE void for_all_peers(const B& block, Use use) {
  constexpr int kUnroll = B::kPublished ? kPublishedClusterSize : 1;
  JAT_UNROLL_BY(kUnroll)
  for (int rank = 0; rank < block.cluster_size(); ++rank) use(rank);
}

// Where sum `number` arrives, in shared memory: float [3, H].
template <typename B>
JAT_DEVICE int sums_at(const B& block, int number) {
  return block.model.shared.sums +
         (number & 1) * kStepRows * block.hidden() * static_cast<int>(sizeof(float));
}

JAT_DEVICE uint32_t ticket_of(const StepInput& input, int number) {
  static_assert(kReductionsPerLayer * kStepMaxLayers < kTicketSums);
  return input.ticket * kTicketSums + number;
}

// Packets [num_clusters, H] of sum `number`.
template <typename B>
JAT_DEVICE StepPacket* packets(const B& block, int number) {
  return block.model.packets + number % 3 * block.num_clusters() * block.hidden();
}

// Store the results of multiply_tile as parts of the current sum to the peer that has the tile. A lane holds 4
// adjacent outputs, of rows 0 and 1, or of row 2.
template <typename B>
JAT_DEVICE void send_tile(const B& block, int tile, const float (&c)[2][4]) {
  const int tiles = block.output_tiles(), size = block.cluster_size(), stride = block.slice_stride();
  const int column = 4 * (block.lane >> 2), row = 2 * (block.lane & 3);
  if (row >= kStepRows || (!B::kPublished && tile * kOutputTile + column >= block.hidden())) return;
  const int rank = ((tile + 1) * size - 1) / tiles, first = tiles * rank / size;
  float* target = block.template at<float>(block.model.shared.parts) +
                  (block.rank() * kStepRows + row) * stride + (tile - first) * kOutputTile + column;
  Mbarrier* mbarrier = block.peers(kPeersParts);
  store_async(target, mbarrier, rank, c[0][0], c[0][2], c[1][0], c[1][2]);
  if (row + 1 < kStepRows) store_async(target + stride, mbarrier, rank, c[0][1], c[0][3], c[1][1], c[1][3]);
}

// Keep the results of multiply_tile as a part of this block's slice. tile: of the slice. again: add them to what the
// same warp kept there before.
template <typename B>
JAT_DEVICE void keep_tile(const B& block, int part, int tile, const float (&c)[2][4], bool again) {
  const int stride = block.slice_stride();
  const int column = tile * kOutputTile + 4 * (block.lane >> 2), row = 2 * (block.lane & 3);
  if (row >= kStepRows || (!B::kPublished && column >= block.slice_columns())) return;
  auto* first = reinterpret_cast<Pack<float, 4>*>(block.template at<float>(block.model.shared.outputs) +
                                                  (part * kStepRows + row) * stride + column);
  auto* second = first + stride / 4;
  Pack<float, 4> sums[2] = {{{c[0][0], c[0][2], c[1][0], c[1][2]}}, {{c[0][1], c[0][3], c[1][1], c[1][3]}}};
  if (again) {
    JAT_UNROLL
    for (int i = 0; i < 4; ++i) {
      sums[0].values[i] += first->values[i];
      if (row + 1 < kStepRows) sums[1].values[i] += second->values[i];
    }
  }
  *first = sums[0];
  if (row + 1 < kStepRows) *second = sums[1];
}

// Add up the parts of this block's slice, and send the sums to the blocks of its rank in all clusters. A thread has a
// column.
//   parts_at  in shared memory: float [count, 3, slice_stride]
//   wait      called by all threads: waits until they are there for those that have a column
template <typename B, typename Wait>
JAT_DEVICE void send_packets(B& block, int parts_at, int count, Wait wait) {
  constexpr int kUnroll = B::kPublished ? kPublishedClusterSize : 1;
  const int stride = block.slice_stride(), columns = block.slice_columns();
  const int own_parts_at = computed(parts_at + 4 * block.thread);
  const uint32_t ticket = ticket_of(block.input, block.number);
  StepPacket* target = computed(packets(block, block.number) +
                                (block.cluster() * block.hidden() + block.slice_begin() + block.thread));
  wait(block.thread < columns);
  const float* parts = block.template at<float>(own_parts_at);
  JAT_UNROLL_BY(1)
  for (int first = 0; block.thread + first < columns; first += block.num_threads()) {
    float sum[kStepRows] = {};
    JAT_UNROLL_BY(kUnroll)
    for (int part = 0; part < count; ++part) {
      JAT_UNROLL
      for (int row = 0; row < kStepRows; ++row) sum[row] += parts[(part * kStepRows + row) * stride + first];
    }
    store_packet(target + first, sum[0], sum[1], sum[2], ticket);
    if (B::kPublished) break;
  }
}

// End the current sum, of the attention or of the MLP, on this block's side. The next sum is the current one.
template <typename B>
JAT_DEVICE void send_attention(B& block) {
  if (block.cluster() < block.model.num_heads)
    send_packets(block, block.model.shared.outputs, 1 << block.out_splits_log2(),
                 [&](bool) { block.barrier(); });
  ++block.number;
}
template <typename B>
JAT_DEVICE void send_mlp(B& block) {
  const uint32_t parity = (block.number / kReductionsPerLayer - 1) & 1;
  send_packets(block, block.model.shared.parts, block.cluster_size(), [&](bool has_column) {
    if (has_column) block.wait(kPeersParts, parity);
  });
  if (block.thread == 0 && block.slice_columns() > 0) block.expect_peers(kPeersParts);
  ++block.number;
}

// Wait for the packets of the sum before the current one, add them up, and send the sums of the slice to all peers.
// Four lanes share a column: each adds up every fourth cluster.
template <typename B>
JAT_DEVICE void receive_packets(B& block) {
  const StepModel& model = block.model;
  const int number = block.number - 1, hidden = block.hidden(), columns = block.slice_columns();
  const bool is_attention = number % kReductionsPerLayer == 1;
  const int count = is_attention ? smaller(block.num_clusters(), model.num_heads) : block.num_clusters();
  // A cluster without a head has waited since the sum before; it polls less, so that it takes less of the L2 cache.
  const bool is_early = is_attention && block.cluster() >= model.num_heads;
  const uint32_t ticket = ticket_of(block.input, number);
  const int quarter = block.lane & 3, quad = block.lane >> 2 & 3;
  Mbarrier* mbarrier = block.peers(kPeersSums + (number & 1));
  float* target = block.template at<float>(sums_at(block, number)) + quarter * hidden + block.slice_begin();
  JAT_UNROLL_BY(1)
  for (int first = 0; first < columns; first += block.num_threads() / 4) {
    const int column = first + (block.thread >> 2);
    const StepPacket* source = packets(block, number) + block.slice_begin() + column;
    float sum[kStepRows] = {};
    JAT_UNROLL_BY(1)
    for (int cluster = quarter; cluster < count && column < columns; cluster += 16) {
      const StepPacket* at = computed(source + cluster * hidden);
      StepPacket found[4] = {};
      bool is_missing[4];
      JAT_UNROLL
      for (int i = 0; i < 4; ++i) is_missing[i] = cluster + 4 * i < count;
      // All loads first, so that they are in flight together.
      block.timeout.wait([&] {
        const bool only_first = is_early && is_missing[0];
        JAT_UNROLL
        for (int i = 0; i < 4; ++i)
          if (is_missing[i] && (i == 0 || !only_first)) found[i] = load_packet(at + 4 * i * hidden, ticket);
        bool is_any = false;
        JAT_UNROLL
        for (int i = 0; i < 4; ++i) {
          is_missing[i] = is_missing[i] && found[i].ticket != ticket;
          is_any = is_any || is_missing[i];
        }
        return !is_any;
      });
      JAT_UNROLL
      for (int i = 0; i < 4; ++i) {
        JAT_UNROLL
        for (int row = 0; row < kStepRows; ++row) sum[row] += found[i].values[row];
      }
    }
    JAT_UNROLL
    for (int row = 0; row < kStepRows; ++row) {
      sum[row] += shuffle_xor(sum[row], 1);
      sum[row] += shuffle_xor(sum[row], 2);
    }
    // Each of the four lanes takes a row, and from its neighbours three more columns: 16 lanes of a row have the same
    // four, and send them to different peers.
    const float own = quarter == 0 ? sum[0] : quarter == 1 ? sum[1] : sum[2];
    float of[4] = {own, shuffle_xor(own, 4), shuffle_xor(own, 8), shuffle_xor(own, 12)};
    const auto swap_if = [&](bool swaps, float& a, float& b) {
      const float before = a;
      a = swaps ? b : a;
      b = swaps ? before : b;
    };
    swap_if(quad & 1, of[0], of[1]);
    swap_if(quad & 1, of[2], of[3]);
    swap_if(quad & 2, of[0], of[2]);
    swap_if(quad & 2, of[1], of[3]);
    if (quarter == kStepRows || column >= columns) continue;
    constexpr int kUnroll = B::kPublished ? kPublishedClusterSize / 4 : 1;
    JAT_UNROLL_BY(kUnroll)
    for (int rank = quad; rank < block.cluster_size(); rank += 4)
      store_async(target + (column & ~3), mbarrier, rank, of[0], of[1], of[2], of[3]);
  }
  trace(4);
}

// Wait until all of the sum before the current one has arrived.
template <typename B>
JAT_DEVICE void wait_for_sums(B& block) {
  const int number = block.number - 1;
  block.wait(kPeersSums + (number & 1), number >> 1 & 1);
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
