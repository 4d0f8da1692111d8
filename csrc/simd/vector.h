// Vectors of the path that a file is compiled for: types, memory, broadcast, shuffles.
//
// A path is one translation unit (cpu/<path>.cpp) that includes the kernels in a namespace of its
// own, so that the same source serves every instruction set. Everything in simd/ is inlined: no
// symbol of one path can be linked into another.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

// cpu/<path>.cpp names the path, simd/<set>.h the width; a header read on its own has these
#if !defined(RVI_PATH)
#define RVI_PATH portable
#endif
#if !defined(RVI_VECTOR_BYTES)
#define RVI_VECTOR_BYTES 16
#endif

#define RVI_INLINE inline __attribute__((always_inline))

namespace rvi {
namespace RVI_PATH {

constexpr int VECTOR_BYTES = RVI_VECTOR_BYTES;

typedef float FloatVec __attribute__((vector_size(VECTOR_BYTES)));
typedef double DoubleVec __attribute__((vector_size(VECTOR_BYTES)));
typedef std::int32_t Int32Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef std::uint32_t Uint32Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef std::int64_t Int64Vec __attribute__((vector_size(VECTOR_BYTES)));
typedef std::uint64_t Uint64Vec __attribute__((vector_size(VECTOR_BYTES)));

// For an element type: its vector, and the integer vector of the same shape (masks and sort keys).
template <class F>
struct Simd;

template <>
struct Simd<float> {
  using Vec = FloatVec;
  using Int = std::int32_t;
  using IntVec = Int32Vec;
  static constexpr int LANES = VECTOR_BYTES / 4;
  static constexpr Int SIGN_CLEARED = 0x7FFFFFFF;
  static constexpr Int INFINITY_KEY = 0x7F800000;
  static constexpr int MANTISSA_BITS = 23;
};

template <>
struct Simd<double> {
  using Vec = DoubleVec;
  using Int = std::int64_t;
  using IntVec = Int64Vec;
  static constexpr int LANES = VECTOR_BYTES / 8;
  static constexpr Int SIGN_CLEARED = 0x7FFFFFFFFFFFFFFF;
  static constexpr Int INFINITY_KEY = 0x7FF0000000000000;
  static constexpr int MANTISSA_BITS = 52;
};

template <class F>
using Vec = typename Simd<F>::Vec;
template <class F>
using IntVec = typename Simd<F>::IntVec;

template <class V>
RVI_INLINE V load(const void* from) {
  V result;
  std::memcpy(&result, from, sizeof(V));
  return result;
}

template <class V>
RVI_INLINE void store(void* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

// 16-bit floats, as they lie in memory.
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// LANES elements that are narrower than those of the vectors above.
template <class T, int LANES>
struct Narrow {
  typedef T Type __attribute__((vector_size(LANES * sizeof(T))));
};

template <class F>
RVI_INLINE Vec<F> broadcast(F value) {
  return value - Vec<F>{};  // value - 0 keeps the sign of a zero, value + 0 does not
}

template <class V, std::size_t... I>
RVI_INLINE V zip_half(V a, V b, std::index_sequence<I...>, std::integral_constant<int, 0>) {
  return __builtin_shufflevector(a, b, (int)(I % 2 ? sizeof...(I) + I / 2 : I / 2)...);
}
template <class V, std::size_t... I>
RVI_INLINE V zip_half(V a, V b, std::index_sequence<I...>, std::integral_constant<int, 1>) {
  return __builtin_shufflevector(
      a, b, (int)(sizeof...(I) / 2 + (I % 2 ? sizeof...(I) + I / 2 : I / 2))...);
}

// a0 b0 a1 b1 ...: half 0 has the first lanes of both, half 1 the last.
template <int HALF, class V>
RVI_INLINE V zip(V a, V b) {
  return zip_half(a, b, std::make_index_sequence<sizeof(V) / sizeof(a[0])>(),
                  std::integral_constant<int, HALF>());
}

RVI_INLINE std::int64_t round_up(std::int64_t size, std::int64_t step) {
  return (size + step - 1) / step * step;
}

}  // namespace RVI_PATH
}  // namespace rvi
