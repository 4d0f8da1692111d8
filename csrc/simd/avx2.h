// AVX2, FMA and F16C: vectors of 32 bytes.

#pragma once

#include <immintrin.h>

#define RVI_VECTOR_BYTES 32
#include "simd/any.h"
#include "simd/vector.h"

namespace rvi {
namespace RVI_PATH {

// accumulators that stay in 16 registers: a tile of relay products, a tile of matrix products
constexpr int TILE_ROWS = 4, TILE_VECTORS = 3;
constexpr int PRODUCT_VECTORS = 2;

using any::lanes_of;
using any::list_bits;
using any::load_some;
using any::store_some;
using any::sum;
using any::wide_sum;

RVI_INLINE FloatVec square_root(FloatVec value) { return (FloatVec)_mm256_sqrt_ps((__m256)value); }

RVI_INLINE DoubleVec square_root(DoubleVec value) {
  return (DoubleVec)_mm256_sqrt_pd((__m256d)value);
}

template <class F>
RVI_INLINE unsigned at_least(IntVec<F> key, typename Simd<F>::Int threshold) {
  if constexpr (sizeof(F) == 4) {
    return _mm256_movemask_ps((__m256)(key >= threshold));
  } else {
    return _mm256_movemask_pd((__m256d)(key >= threshold));
  }
}

RVI_INLINE Uint64Vec multiply_low(Uint64Vec a, Uint64Vec b) {
  return (Uint64Vec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}

RVI_INLINE FloatVec load_halves(const Half* from) {
  return (FloatVec)_mm256_cvtph_ps(load<__m128i>(from));
}

}  // namespace RVI_PATH
}  // namespace rvi
