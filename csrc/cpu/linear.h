// The weights of a linear layer in the layout of kernels.h: packed once, read every step.
#pragma once

#include <memory>

#include "kernels.h"

namespace jat {

// Zeroed memory for weights, aligned to a cache line; in huge pages where the system has them.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0);
  ~Buffer();
  Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr, other.bytes_ = 0;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

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
  void pack_int4_group(int row, int group, const uint8_t* codes, int count, Int4Group fitted);

  DType dtype_;
  int rows_, columns_;
  Buffer panels_, bias_, scales_, correction_;
};

}  // namespace jat
