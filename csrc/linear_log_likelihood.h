// The log-likelihood under a law whose output is hidden W^T + bias, and its gradients.
//
// A tile of the output, MEAN_ROWS rows by MEAN_FEATURES features, is computed, compared with x and
// turned in place into its gradient; while it is in the cache it is multiplied with the weight for
// grad_hidden and with hidden for grad_weight. All three products run through one register-blocked
// kernel. The batch is cut into pieces that depend on its size alone; each piece has sums of its
// own, added up in order at the end.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "calls.h"
#include "entries.h"
#include "laws.h"
#include "product.h"
#include "simd/simd.h"
#include "work.h"

namespace rvi {
namespace RVI_PATH {

constexpr std::int64_t MEAN_ROWS = 64, MEAN_FEATURES = 64;
constexpr std::int64_t LINEAR_PIECE_ROWS = 128, LINEAR_MAX_PIECES = 32;

// weight [D, H] as panels of `panel` features, [panels, H, panel], and bias: 0 past the last
// feature.
template <class F>
void pack_panels(const LinearLogLikelihood& call, std::int64_t panel, F* panels, F* bias) {
  const std::int64_t depth = call.hidden_dim, features = call.likelihood.num_features;
  const F* weight = static_cast<const F*>(call.weight);
  for (std::int64_t d = 0; d < round_up(features, MEAN_FEATURES); ++d) {
    F* to = panels + d / panel * panel * depth + d % panel;
    const F* from = weight + d * depth;
    for (std::int64_t h = 0; h < depth; ++h) to[h * panel] = d < features ? from[h] : F(0);
    bias[d] = call.bias && d < features ? static_cast<const F*>(call.bias)[d] : F(0);
  }
}

template <class F>
void pad_rows(const F* from, std::int64_t rows, std::int64_t width, std::int64_t padded, F* to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * padded, from + row * width, width * sizeof(F));
    std::memset(to + row * padded + width, 0, (padded - width) * sizeof(F));
  }
}

// What all tiles share. Sums by feature are null where they are not wanted.
template <class LAW>
struct TileContext {
  using F = typename LAW::Element;
  F* tile;
  const F* inverse;     // 1/s by feature
  const F* logarithms;  // log s by feature
  F number_inverse;     // 1/s of a scale that is one number
  typename LAW::TileSums* row_sums;
  F* feature_bias;   // grad_bias of the tile's features
  F* feature_scale;  // grad_scale of the tile's features
};

