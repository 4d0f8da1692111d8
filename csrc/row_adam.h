// row_adam: Adam for the rows of a batch, in place; see rvi_fast.reference.row_adam_catch_up and
// row_adam_step for the semantics of the three modes, and for the clock and the history.
//
// F is the element type of the rows, M that of the moments: F, or BFloat16, rounded at random.
//
// With several threads a row belongs to one of them by its number, so that a row that stands twice
// in the index is never written by two, and the result does not depend on their number.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "calls.h"
#include "entries.h"
#include "philox.h"
#include "simd/simd.h"
#include "work.h"

namespace rvi {
namespace RVI_PATH {

constexpr int ADAM_PREFETCH_ROWS = 4;
constexpr int POWERS = 1024;
// reference.WINDOW_TOLERANCE
constexpr double ADAM_WINDOW_TOLERANCE = 1e-9;
// reference.HISTORY_TERMS and HISTORY_COLUMNS: the sum of the w_j and of the w_j / q_j, the log of
// the decay, the middle of the q_j, and the terms
constexpr int HISTORY_TERMS = 12;
constexpr int HISTORY_COLUMNS = 4 + HISTORY_TERMS;
// terms that are this much smaller than what they are part of are left out
constexpr double HISTORY_ROUNDING = 1e-13;
// reference.MOMENT_SEED
constexpr std::uint64_t MOMENT_SEED = 0x6D6F6D656E7473;

// base^0 .. base^(POWERS - 1), kept until another base is asked for; one for each thread.
struct Powers {
  double base = -1.0;
  double values[POWERS];

  void prepare(double new_base) {
    if (base == new_base) return;
    base = new_base;
    for (int n = 0; n < POWERS; ++n) values[n] = std::pow(base, n);
  }
  double operator()(std::int64_t exponent) const {
    return exponent >= 0 && exponent < POWERS ? values[exponent] : std::pow(base, (double)exponent);
  }
};

template <class F>
RVI_INLINE Vec<F> flushed(Vec<F> moment) {
  IntVec<F> key = (IntVec<F>)moment & Simd<F>::SIGN_CLEARED;
  // below the least normal number
  return key < ((typename Simd<F>::Int)1 << Simd<F>::MANTISSA_BITS) ? Vec<F>{} : moment;
}

template <class F, class M>
RVI_INLINE Vec<F> load_moment(const M* from, std::int64_t left) {
  if constexpr (std::is_same_v<M, F>) {
    return load_up_to(from, left);
  } else {
    constexpr int LANES = Simd<F>::LANES;
    if (left >= LANES) return load_values<F>(from);
    M some[LANES] = {};
    std::memcpy(some, from, left * sizeof(M));
    return load_values<F>(some);
  }
}

template <class F>
RVI_INLINE void store_moment(F* to, Vec<F> value, Uint32Vec, std::int64_t left) {
  store_up_to(to, value, left);
}

// reference.to_bfloat16; `bits` [0, 2^16) in each lane.
RVI_INLINE void store_moment(BFloat16* to, FloatVec value, Uint32Vec bits, std::int64_t left) {
  constexpr int LANES = Simd<float>::LANES;
  const Int32Vec all = (Int32Vec)value, magnitude = all & Simd<float>::SIGN_CLEARED;
  const std::int32_t infinity = Simd<float>::INFINITY_KEY;
  const Int32Vec carried = (Int32Vec)((Uint32Vec)magnitude + bits);
  const Int32Vec finite = carried < infinity ? carried : (infinity - 1) - Int32Vec{};
  // a NaN whose upper half is that of infinity
  const Int32Vec other = magnitude > infinity ? magnitude | 0x400000 : magnitude;
  const Int32Vec rounded = (all ^ magnitude) | (magnitude < infinity ? finite : other);
  const auto narrow = __builtin_convertvector((Uint32Vec)rounded >> 16,
                                              typename Narrow<std::uint16_t, LANES>::Type);
  std::memcpy(to, &narrow, (left < LANES ? left : LANES) * sizeof(BFloat16));
}

// The random bits of a row's moments, those of NORMALS elements at a time.
template <class M>
struct MomentBits {
  std::uint64_t key;
  std::uint32_t step;
  alignas(VECTOR_BYTES) std::uint32_t words[NORMALS];

