// NEON, which every AArch64 has: vectors of 16 bytes.

#pragma once

#include <arm_neon.h>

#define RVI_VECTOR_BYTES 16
#include "simd/any.h"
#include "simd/vector.h"

namespace rvi {
namespace RVI_PATH {

// accumulators that stay in 32 registers: a tile of relay products, a tile of matrix products
constexpr int TILE_ROWS = 4, TILE_VECTORS = 4;
constexpr int PRODUCT_VECTORS = 4;

using any::list_bits;
using any::load_some;
using any::store_some;

template <class F>
RVI_INLINE F sum(Vec<F> value) {
  if constexpr (sizeof(F) == 4) {
    return vaddvq_f32((float32x4_t)value);
  } else {
    return vaddvq_f64((float64x2_t)value);
  }
}

template <class F>
RVI_INLINE double wide_sum(Vec<F> value) {
  if constexpr (sizeof(F) == 4) {
    const float64x2_t low = vcvt_f64_f32(vget_low_f32((float32x4_t)value));
    return vaddvq_f64(vaddq_f64(low, vcvt_high_f64_f32((float32x4_t)value)));
  } else {
    return sum<F>(value);
  }
}

RVI_INLINE FloatVec square_root(FloatVec value) { return (FloatVec)vsqrtq_f32((float32x4_t)value); }

RVI_INLINE DoubleVec square_root(DoubleVec value) {
  return (DoubleVec)vsqrtq_f64((float64x2_t)value);
}

template <class F>
RVI_INLINE unsigned at_least(IntVec<F> key, typename Simd<F>::Int threshold) {
  if constexpr (sizeof(F) == 4) {
    const Uint32Vec weight = {1, 2, 4, 8};
    return vaddvq_u32((uint32x4_t)((Uint32Vec)(key >= threshold) & weight));
  } else {
    const Uint64Vec weight = {1, 2};
    return (unsigned)vaddvq_u64((uint64x2_t)((Uint64Vec)(key >= threshold) & weight));
  }
}

template <class F>
RVI_INLINE IntVec<F> lanes_of(std::uint32_t bits) {
  if constexpr (sizeof(F) == 4) {
    const Uint32Vec weight = {1, 2, 4, 8};
    return (Int32Vec)vtstq_u32(vdupq_n_u32(bits), (uint32x4_t)weight);
  } else {
    const Uint64Vec weight = {1, 2};
    return (Int64Vec)vtstq_u64(vdupq_n_u64(bits), (uint64x2_t)weight);
  }
}

RVI_INLINE Uint64Vec multiply_low(Uint64Vec a, Uint64Vec b) {
  return (Uint64Vec)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}

RVI_INLINE FloatVec load_halves(const Half* from) {
  return (FloatVec)vcvt_f32_f16(load<float16x4_t>(from));
}

}  // namespace RVI_PATH
}  // namespace rvi