// Adds the likelihood of a tile of outputs to `row_sums` and puts their gradient in its place.
template <class LAW, class X, MaskKind MASK>
void differentiate_tile(const LogLikelihood& shared_call, const TileContext<LAW>& context,
                        std::int64_t sample, std::int64_t first_row, std::int64_t rows,
                        std::int64_t first) {
  // copies of its own: what is stored could lie in the others, as far as the compiler knows
  const LogLikelihood call = shared_call;
  const TileContext<LAW> at = context;
  using F = typename LAW::Element;
  constexpr bool ARRAY = LAW::SCALES == Scales::array;
  constexpr int LANES = Simd<F>::LANES;
  const std::int64_t width = call.num_features;
  const std::int64_t stop = width < first + MEAN_FEATURES ? width : first + MEAN_FEATURES;
  const X* x = static_cast<const X*>(call.x);
  const F* scale = static_cast<const F*>(call.scale);
  const bool per_entry = call.scale_kind == ScaleKind::entry;
  F* grad_scale = per_entry ? static_cast<F*>(call.grad_scale) : nullptr;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t b = first_row + r;
    const F g = call.backward ? static_cast<const F*>(call.grad)[sample * call.batch + b] : F(0);
    const std::uint8_t* marks = row_mask<MASK>(call.mask, b, width);
    typename LAW::TileSums sums = at.row_sums[r];
    for (std::int64_t d = first; d < stop; d += LANES) {
      const std::int64_t entry = b * width + d, left = width - d;
      F* outputs = at.tile + r * MEAN_FEATURES + (d - first);
      const typename LAW::Entries entries =
          left >= LANES ? load_entries<LAW, X, MASK>(x + entry, outputs, marks, d)
                        : load_some_entries<LAW, X, MASK>(x + entry, outputs, marks, d, (int)left);
      Vec<F> inverse, logarithms = {};
      if constexpr (!ARRAY) {
        inverse = broadcast(at.number_inverse);
      } else if (per_entry) {
        const Vec<F> s = load_up_to(scale + entry, left);
        inverse = F(1) / s;
        logarithms = logarithm(s);
      } else {
        inverse = load<Vec<F>>(at.inverse + d);
        logarithms = load<Vec<F>>(at.logarithms + d);
      }
      const typename LAW::Terms terms = LAW::observed_terms(entries, g, inverse);
      LAW::add(sums, entries, terms, logarithms);
      if (call.backward) {
        const Vec<F> gradient = LAW::gradient(terms);
        store(outputs, gradient);
        if (at.feature_bias) {
          F* to = at.feature_bias + (d - first);
          store(to, load<Vec<F>>(to) + gradient);
        }
        if constexpr (LAW::SCALES != Scales::none) {
          // where the scale is one number, the sums of the row are enough
          if (at.feature_scale) {
            F* to = at.feature_scale + (d - first);
            store(to, load<Vec<F>>(to) + LAW::scale_gradient(terms));
          }
          if (grad_scale) {
            const Vec<F> before = sample ? load_up_to(grad_scale + entry, left) : Vec<F>{};
            store_up_to(grad_scale + entry, before + LAW::scale_gradient(terms), left);
          }
        }
      }
    }
    at.row_sums[r] = sums;
  }
}

// Fetches the entries of x that the next tile of the same rows is compared with.
template <class X>
RVI_INLINE void prefetch_tile(const LogLikelihood& call, std::int64_t first_row, std::int64_t rows,
                              std::int64_t first) {
  constexpr std::int64_t LINE = 64 / sizeof(X);
  const std::int64_t width = call.num_features;
  const std::int64_t stop = width < first + MEAN_FEATURES ? width : first + MEAN_FEATURES;
  for (std::int64_t b = first_row; b < first_row + rows; ++b) {
    const X* row = static_cast<const X*>(call.x) + b * width;
    for (std::int64_t d = first; d < stop; d += LINE) __builtin_prefetch(row + d);
  }
}

