#include "linear.h"

#include <cmath>
#include <cstring>

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
      panels_(static_cast<size_t>(num_blocks()) * num_groups(dtype, columns) * kGroupBytes),
      bias_(has_bias ? sizeof(float) * padded_rows() : 0),
      scales_(dtype == DType::kInt8 ? sizeof(float) * padded_rows() : 0),
      correction_(dtype == DType::kInt8 ? sizeof(int32_t) * padded_rows() : 0) {}

void Linear::pack_rows(int first, int count, const float* weight) {
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
      int8_t* target = reinterpret_cast<int8_t*>(block) + 4 * lane;
      int32_t sum = 0;
      for (int c = 0; c < columns_; ++c) {
        const int quantized = static_cast<int>((source[c] * inverse + kRoundShift) - kRoundShift);
        target[c / 4 * step + c % 4] = static_cast<int8_t>(quantized);
        sum += quantized;
      }
      scales_.as<float>()[row] = largest / 127.0F;
      correction_.as<int32_t>()[row] = 128 * sum;
    }
  }
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
