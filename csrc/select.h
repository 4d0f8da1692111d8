// Selection: the `kept` coefficients of largest absolute value, exactly.
//
// The key of a coefficient is the bits of |a| as an integer, which order as the numbers do; NaN is
// above infinity, whatever its bits. Bisection finds a threshold with count(key >= threshold) =
// kept and stops as soon as one is met; where ties make that impossible it ends at the largest
// threshold with count(key >= threshold) > kept, and the ties there are taken from the lowest
// index up. The answer does not depend on where the bisection starts, so it starts around the
// threshold of the row before, which is near where rows are alike. Several rows go in lockstep: a
// count takes long to arrive and little to do.

#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace rvi {
namespace RVI_PATH {

constexpr int SELECT_ROWS = 4;

template <class F>
RVI_INLINE IntVec<F> keys_of(Vec<F> value) {
  using S = Simd<F>;
  IntVec<F> key = (IntVec<F>)value & S::SIGN_CLEARED;
  return key > S::INFINITY_KEY ? (S::INFINITY_KEY + 1) - IntVec<F>{} : key;
}

// Keys of coefficients `first` .. `first` + LANES - 1; those past the end have key -1.
template <class F>
RVI_INLINE IntVec<F> load_keys(const F* coefficients, int first, int size) {
  constexpr int LANES = Simd<F>::LANES;
  if (first + LANES <= size) return keys_of<F>(load<Vec<F>>(coefficients + first));
  IntVec<F> key = keys_of<F>(load_some<F>(coefficients + first, size - first));
  return key | ~lanes_of<F>((1u << (size - first)) - 1);
}

// count(key >= threshold) over VECTORS vectors, or `vectors` of them where VECTORS is 0.
template <class F, int VECTORS>
RVI_INLINE int count_at_least(const typename Simd<F>::Int* keys, int vectors,
                              typename Simd<F>::Int threshold) {
  constexpr int LANES = Simd<F>::LANES;
  if constexpr (VECTORS > 0 && VECTOR_BYTES > 16) {
    int total = 0;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      total += __builtin_popcount(at_least<F>(load<IntVec<F>>(keys + v * LANES), threshold));
    }
    return total;
  } else {
    IntVec<F> total = {};
    const int number = VECTORS > 0 ? VECTORS : vectors;
    for (int v = 0; v < number; ++v) total -= load<IntVec<F>>(keys + v * LANES) >= threshold;
    int result = 0;
    for (int lane = 0; lane < LANES; ++lane) result += (int)total[lane];
    return result;
  }
}

// Writes the bits of the kept ones: those at or above the threshold if that is `exact`, otherwise
// the `above` ones above it and the first of those at it.
template <class F>
RVI_INLINE void mark(const typename Simd<F>::Int* keys, int vectors, int size, int kept, int above,
                     typename Simd<F>::Int threshold, bool exact, std::uint32_t* words) {
  constexpr int LANES = Simd<F>::LANES;
  for (int word = 0; word * 32 < size; ++word) words[word] = 0;
  int ties = exact ? 0 : kept - above;  // how many to take of those at the threshold
  for (int v = 0; v < vectors; ++v) {
    const IntVec<F> key = load<IntVec<F>>(keys + v * LANES);
    unsigned marks = at_least<F>(key, exact ? threshold : threshold + 1);
    if (ties > 0) {
      unsigned at = at_least<F>(key, threshold) & ~marks;
      for (; at != 0 && ties > 0; --ties) {
        marks |= at & -at;
        at &= at - 1;
      }
    }
    words[v * LANES / 32] |= (std::uint32_t)marks << (v * LANES % 32);
  }
}

