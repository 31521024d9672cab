// The kernels of one instruction set. isa/<name>.cpp includes this after isa/<name>.h, whose vectors they are
// written in: `V` of kLanes floats with load, store, add, fma, ...; a dot product for each DType; and the
// tile of a linear layer that the registers hold, kMaxTokens x kMaxBlocks.
//
// No standard containers or algorithms in these files: their inline functions would be compiled for this
// instruction set, and the linker could take those copies for code that runs on every processor.
#pragma once

#include "attention.inl"
#include "conv.inl"
#include "kernels.h"
#include "linear.inl"
#include "linear_int4.inl"
#include "norm.inl"
#include "peak.inl"

namespace {

constexpr jat::Kernels kernels_named(const char* name) {
  return {name, &prepare, &layer_norm, &linear, &attend, &convolve_row, &normalize_channels, &repeat_dots};
}

}  // namespace
