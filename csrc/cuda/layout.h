// The layout of a step over blocks and shared memory, and the bytes it moves. No CUDA headers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "step.h"

namespace jat {

// Bytes of one number.
int type_bytes(StepType type);

// The number of computing warps for a hidden size: for each of 64 columns one, in threes.
int default_num_warps(int hidden);

// Fills in geometry and shared memory of `model` from its sizes, cluster_size, num_blocks and num_warps.
//   max_positions  longest context
//   shared_limit   bytes of shared memory that a block may have
//   max_slots      most slots of the ring
// Throws std::invalid_argument, which names what does not fit.
void lay_out(StepModel& model, int max_positions, int shared_limit, int max_slots);

// The number of reductions over all blocks of a step; each of them is a barrier of the grid.
int num_grid_barriers(const StepModel& model);

// Bytes of `packets`.
int64_t packet_bytes(const StepModel& model);

// Bytes of device memory that a step must read at least once: weights, norms, biases, keys and values.
int64_t bytes_per_step(const StepModel& model, int context_len);

}  // namespace jat