// Up to SELECT_ROWS rows of one group. Leaves the last threshold in `start`.
template <class F, int VECTORS>
inline void select_rows(const F* const* rows, int count, int size, int kept,
                        typename Simd<F>::Int& start, typename Simd<F>::Int* scratch,
                        std::uint32_t* words, std::int64_t words_stride) {
  using S = Simd<F>;
  using Int = typename S::Int;
  constexpr int LANES = S::LANES;
  const int vectors = (size + LANES - 1) / LANES;
  const Int* keys[SELECT_ROWS];
  for (int r = 0; r < SELECT_ROWS; ++r) {
    // rows that are not there repeat the first
    keys[r] = scratch + (r < count ? (std::int64_t)r * vectors * LANES : 0);
    if (r >= count) continue;
    for (int v = 0; v < vectors; ++v) {
      store(scratch + ((std::int64_t)r * vectors + v) * LANES, load_keys(rows[r], v * LANES, size));
    }
  }

  // number = count(low) >= kept, count(high) < kept; a quarter of a power of two around the start
  // where that holds, all there is otherwise
  const Int reach = (Int)1 << (S::MANTISSA_BITS - 2), end = S::INFINITY_KEY + 2;
  const Int near_low = start > reach ? start - reach : 0;
  const Int near_high = start < end - reach ? start + reach : end;
  Int low[SELECT_ROWS], high[SELECT_ROWS];
  int number[SELECT_ROWS];
#pragma GCC unroll 4
  for (int r = 0; r < SELECT_ROWS; ++r) {
    const int at_low = count_at_least<F, VECTORS>(keys[r], vectors, near_low);
    const int at_high = count_at_least<F, VECTORS>(keys[r], vectors, near_high);
    low[r] = at_low >= kept ? near_low : 0;
    number[r] = at_low >= kept ? at_low : size;
    high[r] = at_low < kept ? near_low : at_high < kept ? near_high : end;
    if (at_high >= kept) {
      low[r] = near_high;
      number[r] = at_high;
    }
  }
  for (;;) {
    bool searching = false;
#pragma GCC unroll 4
    for (int r = 0; r < SELECT_ROWS; ++r) {
      searching |= (number[r] != kept) & (high[r] - low[r] > 1);
    }
    if (!searching) break;
#pragma GCC unroll 4
    for (int r = 0; r < SELECT_ROWS; ++r) {  // for a row that is done this changes nothing
      const Int middle = low[r] + ((high[r] - low[r]) >> 1);
      const int found = count_at_least<F, VECTORS>(keys[r], vectors, middle);
      const bool enough = found >= kept;
      low[r] = enough ? middle : low[r];
      number[r] = enough ? found : number[r];
      high[r] = enough ? high[r] : middle;
    }
  }
  for (int r = 0; r < count; ++r) {
    const bool exact = number[r] == kept;
    const int above = exact ? 0 : count_at_least<F, 0>(keys[r], vectors, low[r] + 1);
    mark<F>(keys[r], vectors, size, kept, above, low[r], exact, words + r * words_stride);
  }
  start = low[count - 1];
}

// Bits of the kept coefficients of `count` rows of one group; `scratch` has room for SELECT_ROWS
// times `size` keys and a vector more for each.
template <class F>
inline void select(const F* const* rows, int count, int size, int kept,
                   typename Simd<F>::Int& start, typename Simd<F>::Int* scratch,
                   std::uint32_t* words, std::int64_t words_stride) {
  if (kept == size) {
    for (int r = 0; r < count; ++r) {
      for (int word = 0; word * 32 < size; ++word) {
        const int left = size - word * 32;
        words[r * words_stride + word] = left >= 32 ? 0xFFFFFFFFu : (1u << left) - 1;
      }
    }
    return;
  }
  switch ((size + Simd<F>::LANES - 1) / Simd<F>::LANES) {
#define RVI_CASE(VECTORS) \
  case VECTORS:           \
    return select_rows<F, VECTORS>(rows, count, size, kept, start, scratch, words, words_stride);
    RVI_CASE(1)
    RVI_CASE(2)
    RVI_CASE(3)
    RVI_CASE(4)
    RVI_CASE(5)
    RVI_CASE(6)
    RVI_CASE(7)
    RVI_CASE(8)
#undef RVI_CASE
    default:
      return select_rows<F, 0>(rows, count, size, kept, start, scratch, words, words_stride);
  }
}

}  // namespace RVI_PATH
}  // namespace rvi
