// Vectors of 4 lanes in the vector extension of GCC and Clang, for any processor (SSE2, NEON, ...). Included
// by isa/generic.cpp only.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

constexpr int kLanes = 4;

// A tile of a linear layer is a dot product's kMaxTokens tokens and these blocks.
constexpr int kMaxBlocks = 1;

typedef float V __attribute__((vector_size(16)));
typedef int32_t Vi __attribute__((vector_size(16)));

inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, V v) { std::memcpy(p, &v, sizeof(v)); }
inline V broadcast(float x) { return V{x, x, x, x}; }
inline V add(V a, V b) { return a + b; }
inline V sub(V a, V b) { return a - b; }
inline V mul(V a, V b) { return a * b; }
inline V div(V a, V b) { return a / b; }
#if defined(__aarch64__)
inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
#else
inline V fma(V a, V b, V c) { return a * b + c; }
#endif
inline V min(V a, V b) { return a < b ? a : b; }
inline V max(V a, V b) { return a > b ? a : b; }
// To nearest, ties to even, for |a| < 2^22: adding 1.5 * 2^23 leaves no bits of the fraction.
inline V round(V a) {
  const V shift = broadcast(12582912.0F);
  return (a + shift) - shift;
}
inline float reduce_add(V a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline float reduce_max(V a) {
  const float x = a[0] > a[2] ? a[0] : a[2], y = a[1] > a[3] ? a[1] : a[3];
  return x > y ? x : y;
}

// a * 2^n for whole n in the range of normal numbers.
inline V scale_by_power(V a, V n) {
  const Vi exponent = __builtin_convertvector(n, Vi) << 23;
  return reinterpret_cast<V>(reinterpret_cast<Vi>(a) + exponent);
}

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof(x));
  return x;
}
inline V load_bf16(const uint16_t* p) {
  return V{from_bf16(p[0]), from_bf16(p[1]), from_bf16(p[2]), from_bf16(p[3])};
}
inline V load_i8(const int8_t* p) {
  return V{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
           static_cast<float>(p[3])};
}
// Rounds to nearest, ties to even.
inline void store_bf16(uint16_t* p, V v) {
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    const float x = v[i];
    std::memcpy(&bits, &x, sizeof(bits));
    const uint16_t rounded = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    std::memcpy(p + i, &rounded, sizeof(rounded));  // not p[i] =: the memory is also read as 32-bit pairs
  }
}
// v: whole numbers in [-128, 127]; stores bytes v + 128.
inline void store_offset_u8(uint8_t* p, V v) {
  const Vi whole = __builtin_convertvector(v, Vi);
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(whole[i] + 128);
}

inline V load_u8(const uint8_t* p) {
  return V{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
           static_cast<float>(p[3])};
}

// Dot products of a 64-byte group of weights, 16 rows of 1, 2 or 4 columns, with 4 bytes of activations.
struct DotF32 {
  static constexpr bool kIsInteger = false;
  static constexpr int kMaxTokens = 4;
  struct Accumulator {
    V part[4];
  };
  using Weights = Accumulator;
  using Activation = V;
  static Accumulator zero() { return {}; }
  static Weights weights(const void* p) {
    const float* w = static_cast<const float*>(p);
    return {{load(w), load(w + 4), load(w + 8), load(w + 12)}};
  }
  static Activation activation(const uint32_t* p) {
    float a;
    std::memcpy(&a, p, sizeof(a));
    return broadcast(a);
  }
  static Accumulator dot(Accumulator acc, const Weights& w, Activation a) {
    for (int i = 0; i < 4; ++i) acc.part[i] = fma(w.part[i], a, acc.part[i]);
    return acc;
  }
  static void to_float(const Accumulator& acc, V* out) {
    for (int i = 0; i < 4; ++i) out[i] = acc.part[i];
  }
};

struct DotBF16 {
  static constexpr bool kIsInteger = false;
  static constexpr int kMaxTokens = 4;
  using Accumulator = DotF32::Accumulator;
  struct Weights {
    DotF32::Weights even, odd;  // the two columns
  };
  struct Activation {
    V even, odd;
  };
  static Accumulator zero() { return {}; }
  static Weights weights(const void* p) {
    Weights w;
    for (int i = 0; i < 4; ++i) {
      Vi bits;
      std::memcpy(&bits, static_cast<const char*>(p) + 16 * i, sizeof(bits));
      w.even.part[i] = reinterpret_cast<V>(bits << 16);
      w.odd.part[i] = reinterpret_cast<V>(bits & static_cast<int32_t>(0xffff0000));
    }
    return w;
  }
  static Activation activation(const uint32_t* p) {
    return {broadcast(from_bf16(static_cast<uint16_t>(*p))),
            broadcast(from_bf16(static_cast<uint16_t>(*p >> 16)))};
  }
  static Accumulator dot(Accumulator acc, const Weights& w, const Activation& a) {
    return DotF32::dot(DotF32::dot(acc, w.even, a.even), w.odd, a.odd);
  }
  static void to_float(const Accumulator& acc, V* out) { DotF32::to_float(acc, out); }
};

struct DotI8 {
  static constexpr bool kIsInteger = true;
  static constexpr int kMaxTokens = 4;
  struct Accumulator {
    int32_t row[16];
  };
  using Weights = const int8_t*;
  struct Activation {
    int32_t column[4];
  };
  static Accumulator zero() { return {}; }
  static Weights weights(const void* p) { return static_cast<const int8_t*>(p); }
  static Activation activation(const uint32_t* p) {
    uint8_t a[4];
    std::memcpy(a, p, sizeof(a));
    return {{a[0], a[1], a[2], a[3]}};
  }
  static Accumulator dot(Accumulator acc, Weights w, const Activation& a) {
    for (int r = 0; r < 16; ++r)
      for (int c = 0; c < 4; ++c) acc.row[r] += w[4 * r + c] * a.column[c];
    return acc;
  }
  // correction: 128 times the sum of each row, since activations are stored with an offset of 128.
  static void to_float(const Accumulator& acc, const int32_t* correction, V* out) {
    for (int r = 0; r < 16; ++r) out[r / 4][r % 4] = static_cast<float>(acc.row[r] - correction[r]);
  }
};

// Dot products of 64 bytes of codes, 16 rows of 8 columns, with 8 bytes of activations.
struct DotI4 {
  static constexpr int kMaxTokens = 3;
  struct Accumulator {
    int32_t row[16];
  };
  using Weights = const uint8_t*;
  struct Activation {
    int8_t column[8];
  };
  static Accumulator zero() { return {}; }
  static Weights weights(const void* p) { return static_cast<const uint8_t*>(p); }
  static Activation activation(const uint32_t* p) {
    Activation a;
    std::memcpy(a.column, p, sizeof(a));
    return a;
  }
  static Accumulator dot(Accumulator acc, Weights w, const Activation& a) {
    for (int r = 0; r < 16; ++r)
      for (int c = 0; c < 4; ++c)
        acc.row[r] += (w[4 * r + c] & 15) * a.column[c] + (w[4 * r + c] >> 4) * a.column[c + 4];
    return acc;
  }
  static void to_float(const Accumulator& acc, V* out) {
    for (int r = 0; r < 16; ++r) out[r / 4][r % 4] = static_cast<float>(acc.row[r]);
  }
};

}  // namespace
