// The log-likelihood of the entries of a batch under a law, and its gradients.
//
// One pass over x and the outputs in either direction. A scale that is not a single number goes
// through two arrays of a row's length, 1/s and log s: made once where s is per feature, row by row
// where it is per entry. Sums over the batch have an order that depends on its size alone.

#pragma once

#include <cstdint>
#include <cstring>

#include "calls.h"
#include "entries.h"
#include "laws.h"
#include "simd/simd.h"
#include "work.h"

namespace rvi {
namespace RVI_PATH {

constexpr std::int64_t LIKELIHOOD_PIECE_ROWS = 1024, LIKELIHOOD_MAX_PIECES = 32;
// rows summed before they join the sum of the piece, so that rounding errors grow slowly
constexpr int SUB_SUM_ROWS = 32;

template <class LAW, class X, MaskKind MASK>
void log_likelihood_fwd(const LogLikelihood& call, int threads) {
  using F = typename LAW::Element;
  constexpr bool NUMBER = LAW::SCALES == Scales::number, ARRAY = LAW::SCALES == Scales::array;
  constexpr int LANES = Simd<F>::LANES;
  const std::int64_t width = call.num_features, padded_width = round_up(width, LANES);
  const X* x = static_cast<const X*>(call.x);
  const F* output = static_cast<const F*>(call.output);
  const F* scale = static_cast<const F*>(call.scale);
  F* log_prob = static_cast<F*>(call.log_prob);
  Scratch shared_memory;
  F* shared = nullptr;
  F number_inverse = 0, constant = 0;
  if constexpr (NUMBER) {
    number_inverse = F(1) / scale[0];
    constant = LAW::constant(scale[0]);
  } else if (ARRAY && call.scale_kind == ScaleKind::feature) {
    shared = shared_memory.make<F>(2 * padded_width);
    prepare_scales(scale, width, shared, shared + padded_width);
  }

  auto work = [&](std::int64_t begin, std::int64_t end) {
    Scratch own_memory;
    F* own = nullptr;
    if (ARRAY && shared == nullptr) own = own_memory.make<F>(2 * padded_width);
    const F* inverse = shared ? shared : own;
    const F* logarithms = inverse + (ARRAY ? padded_width : 0);
    const Vec<F> number = broadcast(number_inverse);
    for (std::int64_t b = begin; b < end; ++b) {
      if (own) prepare_scales(scale + b * width, width, own, own + padded_width);
      const X* row = x + b * width;
      const std::uint8_t* marks = row_mask<MASK>(call.mask, b, width);
      for (std::int64_t s = 0; s < call.num_samples; ++s) {
        const F* outputs = output + (s * call.batch + b) * width;
        typename LAW::Sums sums[2] = {};
        auto add = [&](int n, std::int64_t d,
                       typename LAW::Entries entries) __attribute__((always_inline)) {
          if constexpr (ARRAY) {
            LAW::add(sums[n], entries, load<Vec<F>>(inverse + d), load<Vec<F>>(logarithms + d));
          } else {
            LAW::add(sums[n], entries, number, Vec<F>{});
          }
        };
        std::int64_t d = 0;
        for (; d + 2 * LANES <= width; d += 2 * LANES) {
          add(0, d, load_entries<LAW, X, MASK>(row + d, outputs + d, marks, d));
          add(1, d + LANES,
              load_entries<LAW, X, MASK>(row + d + LANES, outputs + d + LANES, marks, d + LANES));
        }
        for (; d < width; d += LANES) {
          const std::int64_t left = width - d;
          add(0, d,
              left >= LANES
                  ? load_entries<LAW, X, MASK>(row + d, outputs + d, marks, d)
                  : load_some_entries<LAW, X, MASK>(row + d, outputs + d, marks, d, (int)left));
        }
        log_prob[s * call.batch + b] = LAW::log_prob(sums, constant);
      }
    }
  };
  parallel(call.batch, threads, work);
}

template <class LAW, class X, MaskKind MASK>
void log_likelihood_bwd(const LogLikelihood& call, int threads) {
  using F = typename LAW::Element;
  constexpr bool NUMBER = LAW::SCALES == Scales::number, ARRAY = LAW::SCALES == Scales::array;
  constexpr int LANES = Simd<F>::LANES;
  const std::int64_t width = call.num_features, padded_width = round_up(width, LANES);
  const X* x = static_cast<const X*>(call.x);
  const F* output = static_cast<const F*>(call.output);
  const F* scale = static_cast<const F*>(call.scale);
  const F* grad = static_cast<const F*>(call.grad);
  F* grad_output = static_cast<F*>(call.grad_output);
  F* grad_scale = static_cast<F*>(call.grad_scale);
  const bool per_feature = call.scale_kind == ScaleKind::feature;
  const bool per_entry = call.scale_kind == ScaleKind::entry;

  std::int64_t piece_rows = LIKELIHOOD_PIECE_ROWS;
  if (call.batch > piece_rows * LIKELIHOOD_MAX_PIECES) {
    piece_rows = (call.batch + LIKELIHOOD_MAX_PIECES - 1) / LIKELIHOOD_MAX_PIECES;
  }
  const std::int64_t num_pieces = (call.batch + piece_rows - 1) / piece_rows;
  Scratch shared_memory, totals_memory, number_memory;
  F* shared = nullptr;
  if (per_feature) {
    shared = shared_memory.make<F>(padded_width);
    prepare_scales<F>(scale, width, shared, nullptr);
  }
  const F number_inverse = NUMBER ? F(1) / scale[0] : F(0);
  // per feature a row of sums for each piece, for a scale that is one number one sum for each
  F* totals = nullptr;
  double* number_totals = nullptr;
  if (grad_scale && per_feature) totals = totals_memory.make<F>(num_pieces * padded_width);
  if (grad_scale && NUMBER) number_totals = number_memory.make<double>(num_pieces);

  auto work = [&](std::int64_t first_piece, std::int64_t last_piece) {
    Scratch own_memory, sub_memory;
    F* own = nullptr;
    if (per_entry) own = own_memory.make<F>(padded_width);
    const F* inverse = shared ? shared : own;
    const Vec<F> number = broadcast(number_inverse);
    // sums over the samples of an entry, or over a few rows of a feature
    F* sub = nullptr;
    if (grad_scale && ARRAY) sub = sub_memory.make<F>(padded_width);
    for (std::int64_t piece = first_piece; piece < last_piece; ++piece) {
      const std::int64_t stop = (piece + 1) * piece_rows;
      const std::int64_t end = stop < call.batch ? stop : call.batch;
      F* total = totals ? totals + piece * padded_width : nullptr;
      if (ARRAY && total) {
        std::memset(total, 0, padded_width * sizeof(F));
        std::memset(sub, 0, padded_width * sizeof(F));
      }
      double number_total = 0;
      for (std::int64_t b = piece * piece_rows; b < end; ++b) {
        if (own) {
          prepare_scales<F>(scale + b * width, width, own, nullptr);
          if (sub) std::memset(sub, 0, padded_width * sizeof(F));
        }
        const X* row = x + b * width;
        const std::uint8_t* marks = row_mask<MASK>(call.mask, b, width);
        for (std::int64_t s = 0; s < call.num_samples; ++s) {
          const std::int64_t position = s * call.batch + b;
          const F* outputs = output + position * width;
          F* out = grad_output ? grad_output + position * width : nullptr;
          const F g = grad[position];
          Vec<F> scale_terms[2] = {};
          auto add = [&](int n, std::int64_t d, typename LAW::Entries entries,
                         std::int64_t left) __attribute__((always_inline)) {
            const Vec<F> inverses = ARRAY ? load<Vec<F>>(inverse + d) : number;
            // an infinite or missing 1/s times nothing is still nothing
            const Vec<F> used = entries.observed ? inverses : Vec<F>{};
            const typename LAW::Terms terms = LAW::terms(entries, g, used);
            if constexpr (NUMBER) {
              scale_terms[n] += entries.observed ? terms.scale : Vec<F>{};
            }
            if constexpr (ARRAY) {
              if (sub) {
                const Vec<F> term = LAW::scale_gradient(terms);
                store(sub + d, load<Vec<F>>(sub + d) + (entries.observed ? term : Vec<F>{}));
              }
            }
            if (out) store_up_to(out + d, LAW::gradient(terms), left);
          };
          std::int64_t d = 0;
          for (; d + 2 * LANES <= width; d += 2 * LANES) {
            add(0, d, load_entries<LAW, X, MASK>(row + d, outputs + d, marks, d), LANES);
            add(1, d + LANES,
                load_entries<LAW, X, MASK>(row + d + LANES, outputs + d + LANES, marks, d + LANES),
                LANES);
          }
          for (; d < width; d += LANES) {
            const std::int64_t left = width - d;
            add(0, d,
                left >= LANES
                    ? load_entries<LAW, X, MASK>(row + d, outputs + d, marks, d)
                    : load_some_entries<LAW, X, MASK>(row + d, outputs + d, marks, d, (int)left),
                left);
          }
          if (number_totals) {
            number_total += (double)(g * number_inverse) *
                            (wide_sum<F>(scale_terms[0]) + wide_sum<F>(scale_terms[1]));
          }
        }
        if (total && ((b + 1) % SUB_SUM_ROWS == 0 || b + 1 == end)) {
          for (std::int64_t d = 0; d < width; d += LANES) {
            store(total + d, load<Vec<F>>(total + d) + load<Vec<F>>(sub + d));
            store(sub + d, Vec<F>{});
          }
        }
        if (sub && per_entry) std::memcpy(grad_scale + b * width, sub, width * sizeof(F));
      }
      if (number_totals) number_totals[piece] = number_total;
    }
  };
  parallel(num_pieces, threads, work);

  if (number_totals) {
    double total = 0;
    for (std::int64_t piece = 0; piece < num_pieces; ++piece) total += number_totals[piece];
    grad_scale[0] = (F)total;
  }
  if (totals) {
    for (std::int64_t d = 0; d < width; ++d) {
      F total = 0;
      for (std::int64_t piece = 0; piece < num_pieces; ++piece) {
        total += totals[piece * padded_width + d];
      }
      grad_scale[d] = total;
    }
  }
}

template <class F>
void log_likelihood(const LogLikelihood& call, int threads) {
  Laws::visit<F>(call, [&](auto law) {
    for_entries<F>(call.x_type, call.mask_kind, [&](auto x, auto mask) {
      using LAW = decltype(law);
      using X = decltype(x);
      constexpr MaskKind MASK = decltype(mask)::value;
      call.backward ? log_likelihood_bwd<LAW, X, MASK>(call, threads)
                    : log_likelihood_fwd<LAW, X, MASK>(call, threads);
    });
  });
}

}  // namespace RVI_PATH
}  // namespace rvi
