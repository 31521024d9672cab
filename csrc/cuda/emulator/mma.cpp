// Products of tensor cores on the CPU: each lane computes its four results from the registers of its warp.
#include "numbers.h"
#include "runtime.h"

namespace jat::emulator {

namespace {

// The numbers of a register: two of 16 bits, or a float.
int unpack(uint32_t bits, MmaType type, float (&values)[2]) {
  if (type == MmaType::kFloat32) {
    values[0] = bits_float(bits);
    return 1;
  }
  for (int i = 0; i < 2; ++i) {
    const auto half = static_cast<uint16_t>(bits >> 16 * i);
    values[i] = type == MmaType::kBFloat16 ? to_float(BFloat16{half}) : to_float(Float16{half});
  }
  return 2;
}

// The sum of products of two registers, after those before it. Exact up to the last bits of a double.
struct Sums {
  double exact = 0;                             // 16-bit types
  double high_low = 0, low_high = 0, high = 0;  // floats, by three products of TF32
};

void multiply(uint32_t a, uint32_t b, MmaType type, Sums& sums) {
  float left[2], right[2];
  const int count = unpack(a, type, left);
  unpack(b, type, right);
  if (type != MmaType::kFloat32) {
    for (int i = 0; i < count; ++i) sums.exact += static_cast<double>(left[i]) * right[i];
    return;
  }
  const float a_high = rounded_to_tf32(left[0]), a_low = rounded_to_tf32(left[0] - a_high);
  const float b_high = rounded_to_tf32(right[0]), b_low = rounded_to_tf32(right[0] - b_high);
  sums.high_low += static_cast<double>(a_high) * b_low;
  sums.low_high += static_cast<double>(a_low) * b_high;
  sums.high += static_cast<double>(a_high) * b_high;
}

}  // namespace

void mma(float (&c)[4], const uint32_t* a, int count, uint32_t b0, uint32_t b1, MmaType type) {
  uint32_t registers[kWarpRegisters] = {};
  for (int i = 0; i < count; ++i) registers[i] = a[i];
  registers[4] = b0;
  registers[5] = b1;
  const auto* all = exchange(registers, kWarpRegisters);
  const int lane = thread_index() % 32, group = lane / 4;

  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * (lane % 4) + i % 2;  // row: 0 for group, 1 for group + 8
    Sums sums;
    for (int k = 0; k < 2 * count; ++k) {
      const uint32_t left = all[4 * group + k % 4][row + k / 4 * 2];
      const uint32_t right = all[4 * column + k % 4][4 + k / 4];
      multiply(left, right, type, sums);
    }
    for (const double sum : {sums.exact, sums.high_low, sums.low_high, sums.high})
      c[i] = static_cast<float>(c[i] + sum);
  }
}

}  // namespace jat::emulator
