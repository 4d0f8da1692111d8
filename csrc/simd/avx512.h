// AVX-512 F, BW, DQ and VL: vectors of 64 bytes, and masks.

#pragma once

#include <immintrin.h>

#define RVI_VECTOR_BYTES 64
#include "simd/vector.h"

namespace rvi {
namespace RVI_PATH {

// accumulators that stay in 32 registers: a tile of relay products, a tile of matrix products
constexpr int TILE_ROWS = 8, TILE_VECTORS = 3;
constexpr int PRODUCT_VECTORS = 4;

template <class F>
RVI_INLINE Vec<F> load_some(const F* from, int count) {
  if constexpr (sizeof(F) == 4) {
    return (FloatVec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
  } else {
    return (DoubleVec)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), from);
  }
}

template <class F>
RVI_INLINE void store_some(F* to, Vec<F> value, int count) {
  if constexpr (sizeof(F) == 4) {
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
  } else {
    _mm512_mask_storeu_pd(to, (__mmask8)((1u << count) - 1), (__m512d)value);
  }
}

template <class F>
RVI_INLINE F sum(Vec<F> value) {
  if constexpr (sizeof(F) == 4) {
    return _mm512_reduce_add_ps((__m512)value);
  } else {
    return _mm512_reduce_add_pd((__m512d)value);
  }
}

template <class F>
RVI_INLINE double wide_sum(Vec<F> value) {
  if constexpr (sizeof(F) == 4) {
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)value));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)value, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  } else {
    return sum<F>(value);
  }
}

RVI_INLINE FloatVec square_root(FloatVec value) { return (FloatVec)_mm512_sqrt_ps((__m512)value); }

RVI_INLINE DoubleVec square_root(DoubleVec value) {
  return (DoubleVec)_mm512_sqrt_pd((__m512d)value);
}

template <class F>
RVI_INLINE unsigned at_least(IntVec<F> key, typename Simd<F>::Int threshold) {
  if constexpr (sizeof(F) == 4) {
    return _mm512_cmpge_epi32_mask((__m512i)key, _mm512_set1_epi32(threshold));
  } else {
    return _mm512_cmpge_epi64_mask((__m512i)key, _mm512_set1_epi64(threshold));
  }
}

template <class F>
RVI_INLINE IntVec<F> lanes_of(std::uint32_t bits) {
  if constexpr (sizeof(F) == 4) {
    return (Int32Vec)_mm512_movm_epi32((__mmask16)bits);
  } else {
    return (Int64Vec)_mm512_movm_epi64((__mmask8)bits);
  }
}

RVI_INLINE Uint64Vec multiply_low(Uint64Vec a, Uint64Vec b) {
  return (Uint64Vec)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}

RVI_INLINE FloatVec load_halves(const Half* from) {
  return (FloatVec)_mm512_cvtph_ps(load<__m256i>(from));
}

RVI_INLINE int list_bits(const std::uint32_t* words, int size, std::uint32_t* list) {
  int count = 0;
  __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int k = 0; k < size; k += 16) {
    const __mmask16 bits = (__mmask16)(words[k / 32] >> (k % 32));
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(bits, numbers));
    count += __builtin_popcount(bits);
    numbers = _mm512_add_epi32(numbers, _mm512_set1_epi32(16));
  }
  return count;
}

}  // namespace RVI_PATH
}  // namespace rvi