template <class LAW, class X, MaskKind MASK>
void linear_log_likelihood_of(const LinearLogLikelihood& linear, int threads) {
  using F = typename LAW::Element;
  using TileSums = typename LAW::TileSums;
  constexpr bool NUMBER = LAW::SCALES == Scales::number;
  constexpr int LANES = Simd<F>::LANES;
  constexpr std::int64_t PANEL = PRODUCT_VECTORS * LANES;
  static_assert(MEAN_FEATURES % PANEL == 0, "a tile is a whole number of panels");
  const LogLikelihood& call = linear.likelihood;
  const std::int64_t batch = call.batch, features = call.num_features, depth = linear.hidden_dim;
  const std::int64_t padded_features = round_up(features, MEAN_FEATURES);
  const std::int64_t padded_depth = round_up(depth, LANES);
  const bool padded = padded_depth != depth;
  const F* hidden = static_cast<const F*>(linear.hidden);
  F* grad_hidden = static_cast<F*>(linear.grad_hidden);
  F* grad_weight = static_cast<F*>(linear.grad_weight);
  F* grad_bias = static_cast<F*>(linear.grad_bias);
  F* grad_scale = static_cast<F*>(call.grad_scale);
  const F* scale = static_cast<const F*>(call.scale);
  const bool per_feature = call.scale_kind == ScaleKind::feature;

  Scratch panel_memory, weight_memory, scale_memory, zero_memory;
  F* panels = panel_memory.make<F>(padded_features * (depth + 1));
  F* bias = panels + padded_features * depth;
  pack_panels(linear, PANEL, panels, bias);
  const F* weight = static_cast<const F*>(linear.weight);
  if (padded && grad_hidden) {
    F* rows = weight_memory.make<F>(features * padded_depth);
    pad_rows(weight, features, depth, padded_depth, rows);
    weight = rows;
  }
  F* zeros = zero_memory.make<F>(padded_depth);
  std::memset(zeros, 0, padded_depth * sizeof(F));
  F* inverse = nullptr;
  if (per_feature) {
    const std::int64_t width = round_up(features, LANES);
    inverse = scale_memory.make<F>(2 * width);
    prepare_scales(scale, features, inverse, inverse + width);
  }
  const F number_inverse = NUMBER ? F(1) / scale[0] : F(0);
  const F number_logarithm = NUMBER ? (F)std::log(scale[0]) : F(0);

  std::int64_t piece_rows = LINEAR_PIECE_ROWS;
  if (batch > piece_rows * LINEAR_MAX_PIECES) {
    piece_rows = (batch + LINEAR_MAX_PIECES - 1) / LINEAR_MAX_PIECES;
  }
  const std::int64_t pieces = (batch + piece_rows - 1) / piece_rows;
  // sums of a piece: grad_weight, its rows padded, then grad_bias and grad_scale by feature
  const std::int64_t weight_size = features * padded_depth;
  const std::int64_t piece_size = weight_size + 2 * padded_features;
  Scratch totals_memory, number_memory;
  F* totals = nullptr;
  double* number_totals = nullptr;
  if (grad_weight || grad_bias || (grad_scale && per_feature)) {
    totals = totals_memory.make<F>(pieces * piece_size);
  }
  if (grad_scale && NUMBER) number_totals = number_memory.make<double>(pieces);

  auto work = [&](std::int64_t first_piece, std::int64_t last_piece) {
    Scratch own_memory, sums_memory;
    const std::int64_t tile_size = MEAN_ROWS * MEAN_FEATURES, block_size = MEAN_ROWS * padded_depth;
    F* tile = own_memory.make<F>(tile_size + 2 * block_size + 2 * MEAN_FEATURES);
    F* own_hidden = tile + tile_size;
    F* own_grad = own_hidden + block_size;
    F* feature_sums = own_grad + block_size;
    TileSums* row_sums = sums_memory.make<TileSums>(MEAN_ROWS);
    TileContext<LAW> at;
    at.tile = tile;
    at.inverse = inverse;
    at.logarithms = inverse ? inverse + round_up(features, LANES) : nullptr;
    at.number_inverse = number_inverse;
    at.row_sums = row_sums;
    at.feature_bias = grad_bias ? feature_sums : nullptr;
    at.feature_scale = grad_scale && per_feature ? feature_sums + MEAN_FEATURES : nullptr;

    for (std::int64_t piece = first_piece; piece < last_piece; ++piece) {
      const std::int64_t begin = piece * piece_rows;
      const std::int64_t end = begin + piece_rows < batch ? begin + piece_rows : batch;
      F* total = totals ? totals + piece * piece_size : nullptr;
      F* total_features = totals ? total + weight_size : nullptr;
      if (totals) std::memset(total_features, 0, 2 * padded_features * sizeof(F));
      double number_total = 0;
      bool first_tile = true;  // grad_weight is stored there, added to afterwards
      for (std::int64_t sample = 0; sample < call.num_samples; ++sample) {
        for (std::int64_t b = begin; b < end; b += MEAN_ROWS, first_tile = false) {
          const std::int64_t rows = end - b < MEAN_ROWS ? end - b : MEAN_ROWS;
          const std::int64_t position = sample * batch + b;
          const F* input = hidden + position * depth;
          if (padded) {
            pad_rows(input, rows, depth, padded_depth, own_hidden);
            input = own_hidden;
          }
          F* grad_input = padded || !grad_hidden ? own_grad : grad_hidden + position * depth;
          std::memset(row_sums, 0, rows * sizeof(TileSums));
          for (std::int64_t d = 0; d < features; d += MEAN_FEATURES) {
            const std::int64_t count = features - d < MEAN_FEATURES ? features - d : MEAN_FEATURES;
            if (d == 0) prefetch_tile<X>(call, b, rows, d);
            prefetch_tile<X>(call, b, rows, d + MEAN_FEATURES);
            for (std::int64_t column = 0; column < count; column += PANEL) {
              product<F>({rows, PRODUCT_VECTORS, depth, input, padded_depth, 1,
                          panels + (d + column) * depth, PANEL, bias + d + column, 0, tile + column,
                          MEAN_FEATURES});
            }
            if (totals) std::memset(feature_sums, 0, 2 * MEAN_FEATURES * sizeof(F));
            differentiate_tile<LAW, X, MASK>(call, at, sample, b, rows, d);
            if (grad_hidden) {
              product<F>({rows, padded_depth / LANES, count, tile, MEAN_FEATURES, 1,
                          weight + d * padded_depth, padded_depth, d ? grad_input : zeros,
                          d ? padded_depth : 0, grad_input, padded_depth});
            }
            if (grad_weight) {
              F* sums = total + d * padded_depth;
              product<F>({count, padded_depth / LANES, rows, tile, 1, MEAN_FEATURES, input,
                          padded_depth, first_tile ? zeros : sums, first_tile ? 0 : padded_depth,
                          sums, padded_depth});
            }
            if (totals) {
              for (std::int64_t i = 0; i < MEAN_FEATURES; ++i) {
                total_features[d + i] += feature_sums[i];
                total_features[padded_features + d + i] += feature_sums[MEAN_FEATURES + i];
              }
            }
          }
          for (std::int64_t r = 0; r < rows; ++r) {
            static_cast<F*>(call.log_prob)[position + r] =
                LAW::log_prob(row_sums[r], number_logarithm);
            if constexpr (NUMBER) {
              if (number_totals) {
                const F factor = static_cast<const F*>(call.grad)[position + r] * number_inverse;
                number_total += (double)factor * wide_sum<F>(row_sums[r].scale);
              }
            }
          }
          if (grad_hidden && padded) {
            for (std::int64_t r = 0; r < rows; ++r) {
              std::memcpy(grad_hidden + (position + r) * depth, own_grad + r * padded_depth,
                          depth * sizeof(F));
            }
          }
          // without features nothing has been stored
          if (grad_hidden && features == 0) {
            std::memset(grad_hidden + position * depth, 0, rows * depth * sizeof(F));
          }
        }
      }
      if (number_totals) number_totals[piece] = number_total;
    }
  };
  parallel(pieces, threads, work);

  if (number_totals) {
    double total = 0;
    for (std::int64_t piece = 0; piece < pieces; ++piece) total += number_totals[piece];
    grad_scale[0] = (F)total;
  }
  auto add_up = [&](std::int64_t offset, std::int64_t size, F* to) {
    std::memset(to, 0, size * sizeof(F));
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      const F* from = totals + piece * piece_size + offset;
      for (std::int64_t i = 0; i < size; ++i) to[i] += from[i];
    }
  };
  if (grad_weight) {
    for (std::int64_t d = 0; d < features; ++d) {
      add_up(d * padded_depth, depth, grad_weight + d * depth);
    }
  }
  if (grad_bias) add_up(weight_size, features, grad_bias);
  if (grad_scale && per_feature) add_up(weight_size + padded_features, features, grad_scale);
}

template <class F>
void linear_log_likelihood(const LinearLogLikelihood& linear, int threads) {
  const LogLikelihood& call = linear.likelihood;
  Laws::visit<F>(call, [&](auto law) {
    for_entries<F>(call.x_type, call.mask_kind, [&](auto x, auto mask) {
      linear_log_likelihood_of<decltype(law), decltype(x), decltype(mask)::value>(linear, threads);
    });
  });
}

}  // namespace RVI_PATH
}  // namespace rvi
