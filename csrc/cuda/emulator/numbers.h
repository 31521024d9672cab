// The number types of a GPU, on the CPU: conversions round as the hardware's do.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace jat {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }
inline float to_float(Float16 value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Scaling by 2^112 makes the exponent right, for subnormal numbers too.
  return bits_float(float_bits(bits_float(rest << 13) * 0x1p112f) | sign);
}

template <typename W>
W from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = float_bits(value);
  if (std::isnan(value)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
inline Float16 from_float<Float16>(float value) {
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000u;
  const float size = std::fabs(value);
  if (std::isnan(value)) return {0x7fff};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (size < 0x1p-14f)  // subnormal: a multiple of 2^-24
    return {static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(size * 0x1p24f)))};
  const uint32_t rest = (bits & 0x7fffffffu) - (112u << 23);
  return {static_cast<uint16_t>(sign | (rest + 0xfffu + (rest >> 13 & 1u)) >> 13)};
}

// TF32 has 10 bits of mantissa; cvt.rna rounds halves away from zero.
inline float rounded_to_tf32(float value) {
  if (!std::isfinite(value)) return value;
  return bits_float((float_bits(value) + 0x1000u) & ~0x1fffu);
}

}  // namespace jat