  // for the elements from `c`, in the upper and the lower half; `c` goes up by vectors
  RVI_INLINE Uint32Vec at(std::int64_t c) {
    if constexpr (!std::is_same_v<M, BFloat16>) return Uint32Vec{};
    if (c % NORMALS == 0) {
      Uint32Vec made[4];
      row_words(MOMENT_SEED, key, step, (int)c, made);
      store_quads(words, made[0], made[1], made[2], made[3]);
    }
    return load<Uint32Vec>(words + c % NORMALS);
  }
};

// The steps a row has missed, as factors; `any` false where there are none.
template <class F>
struct Missed {
  bool any = false;
  F decay, moment_factor, square_factor;
  F middle;         // of the q_j
  F start, change;  // the line between the ends
  int num_terms;    // of what bends it; the others are lost in rounding
  F terms[HISTORY_TERMS];
};

template <class F, class M>
struct AdamRows {
  const RowAdam& call;
  const Powers& powers1;
  const Powers& powers2;
  std::int64_t now, start;

  RVI_INLINE Missed<F> missed(std::int64_t row) const {
    Missed<F> result;
    const std::int64_t last = call.row_step[row], steps = now - last;
    if (steps == 0) return result;
    const double* entry = call.history + HISTORY_COLUMNS * (last - start);
    const double log_decay = call.history[HISTORY_COLUMNS * (now - start) + 2] - entry[2];
    const double decay = log_decay == 0.0 ? 1.0 : std::exp(log_decay);
    result.any = true;
    result.decay = (F)decay;
    result.middle = (F)entry[3];
    result.start = (F)(decay * entry[3] * entry[1]);
    result.change = (F)(decay * (entry[0] - entry[3] * entry[1]));
    result.num_terms = HISTORY_TERMS;
    const double least = std::numeric_limits<F>::epsilon() / 16 * entry[0];
    for (double rest = 0.0; result.num_terms > 0; --result.num_terms) {
      rest += std::fabs(entry[3 + result.num_terms]);
      if (rest > least) break;
    }
    for (int k = 0; k < result.num_terms; ++k) result.terms[k] = (F)(decay * entry[4 + k]);
    result.moment_factor = (F)powers1(steps);
    result.square_factor = (F)powers2(steps);
    return result;
  }

