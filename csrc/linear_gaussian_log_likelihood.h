// linear_gaussian_log_likelihood: see rvi_fast.reference.linear_gaussian_log_likelihood_fwd and
// _bwd.

#pragma once

#include "calls.h"
#include "entries.h"
#include "laws.h"
#include "linear_log_likelihood.h"

namespace rvi {
namespace RVI_PATH {

template <class F>
void linear_gaussian_log_likelihood(const LinearLogLikelihood& linear, int threads) {
  const LogLikelihood& call = linear.likelihood;
  for_entries<F>(call.x_type, call.mask_kind, [&](auto x, auto mask) {
    using X = decltype(x);
    constexpr MaskKind MASK = decltype(mask)::value;
    call.scale_kind == ScaleKind::scalar
        ? linear_log_likelihood<Gaussian<F, Scales::number>, X, MASK>(linear, threads)
        : linear_log_likelihood<Gaussian<F, Scales::array>, X, MASK>(linear, threads);
  });
}

}  // namespace RVI_PATH
}  // namespace rvi
