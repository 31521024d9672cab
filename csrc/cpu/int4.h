// Weights in 4 bits: rounding of float32 weights, and the places of codes in a panel.
//
// 32 columns of a row make a group, with a scale s and a minimum m of 8 bits; a row has one float32 scale:
//
//   weight = row_scale * (s * code - 16 * m),  code in [0, 15]
//
// That is 4.5 bits a weight. Zero is always within a group's range.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jat {

constexpr int kInt4Columns = 32;      // of a group
constexpr int kInt4MinimumUnit = 16;  // row scales
constexpr int kInt4MaxCode = 15;

constexpr int num_int4_groups(int columns) { return (columns + kInt4Columns - 1) / kInt4Columns; }

struct Int4Group {
  uint8_t scale, minimum;
};

// The scale of a row: its widest group gets the largest scale that 8 bits hold. 0 for a row of zeros.
float int4_row_scale(const float* row, int columns);

// The scale and minimum that round `count` weights of one group, at most 32, with the least squared error, of
// those that cut a few shares off both ends of the group's range.
Int4Group fit_int4(const float* weights, int count, float row_scale);

// The nearest codes of the weights of a group.
void round_int4(const float* weights, int count, float row_scale, Int4Group group, uint8_t* codes);

}  // namespace jat
