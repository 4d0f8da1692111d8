// gaussian_log_likelihood: see rvi_fast.reference.gaussian_log_likelihood_fwd and _bwd.

#pragma once

#include "calls.h"
#include "entries.h"
#include "laws.h"
#include "log_likelihood.h"

namespace rvi {
namespace RVI_PATH {

template <class F>
void gaussian_log_likelihood(const LogLikelihood& call, int threads) {
  for_entries<F>(call.x_type, call.mask_kind, [&](auto x, auto mask) {
    using X = decltype(x);
    constexpr MaskKind MASK = decltype(mask)::value;
    call.scale_kind == ScaleKind::scalar
        ? log_likelihood<Gaussian<F, Scales::number>, X, MASK>(call, threads)
        : log_likelihood<Gaussian<F, Scales::array>, X, MASK>(call, threads);
  });
}

}  // namespace RVI_PATH
}  // namespace rvi
