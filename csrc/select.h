// Selection: the `kept` coefficients of largest absolute value, exactly.
//
// The key of a coefficient is the bits of |a| as an integer, which order as the numbers do; NaN is
// above infinity, whatever its bits. Bisection finds a threshold with count(key >= threshold) =
// kept and stops as soon as one is met; where ties make that impossible it ends at the largest
// threshold with count(key >= threshold) > kept, and the ties there are taken from the lowest
// index up. The answer does not depend on where the bisection starts, so it starts at the
// threshold of the row before, which is near where rows are alike.

namespace rvi {
namespace RVI_PATH {

template <class F, int VECTORS>
struct Keys {
  IntVec<F> vec[VECTORS];
};

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

// Counts and marks with the keys in registers (VECTORS > 0) or in memory (VECTORS = 0).
template <class F, int VECTORS>
struct KeySet {
  using Int = typename Simd<F>::Int;
  static constexpr int LANES = Simd<F>::LANES;
  Keys<F, VECTORS> keys;

  RVI_INLINE KeySet(const F* coefficients, int size, Int*) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) keys.vec[v] = load_keys(coefficients, v * LANES, size);
  }
  RVI_INLINE int vectors() const { return VECTORS; }
  RVI_INLINE IntVec<F> vec(int v) const { return keys.vec[v]; }
  RVI_INLINE int count(Int threshold) const {
    int total = 0;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) total += __builtin_popcount(at_least<F>(vec(v), threshold));
    return total;
  }
};

template <class F>
struct KeySet<F, 0> {
  using Int = typename Simd<F>::Int;
  static constexpr int LANES = Simd<F>::LANES;
  const Int* keys;
  int number;

  RVI_INLINE KeySet(const F* coefficients, int size, Int* scratch)
      : keys(scratch), number((size + LANES - 1) / LANES) {
    for (int v = 0; v < number; ++v) {
      store(scratch + v * LANES, load_keys(coefficients, v * LANES, size));
    }
  }
  RVI_INLINE int vectors() const { return number; }
  RVI_INLINE IntVec<F> vec(int v) const { return load<IntVec<F>>(keys + v * LANES); }
  RVI_INLINE int count(Int threshold) const {
    IntVec<F> total = {};
    for (int v = 0; v < number; ++v) total -= vec(v) >= threshold;
    int result = 0;
    for (int lane = 0; lane < LANES; ++lane) result += (int)total[lane];
    return result;
  }
};

// Writes the bits of the kept ones, and the threshold to `start`.
template <class F, int VECTORS>
inline void select_in(const F* coefficients, int size, int kept, typename Simd<F>::Int& start,
                      typename Simd<F>::Int* scratch, std::uint32_t* words) {
  using S = Simd<F>;
  using Int = typename S::Int;
  constexpr int LANES = S::LANES;
  const KeySet<F, VECTORS> keys(coefficients, size, scratch);

  // count(low) > kept or low is the least key, count(high) < kept
  Int low = 0, high = S::INFINITY_KEY + 2;
  Int threshold = start;
  // a quarter of a power of two at first, doubled until the threshold lies between low and high
  Int stride = (Int)1 << (S::MANTISSA_BITS - 3);
  bool upwards = false, downwards = false, exact = false;
  while (high - low > 1) {
    int count = keys.count(threshold);
    if (count == kept) {
      exact = true;
      break;
    }
    if (count > kept) {
      low = threshold;
      upwards = true;
    } else {
      high = threshold;
      downwards = true;
    }
    if (upwards && downwards) {
      threshold = low + (high - low) / 2;
    } else {
      Int room = upwards ? high - 1 - low : high - low - 1;
      if (stride > room) stride = room;
      if (stride == 0) break;
      threshold = upwards ? low + stride : high - stride;
      stride = stride > S::INFINITY_KEY / 4 ? S::INFINITY_KEY : stride * 4;
    }
  }
  if (!exact) threshold = low;
  start = threshold > 0 ? threshold : 1;

  int ties = 0;  // how many to take of those at the threshold
  if (!exact) ties = kept - keys.count(threshold + 1);
  for (int word = 0; word * 32 < size; ++word) words[word] = 0;
  const int vectors = keys.vectors();
  for (int v = 0; v < vectors; ++v) {
    unsigned marks = at_least<F>(keys.vec(v), exact ? threshold : threshold + 1);
    if (ties > 0) {
      unsigned at = at_least<F>(keys.vec(v), threshold) & ~marks;
      for (; at != 0 && ties > 0; --ties) {
        marks |= at & -at;
        at &= at - 1;
      }
    }
    words[v * LANES / 32] |= (std::uint32_t)marks << (v * LANES % 32);
  }
}

// `scratch` has room for `size` keys and a vector more.
template <class F>
inline void select(const F* coefficients, int size, int kept, typename Simd<F>::Int& start,
                   typename Simd<F>::Int* scratch, std::uint32_t* words) {
  if (kept == size) {
    for (int word = 0; word * 32 < size; ++word) {
      int left = size - word * 32;
      words[word] = left >= 32 ? 0xFFFFFFFFu : (1u << left) - 1;
    }
    return;
  }
  switch ((size + Simd<F>::LANES - 1) / Simd<F>::LANES) {
#define RVI_CASE(VECTORS) \
  case VECTORS:           \
    return select_in<F, VECTORS>(coefficients, size, kept, start, scratch, words);
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
      return select_in<F, 0>(coefficients, size, kept, start, scratch, words);
  }
}

}  // namespace RVI_PATH
}  // namespace rvi
