// How a step is laid out over blocks and shared memory, and what it moves. No CUDA headers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "step.h"

namespace jat {

// Bytes of one number.
int type_bytes(StepType type);

// Consumer warps for a hidden size: each thread owns one pair of columns of the MLP's output where that is
// possible.
int default_num_warps(int hidden);

// Fills geometry and shared memory of `model` from its sizes, cluster_size, num_blocks and num_warps.
// max_positions: bounds the context. shared_limit: bytes a block may have. max_slots: bounds the ring.
// Throws std::invalid_argument naming what does not fit.
void lay_out(StepModel& model, int max_positions, int shared_limit, int max_slots);

// Sums of all blocks that a step waits for.
int num_exchanges(const StepModel& model);

// Rows of [3, H] that blocks write where sums are taken in a fixed order.
int num_contributors(const StepModel& model);

// Bytes of device memory that a step must read at least once: weights, norms, biases, keys and values.
int64_t bytes_per_step(const StepModel& model, int context_len);

}  // namespace jat
