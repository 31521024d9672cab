// The weights of a linear layer in the layout of kernels.h: packed once, read every step.
#pragma once

#include "buffer.h"
#include "kernels.h"

namespace jat {

class Linear {
 public:
  // Weights [rows, columns] and, if `has_bias`, a bias [rows]; zeros until they are packed.
  Linear(DType dtype, int rows, int columns, bool has_bias);

  // Pack `weight` [count, columns], float32 and contiguous, into the rows from `first` on. int8: with one
  // scale per row, max |weight| / 127; values are rounded to nearest, ties to even. int4: see int4.h.
  void pack_rows(int first, int count, const float* weight);
  // Pack rounded weights of an int4 layer: codes [count, columns], scales and minima [count, groups], row_scales
  // [count].
  void pack_codes(int first, int count, const uint8_t* codes, const uint8_t* scales, const uint8_t* minima,
                  const float* row_scales);
  // The same for an int8 layer: codes [count, columns], at least -127, and row scales [count].
  void pack_bytes(int first, int count, const int8_t* codes, const float* row_scales);
  void set_bias(const float* bias);  // [rows]

  LinearView view() const;
  DType dtype() const { return dtype_; }
  int rows() const { return rows_; }
  bool has_bias() const { return bias_.bytes() > 0; }
  int columns() const { return columns_; }
  int num_blocks() const { return padded_rows() / kBlockRows; }
  int padded_rows() const { return round_up(rows_, kPanelRows); }
  int operand_stride() const { return operand_words(dtype_, columns_); }
  size_t block_bytes() const { return jat::block_bytes(dtype_, columns_); }
  size_t bytes() const { return panels_.bytes() + bias_.bytes() + scales_.bytes() + correction_.bytes(); }

 private:
  void pack_int8_row(int row, const int8_t* codes, float row_scale);
  void pack_int4_group(int row, int group, const uint8_t* codes, int count, Int4Group fitted);

  DType dtype_;
  int rows_, columns_;
  Buffer panels_, bias_, scales_, correction_;
};

}  // namespace jat
