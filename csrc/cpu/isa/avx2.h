// Vectors of 8 lanes: AVX2 with FMA. Included by isa/avx2.cpp only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int kLanes = 8;

// A tile of a linear layer is a dot product's kMaxTokens tokens and these blocks: 8 of 16 registers are sums.
constexpr int kMaxBlocks = 1;

using V = __m256;

inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V broadcast(float x) { return _mm256_set1_ps(x); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline float reduce_add(V a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
inline float reduce_max(V a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

// a * 2^n for whole n in the range of normal numbers.
inline V scale_by_power(V a, V n) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}

inline V load_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
inline V load_i8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// Rounds to nearest, ties to even.
inline void store_bf16(uint16_t* p, V v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i high = _mm256_srli_epi32(up, 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
// v: whole numbers in [-128, 127]; stores bytes v + 128.
inline void store_offset_u8(uint8_t* p, V v) {
  const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(128));
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

inline V load_u8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// Dot products of a 64-byte group of weights, 16 rows of 1, 2 or 4 columns, with 4 bytes of activations.
struct DotF32 {
  static constexpr bool kIsInteger = false;
  static constexpr int kMaxTokens = 4;
  struct Accumulator {
    V low, high;  // rows 0-7, rows 8-15
  };
  using Weights = Accumulator;
  using Activation = V;
  static Accumulator zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Weights weights(const void* p) {
    const float* w = static_cast<const float*>(p);
    return {load(w), load(w + 8)};
  }
  static Activation activation(const uint32_t* p) {
    return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(*p)));
  }
  static Accumulator dot(Accumulator acc, const Weights& w, Activation a) {
    return {fma(w.low, a, acc.low), fma(w.high, a, acc.high)};
  }
  static void to_float(Accumulator acc, V* out) {
    out[0] = acc.low;
    out[1] = acc.high;
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
  static Accumulator zero() { return DotF32::zero(); }
  static V high_half(__m256i bits) {
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static V low_half(__m256i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)); }
  static Weights weights(const void* p) {
    const __m256i a = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    const __m256i b = _mm256_loadu_si256(static_cast<const __m256i*>(p) + 1);
    return {{low_half(a), low_half(b)}, {high_half(a), high_half(b)}};
  }
  static Activation activation(const uint32_t* p) {
    const __m256i pair = _mm256_set1_epi32(static_cast<int>(*p));
    return {low_half(pair), high_half(pair)};
  }
  static Accumulator dot(Accumulator acc, const Weights& w, const Activation& a) {
    return DotF32::dot(DotF32::dot(acc, w.even, a.even), w.odd, a.odd);
  }
  static void to_float(Accumulator acc, V* out) { DotF32::to_float(acc, out); }
};

struct DotI8 {
  static constexpr bool kIsInteger = true;
  static constexpr int kMaxTokens = 2;
  struct Accumulator {
    __m256i part[4];  // 4 rows each, with 2 partial sums per row
  };
  // Bytes widened to 16 bits: AVX2's sum of two products of bytes saturates.
  using Weights = Accumulator;
  using Activation = __m256i;
  static Accumulator zero() {
    const __m256i z = _mm256_setzero_si256();
    return {{z, z, z, z}};
  }
  static Weights weights(const void* p) {
    const __m128i* w = static_cast<const __m128i*>(p);
    return {{_mm256_cvtepi8_epi16(_mm_loadu_si128(w)), _mm256_cvtepi8_epi16(_mm_loadu_si128(w + 1)),
             _mm256_cvtepi8_epi16(_mm_loadu_si128(w + 2)), _mm256_cvtepi8_epi16(_mm_loadu_si128(w + 3))}};
  }
  static Activation activation(const uint32_t* p) {
    return _mm256_cvtepu8_epi16(_mm_set1_epi32(static_cast<int>(*p)));
  }
  static Accumulator dot(Accumulator acc, const Weights& w, Activation a) {
    for (int i = 0; i < 4; ++i) acc.part[i] = _mm256_add_epi32(acc.part[i], _mm256_madd_epi16(w.part[i], a));
    return acc;
  }
  // correction: 128 times the sum of each row, since activations are stored with an offset of 128.
  static void to_float(const Accumulator& acc, const int32_t* correction, V* out) {
    for (int half = 0; half < 2; ++half) {
      const __m256i pairs =
          _mm256_hadd_epi32(acc.part[2 * half], acc.part[2 * half + 1]);  // rows 0 1 4 5 2 3 6 7
      const __m256i rows = _mm256_permute4x64_epi64(pairs, 0xd8);
      const __m256i offset = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(correction + 8 * half));
      out[half] = _mm256_cvtepi32_ps(_mm256_sub_epi32(rows, offset));
    }
  }
};

// Dot products of 64 bytes of codes, 16 rows of 8 columns, with 8 bytes of activations.
struct DotI4 {
  static constexpr int kMaxTokens = 3;
  // Rows 0-7 and rows 8-15, with 2 partial sums of 16 bits a row: the 16 products that each takes in a group of 32
  // columns are below 15 * 127.
  struct Accumulator {
    __m256i part[2];
  };
  struct Weights {
    __m256i low[2], high[2];  // columns 0-3, columns 4-7
  };
  struct Activation {
    __m256i low, high;
  };
  static Accumulator zero() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  static Weights weights(const void* p) {
    const __m256i mask = _mm256_set1_epi8(15);
    Weights w;
    for (int i = 0; i < 2; ++i) {
      const __m256i codes = _mm256_loadu_si256(static_cast<const __m256i*>(p) + i);
      w.low[i] = _mm256_and_si256(codes, mask);
      w.high[i] = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
    }
    return w;
  }
  static Activation activation(const uint32_t* p) {
    return {_mm256_set1_epi32(static_cast<int>(p[0])), _mm256_set1_epi32(static_cast<int>(p[1]))};
  }
  static Accumulator dot(Accumulator acc, const Weights& w, const Activation& a) {
    for (int i = 0; i < 2; ++i) {
      acc.part[i] = _mm256_add_epi16(acc.part[i], _mm256_maddubs_epi16(w.low[i], a.low));
      acc.part[i] = _mm256_add_epi16(acc.part[i], _mm256_maddubs_epi16(w.high[i], a.high));
    }
    return acc;
  }
  static void to_float(const Accumulator& acc, V* out) {
    for (int i = 0; i < 2; ++i)
      out[i] = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc.part[i], _mm256_set1_epi16(1)));
  }
};

}  // namespace