  RVI_INLINE void prefetch(std::int64_t row) const {
    const std::int64_t offset = row * call.width;
    prefetch_row(static_cast<F*>(call.rows) + offset, (int)call.width);
    prefetch_row(static_cast<M*>(call.exp_avg) + offset, (int)call.width);
    prefetch_row(static_cast<M*>(call.exp_avg_sq) + offset, (int)call.width);
  }
};

template <class F>
RVI_INLINE void catch_up(const Missed<F>& missed, F eps, Vec<F>& value, Vec<F>& moment,
                         Vec<F>& square) {
  const Vec<F> denominator = missed.middle * square_root(square) + eps;
  const Vec<F> share = eps / denominator;
  const Vec<F> x = 2 * share - 1;
  Vec<F> near{}, far{};  // Clenshaw's recurrence
  for (int k = missed.num_terms - 1; k > 0; --k) {
    const Vec<F> next = missed.terms[k] - far + 2 * x * near;
    far = near;
    near = next;
  }
  const Vec<F> bend = missed.num_terms ? missed.terms[0] - far + x * near : Vec<F>{};
  const Vec<F> factor = missed.start + share * (missed.change - (1 - share) * bend);
  value = value * missed.decay - moment / denominator * factor;
  moment = flushed<F>(moment * missed.moment_factor);
  square = flushed<F>(square * missed.square_factor);
}

// body(position in the index, row) for the rows of thread `thread` of `threads`.
template <class F, class M, class Body>
RVI_INLINE void for_own_rows(const AdamRows<F, M>& rows, std::int64_t thread, std::int64_t threads,
                             Body body) {
  const Index& index = rows.call.index;
  for (std::int64_t i = 0; i < index.size; ++i) {
    if (i + ADAM_PREFETCH_ROWS < index.size) {
      const std::int64_t next = index[i + ADAM_PREFETCH_ROWS];
      if (threads == 1 || next % threads == thread) rows.prefetch(next);
    }
    const std::int64_t row = index[i];
    if (threads == 1 || row % threads == thread) body(i, row);
  }
}

template <class F, class M>
void row_adam_catch_up(const RowAdam& call, int threads) {
  constexpr int LANES = Simd<F>::LANES;
  static thread_local Powers powers1, powers2;
  powers1.prepare(call.beta1);
  powers2.prepare(call.beta2);
  const AdamRows<F, M> rows{call, powers1, powers2, call.clock[0], call.clock[1]};
  const F eps = (F)call.eps;
  auto work = [&](std::int64_t first_thread, std::int64_t last_thread) {
    for (std::int64_t thread = first_thread; thread < last_thread; ++thread) {
      for_own_rows(rows, thread, threads, [&](std::int64_t i, std::int64_t row) {
        const Missed<F> missed = rows.missed(row);
        if (!missed.any) return;
        F* value = static_cast<F*>(call.rows) + row * call.width;
        M* exp_avg = static_cast<M*>(call.exp_avg) + row * call.width;
        M* exp_avg_sq = static_cast<M*>(call.exp_avg_sq) + row * call.width;
        MomentBits<M> bits{(std::uint64_t)call.key_index[i], (std::uint32_t)rows.now};
        for (std::int64_t c = 0; c < call.width; c += LANES) {
          const std::int64_t left = call.width - c;
          Vec<F> theta = load_up_to(value + c, left), moment = load_moment<F>(exp_avg + c, left);
          Vec<F> square = load_moment<F>(exp_avg_sq + c, left);
          catch_up(missed, eps, theta, moment, square);
          store_up_to(value + c, theta, left);
          const Uint32Vec words = bits.at(c);
          store_moment(exp_avg + c, moment, words >> 16, left);
          store_moment(exp_avg_sq + c, square, words & 0xFFFF, left);
        }
        call.row_step[row] = (std::int32_t)rows.now;
      });
    }
  };
  parallel(threads, threads, work);
}

// Adds the step just counted to what rows last updated at earlier steps have missed.
inline void extend_history(const RowAdam& call, const Powers& powers1, const Powers& roots) {
  const std::int64_t step = call.clock[0], now = step - call.clock[1];
  double* newest = call.history + HISTORY_COLUMNS * now;
  const double log_decay = newest[2 - HISTORY_COLUMNS] + std::log1p(-call.lr * call.weight_decay);
  std::int64_t window = 1;
  if (call.beta1 > 0) {
    const double rate = call.beta1 / std::sqrt(call.beta2);
    window = (std::int64_t)std::ceil(std::log(ADAM_WINDOW_TOLERANCE) / std::log(rate));
    if (window < 1) window = 1;
  }
  const std::int64_t later = window / 8;
  if (window > now) window = now;
  const double weight = call.lr / (1.0 - std::pow(call.beta1, (double)step));
  const double root = std::sqrt(1.0 - std::pow(call.beta2, (double)step));
  const double spread = root * std::sqrt(1.0 - std::pow(call.beta2, (double)(step + later)));
  newest[3 - HISTORY_COLUMNS] = std::sqrt(std::pow(call.beta2, 0.5 * (double)later + 1.0) / spread);
  for (std::int64_t missed = 1; missed <= window; ++missed) {
    double* entry = newest - HISTORY_COLUMNS * missed;
    const double gap = entry[2] - log_decay;
    const double w = weight * powers1(missed) * (gap == 0.0 ? 1.0 : std::exp(gap));
    const double q = roots(missed) / root, ratio = q / entry[3], ratio_root = std::sqrt(ratio);
    const double quotient = (ratio_root - 1.0) / (ratio_root + 1.0);
    entry[0] += w;
    entry[1] += w / q;
    double term = w * (1.0 - ratio) * (1.0 - ratio) / (ratio * ratio_root);
    entry[4] += term;
    term *= 2.0;
    for (int k = 1; k < HISTORY_TERMS && std::fabs(term) > HISTORY_ROUNDING * w; ++k) {
      term *= quotient;
      entry[4 + k] += term;
    }
  }
  newest[2] = log_decay;
}

template <class F, class M>
void row_adam_step(const RowAdam& call, int threads) {
  constexpr int LANES = Simd<F>::LANES;
  static thread_local Powers powers1, powers2, roots;
  powers1.prepare(call.beta1);
  powers2.prepare(call.beta2);
  const AdamMode mode = call.mode;
  const AdamRows<F, M> rows{call, powers1, powers2, call.clock[0], call.clock[1]};
  const std::int64_t step = call.clock[0] + 1;
  const F eps = (F)call.eps;
  const F rest1 = (F)(1.0 - call.beta1), rest2 = (F)(1.0 - call.beta2), beta2 = (F)call.beta2;
  const F decay = (F)(1.0 - call.lr * call.weight_decay);
  const double lr = call.lr;
  auto step_size_at = [&](double correction1) { return (F)(lr / correction1); };
  const double global1 = 1.0 - std::pow(call.beta1, (double)step);
  const double global2 = 1.0 - std::pow(call.beta2, (double)step);
  auto work = [&](std::int64_t first_thread, std::int64_t last_thread) {
    for (std::int64_t thread = first_thread; thread < last_thread; ++thread) {
      for_own_rows(rows, thread, threads, [&](std::int64_t i, std::int64_t row) {
        F* value = static_cast<F*>(call.rows) + row * call.width;
        M* exp_avg = static_cast<M*>(call.exp_avg) + row * call.width;
        M* exp_avg_sq = static_cast<M*>(call.exp_avg_sq) + row * call.width;
        const F* grad = static_cast<const F*>(call.grad) + i * call.width;
        Missed<F> missed;
        F step_size = step_size_at(global1), root = (F)std::sqrt(global2);
        if (mode == AdamMode::dense) {
          missed = rows.missed(row);
          call.row_step[row] = (std::int32_t)step;
        } else if (mode == AdamMode::row) {
          const std::int64_t visits = ++call.row_step[row];
          step_size = step_size_at(1.0 - powers1(visits));
          root = (F)std::sqrt(1.0 - powers2(visits));
        }
        const F inverse_root = 1 / root;
        MomentBits<M> bits{(std::uint64_t)call.key_index[i], (std::uint32_t)step};
        for (std::int64_t c = 0; c < call.width; c += LANES) {
          const std::int64_t left = call.width - c;
          Vec<F> theta = load_up_to(value + c, left), moment = load_moment<F>(exp_avg + c, left);
          Vec<F> square = load_moment<F>(exp_avg_sq + c, left), g = load_up_to(grad + c, left);
          if (missed.any) catch_up(missed, eps, theta, moment, square);
          moment = flushed<F>(moment + (g - moment) * rest1);
          square = flushed<F>(square * beta2 + g * g * rest2);
          Vec<F> denominator = square_root(square);
          if (mode == AdamMode::lazy) {  // SparseAdam adds eps before it corrects the bias
            denominator = (denominator + eps) * inverse_root;
          } else {
            denominator = denominator * inverse_root + eps;
          }
          theta = theta * decay - step_size * moment / denominator;
          store_up_to(value + c, theta, left);
          const Uint32Vec words = bits.at(c);
          store_moment(exp_avg + c, moment, words >> 16, left);
          store_moment(exp_avg_sq + c, square, words & 0xFFFF, left);
        }
      });
    }
  };
  parallel(threads, threads, work);
  call.clock[0] = step;
  if (mode == AdamMode::dense) {
    roots.prepare(std::sqrt(call.beta2));
    extend_history(call, powers1, roots);
  }
}

}  // namespace RVI_PATH
}  // namespace rvi
