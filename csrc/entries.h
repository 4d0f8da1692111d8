// Entries of a batch: values of x in any dtype, which of them are observed, and their scales.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "calls.h"
#include "simd/math.h"
#include "simd/simd.h"

namespace rvi {
namespace RVI_PATH {

template <class F, class X>
RVI_INLINE Vec<F> load_values(const X* x) {
  constexpr int LANES = Simd<F>::LANES;
  if constexpr (std::is_same_v<X, F>) {
    return load<Vec<F>>(x);
  } else if constexpr (std::is_same_v<X, BFloat16>) {
    auto raw = load<typename Narrow<std::uint16_t, LANES>::Type>(x);
    return (FloatVec)(__builtin_convertvector(raw, Uint32Vec) << 16);
  } else if constexpr (std::is_same_v<X, Half>) {
    return load_halves(x);
  } else {
    auto raw = load<typename Narrow<std::uint8_t, LANES>::Type>(x);
    return __builtin_convertvector(__builtin_convertvector(raw, Int32Vec), FloatVec) *
           (float)(1.0 / 255.0);
  }
}

// x and output are those of entry d, the mask is that of its row.
template <class LAW, class X, MaskKind MASK, class F = typename LAW::Element>
RVI_INLINE typename LAW::Entries load_entries(const X* x, const F* output, const std::uint8_t* mask,
                                              std::int64_t d) {
  Vec<F> value = load_values<F>(x);
  IntVec<F> observed;
  if constexpr (MASK == MaskKind::bytes) {
    auto raw = load<typename Narrow<std::uint8_t, Simd<F>::LANES>::Type>(mask + d);
    observed = __builtin_convertvector(raw, IntVec<F>) != 0;
  } else if constexpr (MASK == MaskKind::bits) {
    // no vector goes over the end of a word: its lanes divide 32, and d is a multiple of them
    observed = lanes_of<F>(load<std::uint32_t>(mask + d / 32 * 4) >> (d % 32));
  } else {
    observed = value == value;
  }
  return LAW::entries(value, load<Vec<F>>(output), observed);
}

template <class LAW, class X, MaskKind MASK, class F = typename LAW::Element>
RVI_INLINE typename LAW::Entries load_some_entries(const X* x, const F* output,
                                                   const std::uint8_t* mask, std::int64_t d,
                                                   int count) {
  constexpr int LANES = Simd<F>::LANES;
  X some_x[LANES] = {};
  F some_output[LANES] = {};
  std::uint8_t some_mask[LANES] = {};
  std::memcpy(some_x, x, count * sizeof(X));
  std::memcpy(some_output, output, count * sizeof(F));
  if constexpr (MASK == MaskKind::bytes) {
    std::memcpy(some_mask, mask + d, count);
    mask = some_mask, d = 0;
  }
  typename LAW::Entries result = load_entries<LAW, X, MASK>(some_x, some_output, mask, d);
  result.observed &= lanes_of<F>((1u << count) - 1);
  return result;
}

template <MaskKind MASK>
RVI_INLINE const std::uint8_t* row_mask(const std::uint8_t* mask, std::int64_t row,
                                        std::int64_t width) {
  if (MASK == MaskKind::none) return nullptr;
  return mask + row * (MASK == MaskKind::bytes ? width : (width + 31) / 32 * 4);
}

// 1/s and, where wanted, log s of `count` scales; the arrays are whole vectors.
template <class F>
inline void prepare_scales(const F* scale, std::int64_t count, F* inverse, F* logarithms) {
  constexpr int LANES = Simd<F>::LANES;
  for (std::int64_t d = 0; d < count; d += LANES) {
    Vec<F> s = load_up_to(scale + d, count - d);
    store(inverse + d, F(1) / s);
    if (logarithms) store(logarithms + d, logarithm(s));
  }
}

// body(x, mask) with an element of x's type and a std::integral_constant of the kind of the mask.
template <class F, class Body>
void for_entries(DataType x_type, MaskKind mask_kind, const Body& body) {
  auto masked = [&](auto x) {
    switch (mask_kind) {
      case MaskKind::none:
        return body(x, std::integral_constant<MaskKind, MaskKind::none>());
      case MaskKind::bytes:
        return body(x, std::integral_constant<MaskKind, MaskKind::bytes>());
      case MaskKind::bits:
        return body(x, std::integral_constant<MaskKind, MaskKind::bits>());
    }
  };
  if constexpr (sizeof(F) == 4) {
    if (x_type == DataType::float16) return masked(Half());
    if (x_type == DataType::bfloat16) return masked(BFloat16());
    if (x_type == DataType::uint8) return masked(std::uint8_t());
  }
  masked(F());
}

}  // namespace RVI_PATH
}  // namespace rvi
