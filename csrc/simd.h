// Vectors of the path this file is compiled for, and the functions of them that the kernels need.
//
// A path is one translation unit (cpu_<path>.cpp) that includes the kernel headers in a namespace
// of its own, so that the same source serves AVX-512, AVX2 and any other machine. Everything here
// is inlined: no symbol of one path can be linked into another.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#if defined(RVI_AVX512) || defined(RVI_AVX2) || defined(__SSE2__)
#include <immintrin.h>
#endif

#define RVI_INLINE inline __attribute__((always_inline))

namespace rvi {
namespace RVI_PATH {

#if defined(RVI_AVX512)
constexpr int VECTOR_BYTES = 64;
#elif defined(RVI_AVX2)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

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

// The first `count` < LANES elements; the other lanes are 0 and not read.
template <class F>
RVI_INLINE Vec<F> load_some(const F* from, int count) {
#if defined(RVI_AVX512)
  if constexpr (sizeof(F) == 4) {
    return (FloatVec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
  } else {
    return (DoubleVec)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), from);
  }
#else
  Vec<F> result = {};
  for (int lane = 0; lane < count; ++lane) result[lane] = from[lane];
  return result;
#endif
}

template <class F>
RVI_INLINE void store_some(F* to, Vec<F> value, int count) {
#if defined(RVI_AVX512)
  if constexpr (sizeof(F) == 4) {
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
  } else {
    _mm512_mask_storeu_pd(to, (__mmask8)((1u << count) - 1), (__m512d)value);
  }
#else
  for (int lane = 0; lane < count; ++lane) to[lane] = value[lane];
#endif
}

template <class F>
RVI_INLINE Vec<F> load_up_to(const F* from, std::int64_t count) {
  return count >= Simd<F>::LANES ? load<Vec<F>>(from) : load_some<F>(from, (int)count);
}

template <class F>
RVI_INLINE void store_up_to(F* to, Vec<F> value, std::int64_t count) {
  if (count >= Simd<F>::LANES) {
    store(to, value);
  } else {
    store_some<F>(to, value, (int)count);
  }
}

template <class F>
RVI_INLINE Vec<F> broadcast(F value) {
  return value - Vec<F>{};  // value - 0 keeps the sign of a zero, value + 0 does not
}

template <class F>
RVI_INLINE F sum(Vec<F> value) {
#if defined(RVI_AVX512)
  if constexpr (sizeof(F) == 4) {
    return _mm512_reduce_add_ps((__m512)value);
  } else {
    return _mm512_reduce_add_pd((__m512d)value);
  }
#else
  // halves first, so that no chain is longer than needed
  F parts[Simd<F>::LANES];
  store(parts, value);
  for (int width = Simd<F>::LANES / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) parts[lane] += parts[lane + width];
  }
  return parts[0];
#endif
}

// The same, added up in double.
template <class F>
RVI_INLINE double wide_sum(Vec<F> value) {
#if defined(RVI_AVX512)
  if constexpr (sizeof(F) == 4) {
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)value));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)value, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  } else {
    return sum<F>(value);
  }
#else
  double total = 0;
  for (int lane = 0; lane < Simd<F>::LANES; ++lane) total += (double)value[lane];
  return total;
#endif
}

RVI_INLINE FloatVec square_root(FloatVec value) {
#if defined(RVI_AVX512)
  return (FloatVec)_mm512_sqrt_ps((__m512)value);
#elif defined(RVI_AVX2)
  return (FloatVec)_mm256_sqrt_ps((__m256)value);
#elif defined(__SSE2__)
  return (FloatVec)_mm_sqrt_ps((__m128)value);
#else
  for (int lane = 0; lane < Simd<float>::LANES; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
#endif
}

RVI_INLINE DoubleVec square_root(DoubleVec value) {
#if defined(RVI_AVX512)
  return (DoubleVec)_mm512_sqrt_pd((__m512d)value);
#elif defined(RVI_AVX2)
  return (DoubleVec)_mm256_sqrt_pd((__m256d)value);
#elif defined(__SSE2__)
  return (DoubleVec)_mm_sqrt_pd((__m128d)value);
#else
  for (int lane = 0; lane < Simd<double>::LANES; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
#endif
}

// One bit per lane: key >= threshold.
template <class F>
RVI_INLINE unsigned at_least(IntVec<F> key, typename Simd<F>::Int threshold) {
#if defined(RVI_AVX512)
  if constexpr (sizeof(F) == 4) {
    return _mm512_cmpge_epi32_mask((__m512i)key, _mm512_set1_epi32(threshold));
  } else {
    return _mm512_cmpge_epi64_mask((__m512i)key, _mm512_set1_epi64(threshold));
  }
#elif defined(RVI_AVX2)
  if constexpr (sizeof(F) == 4) {
    return _mm256_movemask_ps((__m256)(key >= threshold));
  } else {
    return _mm256_movemask_pd((__m256d)(key >= threshold));
  }
#elif defined(__SSE2__)
  if constexpr (sizeof(F) == 4) {
    return _mm_movemask_ps((__m128)(key >= threshold));
  } else {
    return _mm_movemask_pd((__m128d)(key >= threshold));
  }
#else
  unsigned result = 0;
  for (int lane = 0; lane < Simd<F>::LANES; ++lane) {
    result |= (unsigned)(key[lane] >= threshold) << lane;
  }
  return result;
#endif
}

// Undoes `at_least`: all ones in the lanes whose bit is set. Higher bits are ignored.
template <class F>
RVI_INLINE IntVec<F> lanes_of(std::uint32_t bits) {
#if defined(RVI_AVX512)
  if constexpr (sizeof(F) == 4) {
    return (Int32Vec)_mm512_movm_epi32((__mmask16)bits);
  } else {
    return (Int64Vec)_mm512_movm_epi64((__mmask8)bits);
  }
#else
  using Int = typename Simd<F>::Int;
  IntVec<F> weight;
  for (int lane = 0; lane < Simd<F>::LANES; ++lane) weight[lane] = (Int)1 << lane;
  return (((Int)bits - IntVec<F>{}) & weight) == weight;
#endif
}

// Low halves of 64-bit lanes, multiplied to 64 bits; high halves are ignored.
RVI_INLINE Uint64Vec multiply_low(Uint64Vec a, Uint64Vec b) {
#if defined(RVI_AVX512)
  return (Uint64Vec)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(RVI_AVX2)
  return (Uint64Vec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Uint64Vec)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
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

// exp, log, and sine and cosine of whole turns. float: polynomials of the Cephes library (Moshier),
// errors below 2 units in the last place. double: the standard library.

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

// Memory for one call, aligned to vectors, freed with the object.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  // room for `count` elements, not initialised; slack of two vectors at the end
  template <class T>
  T* make(std::int64_t count) {
    std::size_t bytes = (std::size_t)count * sizeof(T) + 2 * VECTOR_BYTES;
    bytes = (bytes + 63) / 64 * 64;
    memory_ = std::aligned_alloc(64, bytes);
    if (memory_ == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
};

// work(begin, end) for ranges that cover 0..count.
template <class Work>
inline void parallel(std::int64_t count, int threads, Work& work) {
  if (threads <= 1 || count <= 1) {
    if (count > 0) work(0, count);
    return;
  }
  parallel_ranges(
      count, threads,
      [](void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<Work*>(context))(begin, end);
      },
      &work);
}

RVI_INLINE std::int64_t round_up(std::int64_t size, std::int64_t step) {
  return (size + step - 1) / step * step;
}

}  // namespace RVI_PATH
}  // namespace rvi
