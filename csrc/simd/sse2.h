// SSE2, which every x86-64 has: vectors of 16 bytes.

#pragma once

#include <immintrin.h>

#define RVI_VECTOR_BYTES 16
#include "simd/any.h"
#include "simd/vector.h"

namespace rvi {
namespace RVI_PATH {

// accumulators that stay in 16 registers: a tile of relay products, a tile of matrix products
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
constexpr int PRODUCT_VECTORS = 2;

using any::lanes_of;
using any::list_bits;
using any::load_halves;
using any::load_some;
using any::store_some;
using any::sum;
using any::wide_sum;

RVI_INLINE FloatVec square_root(FloatVec value) { return (FloatVec)_mm_sqrt_ps((__m128)value); }

RVI_INLINE DoubleVec square_root(DoubleVec value) { return (DoubleVec)_mm_sqrt_pd((__m128d)value); }

template <class F>
RVI_INLINE unsigned at_least(IntVec<F> key, typename Simd<F>::Int threshold) {
  if constexpr (sizeof(F) == 4) {
    return _mm_movemask_ps((__m128)(key >= threshold));
  } else {
    return _mm_movemask_pd((__m128d)(key >= threshold));
  }
}

RVI_INLINE Uint64Vec multiply_low(Uint64Vec a, Uint64Vec b) {
  return (Uint64Vec)_mm_mul_epu32((__m128i)a, (__m128i)b);
}

}  // namespace RVI_PATH
}  // namespace rvi
