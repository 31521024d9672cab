// Grid barrier + reduction: every block adds what it computed to sums that every block then reads.
//
// Values are added atomically into one of three rotating buffers: sum number n uses buffer n % 3.
// Between its wait for sum n and its arrival at sum n + 1 a block zeroes its share of buffer (n + 2) % 3.
//   - It is no longer read: it held sum n - 1, and every block has read that before it arrived at sum n.
//   - Nothing adds to it yet: sum n + 2 starts after the wait for sum n + 1, which orders the zeros before it.
//
// With fixed_order, contributors write their parts to rows of their own; after a grid barrier each block adds
// up its share of the columns in the order of the contributors; a second grid barrier publishes the sums.
#pragma once

#include "block.cuh"

namespace jat {

#if JAT_HAS_CLUSTERS

template <typename B>
JAT_DEVICE float* sums(const B& block, int number) {
  return block.model.sums + number % 3 * kStepRows * block.hidden();
}

// [3, H]: where a contributor, a block or a head, puts its parts of the current sum.
template <typename B>
JAT_DEVICE float* destination(const B& block, int contributor) {
  return block.model.fixed_order ? block.model.parts + contributor * kStepRows * block.hidden()
                                 : sums(block, block.number);
}

// Add four adjacent columns to the current sum.
JAT_DEVICE void add_sum(float* target, const Pack<float, 4>& value) {
  add_global(target, value.values[0], value.values[1], value.values[2], value.values[3]);
}

// The same in a fixed order. again: this contributor has published a part of these columns before.
JAT_DEVICE void add_part(float* target, const Pack<float, 4>& value, bool again) {
  auto* part = reinterpret_cast<Pack<float, 4>*>(target);
  Pack<float, 4> sum = value;
  if (again)
    for (int i = 0; i < 4; ++i) sum.values[i] += part->values[i];
  *part = sum;
}

// Wait until all blocks have arrived so many times. To be called by one thread; a barrier must follow for the other
// threads of the block.
template <typename B>
JAT_DEVICE void wait_for_blocks(const B& block, int arrivals) {
  const uint32_t all = static_cast<uint32_t>(arrivals) * block.model.num_blocks;
  block.timeout.wait([&] { return has_reached(&block.model.control->arrived, all); });
}

// Arrivals of a block for the sums before the current one.
template <typename B>
JAT_DEVICE int arrivals_before(const B& block) {
  return block.model.fixed_order ? 2 * block.number : block.number;
}

// The second half of a reduction in a fixed order: add up this block's share of the columns.
template <typename B>
JAT_DEVICE void sum_in_order(B& block, int contributors) {
  if (block.thread == 0) wait_for_blocks(block, arrivals_before(block) + 1);
  block.barrier();
  const int count = kStepRows * block.hidden();
  JAT_UNROLL_BY(1)
  for (int i = block.share.zero_begin + block.thread; i < block.share.zero_end; i += block.num_threads()) {
    float sum = 0;
    if (i < block.input.num_rows * block.hidden()) {
      JAT_UNROLL_BY(1)
      for (int c = 0; c < contributors; ++c) sum += load_global(block.model.parts + c * count + i);
    }
    sums(block, block.number)[i] = sum;
  }
  block.barrier();
  if (block.thread == 0) arrive_global(&block.model.control->arrived);
}

// Arrive at the grid barrier: this block has published all of its parts. The next sum is the current one.
template <typename B>
JAT_DEVICE void arrive(B& block, int contributors) {
  block.barrier();
  if (block.thread == 0) arrive_global(&block.model.control->arrived);
  if (block.model.fixed_order) sum_in_order(block, contributors);
  ++block.number;
}

#endif  // JAT_HAS_CLUSTERS

}  // namespace jat
