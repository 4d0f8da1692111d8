// Laws of one entry: what it adds to the log-likelihood of its row, and the derivatives.
//
// `Laws`, at the end, lists them. Each is a class with
//   NAME          what Python calls it
//   SCALED        whether it has a scale
//   Of<F, FROM>   its terms, for float or double and where its scale comes from
// The walks of log_likelihood.h and linear_log_likelihood.h know the terms by these names alone:
//   Element       float or double
//   SCALES        where its scale comes from
//   Entries       what it keeps of a vector of x and of the output, and `observed`: all ones or 0
//   in
//                 each lane; entries()
//   Sums          of a walk for the value: add(), log_prob()
//   Terms         of a vector of entries: terms() or observed_terms(); `scale`, the derivative by
//                 log s; gradient(), by the output, and scale_gradient(), by s, times that of the
//                 row
//   TileSums      of a walk that has the terms anyway: add(), log_prob()
// An entry that is not observed adds 0, whatever its scale.

#pragma once

#include <cmath>
#include <cstddef>

#include "calls.h"
#include "entries.h"
#include "simd/math.h"
#include "simd/simd.h"

namespace rvi {
namespace RVI_PATH {

enum class Scales {
  none,
  number,  // one for all
  array,   // one for each feature or entry: vectors of 1/s and log s
};

// The output is the centre: log p = -RATE |u|^(1 / RATE) - log s - CONSTANT, u = (x - output) / s.
// LAW gives RATE, CONSTANT, `power(u)`, which is |u|^(1 / RATE), and `slope(u)`, the derivative of
// RATE power(u), so that the derivative by log s is power(u) - 1.
template <class LAW, class F, Scales FROM>
struct ExponentialPower {
  using Element = F;
  static constexpr Scales SCALES = FROM;

  struct Entries {
    Vec<F> residual;  // x - output, 0 where not observed
    IntVec<F> observed;
  };

  RVI_INLINE static Entries entries(Vec<F> value, Vec<F> output, IntVec<F> observed) {
    const Vec<F> residual = value - output;
    return {observed ? residual : Vec<F>{}, observed};
  }

  struct Sums {
    Vec<F> powers;     // power(u)
    Vec<F> constants;  // log s, where it is not one number
    IntVec<F> count;   // entries observed
  };

  RVI_INLINE static void add(Sums& sums, const Entries& entries, Vec<F> inverse, Vec<F> logarithm) {
    Vec<F> scaled = entries.residual * inverse;
    if constexpr (SCALES == Scales::array) {
      sums.constants += entries.observed ? logarithm : Vec<F>{};
      // an infinite or missing 1/s times nothing is still nothing
      scaled = entries.observed ? scaled : Vec<F>{};
    }
    sums.powers += LAW::template power<F>(scaled);
    sums.count -= entries.observed;
  }

  // what an entry adds beside its power where the scale is one number
  static F constant(F scale) { return (F)(std::log(scale) + LAW::CONSTANT); }

  RVI_INLINE static F log_prob(const Sums (&sums)[2], F constant_of_number) {
    const F observed = sum<F>(__builtin_convertvector(sums[0].count + sums[1].count, Vec<F>));
    F constant = 0;
    if constexpr (SCALES == Scales::number) {
      constant = observed * constant_of_number;
    } else {
      constant = sum<F>(sums[0].constants + sums[1].constants) + observed * (F)LAW::CONSTANT;
    }
    return observed > 0 ? -(F(LAW::RATE) * sum<F>(sums[0].powers + sums[1].powers) + constant)
                        : F(0);
  }

  struct Terms {
    Vec<F> scaled;  // u
    Vec<F> factor;  // g / s, with g the gradient of the row's log-likelihood
    Vec<F> scale;   // the derivative by log s
  };

  RVI_INLINE static Terms terms(const Entries& entries, F g, Vec<F> inverse) {
    const Vec<F> scaled = entries.residual * inverse;
    return {scaled, g * inverse, LAW::template power<F>(scaled) - F(1)};
  }

  // 0 where not observed, whatever the scale
  RVI_INLINE static Terms observed_terms(const Entries& entries, F g, Vec<F> inverse) {
    Vec<F> scaled = entries.residual * inverse, factor = g * inverse;
    if constexpr (SCALES == Scales::array) {
      scaled = entries.observed ? scaled : Vec<F>{};
      factor = entries.observed ? factor : Vec<F>{};
    }
    const Vec<F> scale = LAW::template power<F>(scaled) - F(1);
    return {scaled, factor, entries.observed ? scale : Vec<F>{}};
  }

  RVI_INLINE static Vec<F> gradient(const Terms& at) {
    return LAW::template slope<F>(at.scaled) * at.factor;
  }

  RVI_INLINE static Vec<F> scale_gradient(const Terms& at) { return at.scale * at.factor; }

  struct TileSums {
    Vec<F> scale;      // power(u) - 1
    Vec<F> logarithm;  // log s, where it is not one number
    IntVec<F> count;   // entries observed
  };

  RVI_INLINE static void add(TileSums& sums, const Entries& entries, const Terms& at,
                             Vec<F> logarithm) {
    sums.count -= entries.observed;
    if constexpr (SCALES == Scales::array) {
      sums.logarithm += entries.observed ? logarithm : Vec<F>{};
    }
    sums.scale += at.scale;
  }

