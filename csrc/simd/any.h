// What the kernels ask of an instruction set, written for all: simd/<set>.h takes from here what it
// has no instructions for.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/vector.h"

namespace rvi {
namespace RVI_PATH {
namespace any {

// The first `count` < LANES elements; the other lanes are 0 and not read.
template <class F>
RVI_INLINE Vec<F> load_some(const F* from, int count) {
  Vec<F> result = {};
  for (int lane = 0; lane < count; ++lane) result[lane] = from[lane];
  return result;
}

// Writes the first `count` < LANES lanes.
template <class F>
RVI_INLINE void store_some(F* to, Vec<F> value, int count) {
  for (int lane = 0; lane < count; ++lane) to[lane] = value[lane];
}

// The sum of all lanes.
template <class F>
RVI_INLINE F sum(Vec<F> value) {
  // halves first, so that no chain is longer than needed
  F parts[Simd<F>::LANES];
  store(parts, value);
  for (int width = Simd<F>::LANES / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) parts[lane] += parts[lane + width];
  }
  return parts[0];
}

// The same, added up in double.
template <class F>
RVI_INLINE double wide_sum(Vec<F> value) {
  double total = 0;
  for (int lane = 0; lane < Simd<F>::LANES; ++lane) total += (double)value[lane];
  return total;
}

RVI_INLINE FloatVec square_root(FloatVec value) {
  for (int lane = 0; lane < Simd<float>::LANES; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
}

RVI_INLINE DoubleVec square_root(DoubleVec value) {
  for (int lane = 0; lane < Simd<double>::LANES; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
}

// One bit per lane: key >= threshold.
template <class F>
RVI_INLINE unsigned at_least(IntVec<F> key, typename Simd<F>::Int threshold) {
  unsigned result = 0;
  for (int lane = 0; lane < Simd<F>::LANES; ++lane) {
    result |= (unsigned)(key[lane] >= threshold) << lane;
  }
  return result;
}

// Undoes `at_least`: all ones in the lanes whose bit is set. Higher bits are ignored.
template <class F>
RVI_INLINE IntVec<F> lanes_of(std::uint32_t bits) {
  using Int = typename Simd<F>::Int;
  IntVec<F> weight;
  for (int lane = 0; lane < Simd<F>::LANES; ++lane) weight[lane] = (Int)1 << lane;
  return (((Int)bits - IntVec<F>{}) & weight) == weight;
}

// Low halves of 64-bit lanes, multiplied to 64 bits; high halves are ignored.
RVI_INLINE Uint64Vec multiply_low(Uint64Vec a, Uint64Vec b) {
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
}

RVI_INLINE float to_float(Half half) {
  const std::uint32_t sign = (std::uint32_t)(half.bits & 0x8000) << 16;
  const std::uint32_t exponent = (half.bits >> 10) & 31, mantissa = half.bits & 1023;
  float result;
  if (exponent == 0) {
    result = (float)mantissa * 0x1p-24f;
    std::uint32_t bits;
    std::memcpy(&bits, &result, 4);
    bits |= sign;
    std::memcpy(&result, &bits, 4);
    return result;
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  const std::uint32_t bits = sign | (wide << 23) | (mantissa << 13);
  std::memcpy(&result, &bits, 4);
  return result;
}

// A vector of 16-bit floats.
RVI_INLINE FloatVec load_halves(const Half* from) {
  FloatVec result;
  for (int lane = 0; lane < Simd<float>::LANES; ++lane) result[lane] = to_float(from[lane]);
  return result;
}

// Writes which of `size` bits are set, in ascending order, and perhaps up to 16 entries more;
// returns how many.
RVI_INLINE int list_bits(const std::uint32_t* words, int size, std::uint32_t* list) {
  int count = 0;
  for (int word = 0; word * 32 < size; ++word) {
    for (std::uint32_t bits = words[word]; bits != 0; bits &= bits - 1) {
      list[count++] = word * 32 + __builtin_ctz(bits);
    }
  }
  return count;
}

}  // namespace any
}  // namespace RVI_PATH
}  // namespace rvi
