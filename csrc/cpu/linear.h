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
  // scale per row, max |weight| / 127; values are rounded to nearest, ties to even.
  void pack_rows(int first, int count, const float* weight);
  void set_bias(const float* bias);  // [rows]

  LinearView view() const;
  DType dtype() const { return dtype_; }
  int rows() const { return rows_; }
  bool has_bias() const { return bias_.bytes() > 0; }
  int columns() const { return columns_; }
  int num_blocks() const { return padded_rows() / kBlockRows; }
  int padded_rows() const { return round_up(rows_, kPanelRows); }
  int operand_stride() const { return num_groups(dtype_, columns_); }  // words of 4 bytes per token
  size_t bytes() const { return panels_.bytes() + bias_.bytes() + scales_.bytes() + correction_.bytes(); }

 private:
  DType dtype_;
  int rows_, columns_;
  Buffer panels_, bias_, scales_, correction_;
};

}  // namespace jat
