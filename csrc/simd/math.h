// exp and log of vectors. float: polynomials of the Cephes library (Moshier), errors below 2 units
// in the last place. double: the standard library.

#pragma once

#include <cmath>
#include <limits>

#include "simd/simd.h"

namespace rvi {
namespace RVI_PATH {

RVI_INLINE FloatVec exponential(FloatVec x) {
  // clamped so that 2^n is a normal number; what is below becomes 0, which no caller can tell
  FloatVec clamped = x < -87.0f ? broadcast(-87.0f) : x;
  clamped = clamped > 88.0f ? broadcast(88.0f) : clamped;
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  FloatVec shifted = clamped * 1.44269504088896341f + round;
  FloatVec n = shifted - round;
  FloatVec r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  FloatVec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Int32Vec power = ((Int32Vec)shifted - 0x4B400000 + 127) << 23;
  FloatVec result = p * (FloatVec)power;
  return x < -87.0f ? FloatVec{} : result;
}

RVI_INLINE DoubleVec exponential(DoubleVec x) {
  for (int lane = 0; lane < Simd<double>::LANES; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

// x normal and positive.
RVI_INLINE FloatVec logarithm_of_normal(FloatVec x) {
  const std::int32_t root_half = 0x3F3504F3;
  Int32Vec bits = (Int32Vec)x - root_half;
  FloatVec e = __builtin_convertvector(bits >> 23, FloatVec);
  FloatVec f = (FloatVec)((bits & 0x7FFFFF) + root_half) - 1.0f;
  FloatVec square = f * f;
  FloatVec p = 7.0376836292e-2f * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * square;
  p = e * -2.12194440e-4f + p;
  p = -0.5f * square + p;
  return (f + p) + e * 0.693359375f;
}

RVI_INLINE FloatVec logarithm_from_1_to_2(FloatVec x) { return logarithm_of_normal(x); }

RVI_INLINE FloatVec logarithm(FloatVec x) {
  const float smallest = std::numeric_limits<float>::min();
  const float largest = std::numeric_limits<float>::max();
  FloatVec result = logarithm_of_normal(x);
  for (int lane = 0; lane < Simd<float>::LANES; ++lane) {
    if (!(x[lane] >= smallest && x[lane] <= largest)) result[lane] = std::log(x[lane]);
  }
  return result;
}

RVI_INLINE DoubleVec logarithm(DoubleVec x) {
  for (int lane = 0; lane < Simd<double>::LANES; ++lane) x[lane] = std::log(x[lane]);
  return x;
}

RVI_INLINE DoubleVec logarithm_from_1_to_2(DoubleVec x) { return logarithm(x); }

}  // namespace RVI_PATH
}  // namespace rvi
