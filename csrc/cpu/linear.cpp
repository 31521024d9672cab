#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace jat {

namespace {

// 1.5 * 2^23: adding and subtracting it rounds |x| < 2^22 to a whole number, ties to even.
constexpr float kRoundShift = 12582912.0F;

// Rounds to nearest, ties to even; x must be finite.
uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

Linear::Linear(DType dtype, int rows, int columns, bool has_bias)
    : dtype_(dtype),
      rows_(rows),
      columns_(columns),
      panels_(num_blocks() * jat::block_bytes(dtype, columns)),
      bias_(has_bias ? sizeof(float) * padded_rows() : 0),
      scales_(dtype == DType::kInt8 || dtype == DType::kInt4 ? sizeof(float) * padded_rows() : 0),
      correction_(dtype == DType::kInt8 ? sizeof(int32_t) * padded_rows() : 0) {}

void Linear::pack_rows(int first, int count, const float* weight) {
  if (dtype_ == DType::kInt4) {
    for (int i = 0; i < count; ++i) {
      const float* row = weight + static_cast<size_t>(i) * columns_;
      const float row_scale = int4_row_scale(row, columns_);
      scales_.as<float>()[first + i] = row_scale;
      for (int c = 0; c < columns_; c += kInt4Columns) {
        const int size = std::min(kInt4Columns, columns_ - c);
        uint8_t codes[kInt4Columns];
        const Int4Group group = fit_int4(row + c, size, row_scale);
        round_int4(row + c, size, row_scale, group, codes);
        pack_int4_group(first + i, c / kInt4Columns, codes, size, group);
      }
    }
    return;
  }

  const size_t step = 2 * kGroupBytes;  // between groups of one block: the two blocks of a panel alternate
  const size_t panel_bytes = num_groups(dtype_, columns_) * step;
  for (int i = 0; i < count; ++i) {
    const int row = first + i, lane = row % kBlockRows;
    const float* source = weight + static_cast<size_t>(i) * columns_;
    uint8_t* block =
        panels_.as<uint8_t>() + row / kPanelRows * panel_bytes + row / kBlockRows % 2 * kGroupBytes;

    if (dtype_ == DType::kFloat32) {
      float* target = reinterpret_cast<float*>(block) + lane;
      for (int c = 0; c < columns_; ++c) target[c * step / sizeof(float)] = source[c];
    } else if (dtype_ == DType::kBFloat16) {
      uint16_t* target = reinterpret_cast<uint16_t*>(block) + 2 * lane;
      for (int c = 0; c < columns_; ++c) target[c / 2 * step / sizeof(uint16_t) + c % 2] = to_bf16(source[c]);
    } else {
      float largest = 0;
      for (int c = 0; c < columns_; ++c) largest = std::fmax(largest, std::fabs(source[c]));
      const float inverse = largest > 1e-30F ? 127.0F / largest : 0.0F;
      std::vector<int8_t> codes(columns_);
      for (int c = 0; c < columns_; ++c) {
        codes[c] = static_cast<int8_t>(static_cast<int>((source[c] * inverse + kRoundShift) - kRoundShift));
      }
      pack_int8_row(row, codes.data(), largest / 127.0F);
    }
  }
}

void Linear::pack_bytes(int first, int count, const int8_t* codes, const float* row_scales) {
  for (int i = 0; i < count; ++i) {
    pack_int8_row(first + i, codes + static_cast<size_t>(i) * columns_, row_scales[i]);
  }
}

void Linear::pack_int8_row(int row, const int8_t* codes, float row_scale) {
  const size_t step = 2 * kGroupBytes;
  const size_t panel_bytes = num_groups(dtype_, columns_) * step;
  uint8_t* block =
      panels_.as<uint8_t>() + row / kPanelRows * panel_bytes + row / kBlockRows % 2 * kGroupBytes;
  int8_t* target = reinterpret_cast<int8_t*>(block) + 4 * (row % kBlockRows);
  int32_t sum = 0;
  for (int c = 0; c < columns_; ++c) {
    target[c / 4 * step + c % 4] = codes[c];
    sum += codes[c];
  }
  scales_.as<float>()[row] = row_scale;
  correction_.as<int32_t>()[row] = 128 * sum;
}

void Linear::pack_codes(int first, int count, const uint8_t* codes, const uint8_t* scales,
                        const uint8_t* minima, const float* row_scales) {
  const int groups = num_groups(dtype_, columns_);
  for (int i = 0; i < count; ++i) {
    scales_.as<float>()[first + i] = row_scales[i];
    for (int g = 0; g < groups; ++g) {
      const size_t at = static_cast<size_t>(i) * groups + g;
      const int begin = g * kInt4Columns;
      pack_int4_group(first + i, g, codes + static_cast<size_t>(i) * columns_ + begin,
                      std::min(kInt4Columns, columns_ - begin), {scales[at], minima[at]});
    }
  }
}

// codes: of `count` columns; padding has code 0, and activations of 0.
void Linear::pack_int4_group(int row, int group, const uint8_t* codes, int count, Int4Group fitted) {
  const int block = row / kBlockRows % 2, lane = row % kBlockRows;
  uint8_t* panel =
      panels_.as<uint8_t>() +
      (static_cast<size_t>(row / kPanelRows) * num_groups(dtype_, columns_) + group) * kInt4PanelBytes;
  for (int c = 0; c < count; ++c) {
    uint8_t& byte = panel[(c / 8 * 2 + block) * kGroupBytes + 4 * lane + c % 4];
    const bool is_high = c % 8 >= 4;
    byte = static_cast<uint8_t>(is_high ? (byte & 15) | codes[c] << 4 : (byte & 0xf0) | codes[c]);
  }
  uint8_t* scales = panel + 2 * kInt4Columns / 8 * kGroupBytes + row % kPanelRows;
  scales[0] = fitted.scale;
  scales[kPanelRows] = fitted.minimum;
}

void Linear::set_bias(const float* bias) { std::memcpy(bias_.as<float>(), bias, sizeof(float) * rows_); }

LinearView Linear::view() const {
  return {dtype_,
          num_groups(dtype_, columns_),
          panels_.as<uint8_t>(),
          bias_.as<float>(),
          scales_.as<float>(),
          correction_.as<int32_t>()};
}

}  // namespace jat
