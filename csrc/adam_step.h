// adam_step: Adam for the parameters that all rows share; see rvi_fast.reference.adam_step.
//
// Element by element: the parts of the gradient are added up in their order, so that the result
// does not depend on the number of threads.

#pragma once

#include <cmath>
#include <cstdint>

#include "calls.h"
#include "row_adam.h"
#include "simd/simd.h"
#include "work.h"

namespace rvi {
namespace RVI_PATH {

template <class F>
void adam_step(const AdamStep& call, int threads) {
  constexpr int LANES = Simd<F>::LANES;
  const std::int64_t size = call.size, step = *call.step + 1;
  F* params = static_cast<F*>(call.params);
  F* exp_avg = static_cast<F*>(call.exp_avg);
  F* exp_avg_sq = static_cast<F*>(call.exp_avg_sq);
  const F* grads = static_cast<const F*>(call.grads);
  const F eps = (F)call.eps, beta2 = (F)call.beta2;
  const F rest1 = (F)(1.0 - call.beta1), rest2 = (F)(1.0 - call.beta2);
  const F decay = (F)(1.0 - call.lr * call.weight_decay);
  const F step_size = (F)(call.lr / (1.0 - std::pow(call.beta1, (double)step)));
  const F inverse_root = 1 / (F)std::sqrt(1.0 - std::pow(call.beta2, (double)step));
  auto work = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin * LANES; p < end * LANES && p < size; p += LANES) {
      const std::int64_t left = size - p;
      Vec<F> grad = {};
      for (std::int64_t part = 0; part < call.num_parts; ++part) {
        grad += load_up_to(grads + part * size + p, left);
      }
      Vec<F> moment = load_up_to(exp_avg + p, left), square = load_up_to(exp_avg_sq + p, left);
      moment = flushed<F>(moment + (grad - moment) * rest1);
      square = flushed<F>(square * beta2 + grad * grad * rest2);
      Vec<F> denominator = square_root(square) * inverse_root + eps;
      Vec<F> param = load_up_to(params + p, left) * decay - step_size * moment / denominator;
      store_up_to(params + p, param, left);
      store_up_to(exp_avg + p, moment, left);
      store_up_to(exp_avg_sq + p, square, left);
    }
  };
  parallel((size + LANES - 1) / LANES, threads, work);
  *call.step = step;
}

}  // namespace RVI_PATH
}  // namespace rvi
