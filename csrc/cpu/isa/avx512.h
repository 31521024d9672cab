// Vectors of 16 lanes: AVX-512 with its dot products for bfloat16 and int8 (VNNI). Included by isa/avx512.cpp
// only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int kLanes = 16;

// A tile of a linear layer is a dot product's kMaxTokens tokens and these blocks: 16 of 32 registers are sums,
// in int4 24.
constexpr int kMaxBlocks = 2;

using V = __m512;

inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V broadcast(float x) { return _mm512_set1_ps(x); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline float reduce_add(V a) { return _mm512_reduce_add_ps(a); }
inline float reduce_max(V a) { return _mm512_reduce_max_ps(a); }

// a * 2^n for whole n in the range of normal numbers.
inline V scale_by_power(V a, V n) {
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
}

inline V load_bf16(const uint16_t* p) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
inline V load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_bf16(uint16_t* p, V v) {
  const __m256bh half = _mm512_cvtneps_pbh(v);
  __builtin_memcpy(p, &half, sizeof(half));
}
// v: whole numbers in [-128, 127]; stores bytes v + 128.
inline void store_offset_u8(uint8_t* p, V v) {
  const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(128));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(whole));
}

inline V load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// Dot products of a 64-byte group of weights, 16 rows of 1, 2 or 4 columns, with 4 bytes of activations.
struct DotF32 {
  static constexpr bool kIsInteger = false;
  static constexpr int kMaxTokens = 8;
  using Accumulator = V;
  using Weights = __m512;
  using Activation = __m512;
  static Accumulator zero() { return _mm512_setzero_ps(); }
  static Weights weights(const void* p) { return _mm512_loadu_ps(p); }
  static Activation activation(const uint32_t* p) {
    return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*p)));
  }
  static Accumulator dot(Accumulator acc, Weights w, Activation a) { return _mm512_fmadd_ps(w, a, acc); }
  static void to_float(Accumulator acc, V* out) { out[0] = acc; }
};

struct DotBF16 {
  static constexpr bool kIsInteger = false;
  static constexpr int kMaxTokens = 8;
  using Accumulator = V;
  using Weights = __m512bh;
  using Activation = __m512bh;
  static Accumulator zero() { return _mm512_setzero_ps(); }
  static Weights weights(const void* p) { return reinterpret_cast<Weights>(_mm512_loadu_si512(p)); }
  static Activation activation(const uint32_t* p) {
    return reinterpret_cast<Activation>(_mm512_set1_epi32(static_cast<int>(*p)));
  }
  static Accumulator dot(Accumulator acc, Weights w, Activation a) { return _mm512_dpbf16_ps(acc, w, a); }
  static void to_float(Accumulator acc, V* out) { out[0] = acc; }
};

struct DotI8 {
  static constexpr bool kIsInteger = true;
  static constexpr int kMaxTokens = 8;
  using Accumulator = __m512i;
  using Weights = __m512i;
  using Activation = __m512i;
  static Accumulator zero() { return _mm512_setzero_si512(); }
  static Weights weights(const void* p) { return _mm512_loadu_si512(p); }
  static Activation activation(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static Accumulator dot(Accumulator acc, Weights w, Activation a) { return _mm512_dpbusd_epi32(acc, a, w); }
  // correction: 128 times the sum of each row, since activations are stored with an offset of 128.
  static void to_float(Accumulator acc, const int32_t* correction, V* out) {
    out[0] = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, _mm512_loadu_si512(correction)));
  }
};

// Dot products of 64 bytes of codes, 16 rows of 8 columns, with 8 bytes of activations.
struct DotI4 {
  static constexpr int kMaxTokens = 6;
  using Accumulator = __m512i;
  struct Weights {
    __m512i low, high;  // columns 0-3, columns 4-7
  };
  using Activation = Weights;
  static Accumulator zero() { return _mm512_setzero_si512(); }
  static Weights weights(const void* p) {
    const __m512i codes = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    return {_mm512_and_si512(codes, mask), _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask)};
  }
  static Activation activation(const uint32_t* p) {
    return {_mm512_set1_epi32(static_cast<int>(p[0])), _mm512_set1_epi32(static_cast<int>(p[1]))};
  }
  static Accumulator dot(Accumulator acc, const Weights& w, const Activation& a) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc, w.low, a.low), w.high, a.high);
  }
  static void to_float(Accumulator acc, V* out) { out[0] = _mm512_cvtepi32_ps(acc); }
};

}  // namespace