  RVI_INLINE static F log_prob(const TileSums& sums, F logarithm_of_number) {
    const F observed = sum<F>(__builtin_convertvector(sums.count, Vec<F>));
    const F terms = sum<F>(sums.scale);
    const F logarithms =
        SCALES == Scales::number ? observed * logarithm_of_number : sum<F>(sums.logarithm);
    const F constant = logarithms + observed * (F)(LAW::RATE + LAW::CONSTANT);
    return observed > 0 ? -(F(LAW::RATE) * terms + constant) : F(0);
  }
};

// The output is the mean: log p = -u^2 / 2 - log s - log(2 pi) / 2.
struct Gaussian {
  static constexpr const char* NAME = "gaussian";
  static constexpr bool SCALED = true;
  template <class F, Scales FROM>
  using Of = ExponentialPower<Gaussian, F, FROM>;

  static constexpr double RATE = 0.5, CONSTANT = 0.91893853320467274178;

  template <class F>
  RVI_INLINE static Vec<F> power(Vec<F> u) {
    return u * u;
  }

  template <class F>
  RVI_INLINE static Vec<F> slope(Vec<F> u) {
    return u;
  }
};

// The output is the median: log p = -|u| - log s - log 2. At the kink of |u| the slope is 0.
struct Laplace {
  static constexpr const char* NAME = "laplace";
  static constexpr bool SCALED = true;
  template <class F, Scales FROM>
  using Of = ExponentialPower<Laplace, F, FROM>;

  static constexpr double RATE = 1.0, CONSTANT = 0.69314718055994530942;

  template <class F>
  RVI_INLINE static Vec<F> power(Vec<F> u) {
    return u < F(0) ? -u : u;
  }

  template <class F>
  RVI_INLINE static Vec<F> slope(Vec<F> u) {
    const Vec<F> above = u > F(0) ? broadcast(F(1)) : u;
    return u < F(0) ? broadcast(F(-1)) : above;
  }
};

// The output is the logit: log p = x o - log(1 + exp(o)). It has no scale.
template <class F>
struct LogitTerms {
  using Element = F;
  static constexpr Scales SCALES = Scales::none;

  struct Entries {
    Vec<F> value, logit;  // 0 where not observed
    IntVec<F> observed;
  };

  RVI_INLINE static Entries entries(Vec<F> value, Vec<F> output, IntVec<F> observed) {
    return {observed ? value : Vec<F>{}, observed ? output : Vec<F>{}, observed};
  }

  struct Terms {
    Vec<F> log_prob, gradient;  // 0 where not observed
  };

  RVI_INLINE static Terms terms(const Entries& at, F g, Vec<F>) {
    // the larger exponent is taken out, so that none overflows
    const IntVec<F> positive = at.logit > F(0);
    const Vec<F> small = exponential(positive ? -at.logit : at.logit), sum = F(1) + small;
    const Vec<F> softplus = (positive ? at.logit : Vec<F>{}) + logarithm_from_1_to_2(sum);
    const Vec<F> mean = (positive ? broadcast(F(1)) : small) / sum;
    const Vec<F> log_prob = at.value * at.logit - softplus, gradient = g * (at.value - mean);
    return {at.observed ? log_prob : Vec<F>{}, at.observed ? gradient : Vec<F>{}};
  }

  RVI_INLINE static Terms observed_terms(const Entries& at, F g, Vec<F> inverse) {
    return terms(at, g, inverse);
  }

  RVI_INLINE static Vec<F> gradient(const Terms& at) { return at.gradient; }

  struct Sums {
    Vec<F> log_prob;
  };
  using TileSums = Sums;

  RVI_INLINE static void add(Sums& sums, const Entries& at, Vec<F> inverse, Vec<F>) {
    sums.log_prob += terms(at, F(0), inverse).log_prob;
  }

  RVI_INLINE static void add(TileSums& sums, const Entries&, const Terms& at, Vec<F>) {
    sums.log_prob += at.log_prob;
  }

  RVI_INLINE static F log_prob(const Sums (&sums)[2], F) {
    return sum<F>(sums[0].log_prob + sums[1].log_prob);
  }

  RVI_INLINE static F log_prob(const TileSums& sums, F) { return sum<F>(sums.log_prob); }
};

struct Bernoulli {
  static constexpr const char* NAME = "bernoulli";
  static constexpr bool SCALED = false;
  template <class F, Scales>
  using Of = LogitTerms<F>;
};

// The place of a law in the list is its number in a call.
template <class... LAWS>
struct List {
  static constexpr std::size_t COUNT = sizeof...(LAWS);
  static constexpr const char* NAMES[COUNT + 1] = {LAWS::NAME..., nullptr};

  // body(law) with the terms of the law of a call, of float or double
  template <class F, class Body>
  static void visit(const LogLikelihood& call, const Body& body) {
    int number = 0;
    (..., (call.law == number++ ? visit_one<LAWS, F>(call, body) : (void)0));
  }

 private:
  template <class LAW, class F, class Body>
  static void visit_one(const LogLikelihood& call, const Body& body) {
    if constexpr (!LAW::SCALED) {
      body(typename LAW::template Of<F, Scales::none>());
    } else if (call.scale_kind == ScaleKind::scalar) {
      body(typename LAW::template Of<F, Scales::number>());
    } else {
      body(typename LAW::template Of<F, Scales::array>());
    }
  }
};

using Laws = List<Gaussian, Bernoulli, Laplace>;

}  // namespace RVI_PATH
}  // namespace rvi
