// linear_gaussian_log_likelihood: see rvi_fast.reference.linear_gaussian_log_likelihood_fwd and
// _bwd.
//
// A tile of the mean, MEAN_ROWS rows by MEAN_FEATURES features, is computed, compared with x and
// turned in place into its gradient; while it is in the cache it is multiplied with the weight for
// grad_hidden and with hidden for grad_weight. All three products run through one register-blocked
// kernel. The batch is cut into pieces that depend on its size alone; each piece has sums of its
// own, added up in order at the end.

namespace rvi {
namespace RVI_PATH {

constexpr std::int64_t MEAN_ROWS = 64, MEAN_FEATURES = 64;
constexpr std::int64_t LINEAR_PIECE_ROWS = 128, LINEAR_MAX_PIECES = 32;

// accumulators of a product, rows by vectors: with a row of the right factor they fill the
// registers
constexpr int PRODUCT_ROWS = 6;
#if defined(RVI_AVX512)
constexpr int PRODUCT_VECTORS = 4;
#else
constexpr int PRODUCT_VECTORS = 2;
#endif

// out[m, n] = in[m, n] + sum_k left[m, k] right[k, n], where n is contiguous everywhere.
template <class F>
struct Product {
  std::int64_t rows, vectors, depth;
  const F* left;
  std::int64_t left_row, left_step;
  const F* right;
  std::int64_t right_step;
  const F* in;
  std::int64_t in_row;  // 0 repeats one row
  F* out;
  std::int64_t out_row;
};

template <class F, int ROWS, int VECTORS>
inline void product_block(const Product<F>& p, std::int64_t row, std::int64_t column) {
  constexpr int LANES = Simd<F>::LANES;
  const F* in = p.in + row * p.in_row + column;
  Vec<F> sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) sums[m][n] = load<Vec<F>>(in + m * p.in_row + n * LANES);
  }
  const F* left = p.left + row * p.left_row;
  const F* right = p.right + column;
  for (std::int64_t k = 0; k < p.depth; ++k, left += p.left_step, right += p.right_step) {
    Vec<F> factors[VECTORS];
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) factors[n] = load<Vec<F>>(right + n * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      const Vec<F> factor = broadcast(left[m * p.left_row]);
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; ++n) sums[m][n] += factor * factors[n];
    }
  }
  F* out = p.out + row * p.out_row + column;
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < VECTORS; ++n) store(out + m * p.out_row + n * LANES, sums[m][n]);
  }
}

template <class F, int VECTORS>
inline void product_columns(const Product<F>& p, std::int64_t column) {
  std::int64_t row = 0;
  for (; row + PRODUCT_ROWS <= p.rows; row += PRODUCT_ROWS) {
    product_block<F, PRODUCT_ROWS, VECTORS>(p, row, column);
  }
  switch (p.rows - row) {
    case 5:
      return product_block<F, 5, VECTORS>(p, row, column);
    case 4:
      return product_block<F, 4, VECTORS>(p, row, column);
    case 3:
      return product_block<F, 3, VECTORS>(p, row, column);
    case 2:
      return product_block<F, 2, VECTORS>(p, row, column);
    case 1:
      return product_block<F, 1, VECTORS>(p, row, column);
    default:
      return;
  }
}

template <class F>
void product(const Product<F>& p) {
  constexpr int LANES = Simd<F>::LANES;
  std::int64_t n = 0;
  for (; n + PRODUCT_VECTORS <= p.vectors; n += PRODUCT_VECTORS) {
    product_columns<F, PRODUCT_VECTORS>(p, n * LANES);
  }
  for (; n < p.vectors; ++n) product_columns<F, 1>(p, n * LANES);
}

// weight [D, H] as panels of `panel` features, [panels, H, panel], and bias: 0 past the last
// feature.
template <class F>
void pack_panels(const LinearGaussianLogLikelihood& call, std::int64_t panel, F* panels, F* bias) {
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

// Sums over the entries of a row seen so far, lane by lane.
template <class F>
struct RowSums {
  Vec<F> terms;      // u^2 - 1 with u = (x - mean) / s
  Vec<F> count;      // entries observed
  Vec<F> logarithm;  // log s, where it is not one for all
};

// What all tiles share. Sums by feature are null where they are not wanted.
template <class F>
struct TileContext {
  F* tile;
  const F* inverse;     // 1/s by feature
  const F* logarithms;  // log s by feature
  F uniform_inverse;
  RowSums<F>* row_sums;
  F* feature_bias;   // grad_bias of the tile's features
  F* feature_scale;  // grad_scale of the tile's features
};

// Adds the likelihood of a tile of means to `row_sums` and puts grad_mean in its place.
template <class F, class X, MaskKind MASK, bool UNIFORM>
void differentiate_tile(const GaussianLogLikelihood& shared_call, const TileContext<F>& context,
                        std::int64_t sample, std::int64_t first_row, std::int64_t rows,
                        std::int64_t first) {
  // copies of its own: what is stored could lie in the others, as far as the compiler knows
  const GaussianLogLikelihood call = shared_call;
  const TileContext<F> at = context;
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
    RowSums<F> sums = at.row_sums[r];
    IntVec<F> count = {};
    for (std::int64_t d = first; d < stop; d += LANES) {
      const std::int64_t entry = b * width + d, left = width - d;
      F* means = at.tile + r * MEAN_FEATURES + (d - first);
      const Entries<F> entries =
          left >= LANES ? load_entries<F, X, MASK>(x + entry, means, marks, d)
                        : load_some_entries<F, X, MASK>(x + entry, means, marks, d, (int)left);
      count -= entries.observed;
      Vec<F> scaled, factor;
      if constexpr (UNIFORM) {
        scaled = entries.residual * at.uniform_inverse;
        factor = broadcast(g * at.uniform_inverse);
      } else {
        Vec<F> inverse, constant;
        if (per_entry) {
          const Vec<F> s = load_up_to(scale + entry, left);
          inverse = F(1) / s;
          constant = logarithm(s);
        } else {
          inverse = load<Vec<F>>(at.inverse + d);
          constant = load<Vec<F>>(at.logarithms + d);
        }
        sums.logarithm += entries.observed ? constant : Vec<F>{};
        // an infinite or missing 1/s times nothing is still nothing
        scaled = entries.observed ? entries.residual * inverse : Vec<F>{};
        factor = entries.observed ? g * inverse : Vec<F>{};
      }
      Vec<F> term = scaled * scaled - F(1);
      term = entries.observed ? term : Vec<F>{};
      sums.terms += term;
      if (call.backward) {
        const Vec<F> gradient = scaled * factor;
        store(means, gradient);
        if (at.feature_bias) {
          F* to = at.feature_bias + (d - first);
          store(to, load<Vec<F>>(to) + gradient);
        }
        if (at.feature_scale) {
          F* to = at.feature_scale + (d - first);
          store(to, load<Vec<F>>(to) + term * factor);
        }
        if (grad_scale) {
          const Vec<F> before = sample ? load_up_to(grad_scale + entry, left) : Vec<F>{};
          store_up_to(grad_scale + entry, before + term * factor, left);
        }
      }
    }
    sums.count += __builtin_convertvector(count, Vec<F>);
    at.row_sums[r] = sums;
  }
}

// Fetches the entries of x that the next tile of the same rows is compared with.
template <class X>
RVI_INLINE void prefetch_tile(const GaussianLogLikelihood& call, std::int64_t first_row,
                              std::int64_t rows, std::int64_t first) {
  constexpr std::int64_t LINE = 64 / sizeof(X);
  const std::int64_t width = call.num_features;
  const std::int64_t stop = width < first + MEAN_FEATURES ? width : first + MEAN_FEATURES;
  for (std::int64_t b = first_row; b < first_row + rows; ++b) {
    const X* row = static_cast<const X*>(call.x) + b * width;
    for (std::int64_t d = first; d < stop; d += LINE) __builtin_prefetch(row + d);
  }
}

template <class F, class X, MaskKind MASK, bool UNIFORM>
void linear_likelihood_of(const LinearGaussianLogLikelihood& linear, int threads) {
  constexpr int LANES = Simd<F>::LANES;
  constexpr std::int64_t PANEL = PRODUCT_VECTORS * LANES;
  static_assert(MEAN_FEATURES % PANEL == 0, "a tile is a whole number of panels");
  const GaussianLogLikelihood& call = linear.likelihood;
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
  const F uniform_inverse = UNIFORM ? F(1) / scale[0] : F(0);
  const F uniform_constant = UNIFORM ? (F)std::log(scale[0]) : F(0);

  std::int64_t piece_rows = LINEAR_PIECE_ROWS;
  if (batch > piece_rows * LINEAR_MAX_PIECES) {
    piece_rows = (batch + LINEAR_MAX_PIECES - 1) / LINEAR_MAX_PIECES;
  }
  const std::int64_t pieces = (batch + piece_rows - 1) / piece_rows;
  // sums of a piece: grad_weight, its rows padded, then grad_bias and grad_scale by feature
  const std::int64_t weight_size = features * padded_depth;
  const std::int64_t piece_size = weight_size + 2 * padded_features;
  Scratch totals_memory, uniform_memory;
  F* totals = nullptr;
  double* uniform_totals = nullptr;
  if (grad_weight || grad_bias || (grad_scale && per_feature)) {
    totals = totals_memory.make<F>(pieces * piece_size);
  }
  if (grad_scale && UNIFORM) uniform_totals = uniform_memory.make<double>(pieces);

  auto work = [&](std::int64_t first_piece, std::int64_t last_piece) {
    Scratch own_memory, sums_memory;
    const std::int64_t tile_size = MEAN_ROWS * MEAN_FEATURES, block_size = MEAN_ROWS * padded_depth;
    F* tile = own_memory.make<F>(tile_size + 2 * block_size + 2 * MEAN_FEATURES);
    F* own_hidden = tile + tile_size;
    F* own_grad = own_hidden + block_size;
    F* feature_sums = own_grad + block_size;
    RowSums<F>* row_sums = sums_memory.make<RowSums<F>>(MEAN_ROWS);
    TileContext<F> at;
    at.tile = tile;
    at.inverse = inverse;
    at.logarithms = inverse ? inverse + round_up(features, LANES) : nullptr;
    at.uniform_inverse = uniform_inverse;
    at.row_sums = row_sums;
    at.feature_bias = grad_bias ? feature_sums : nullptr;
    at.feature_scale = grad_scale && per_feature ? feature_sums + MEAN_FEATURES : nullptr;

    for (std::int64_t piece = first_piece; piece < last_piece; ++piece) {
      const std::int64_t begin = piece * piece_rows;
      const std::int64_t end = begin + piece_rows < batch ? begin + piece_rows : batch;
      F* total = totals ? totals + piece * piece_size : nullptr;
      F* total_features = totals ? total + weight_size : nullptr;
      if (totals) std::memset(total_features, 0, 2 * padded_features * sizeof(F));
      double uniform_total = 0;
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
          std::memset(row_sums, 0, rows * sizeof(RowSums<F>));
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
            differentiate_tile<F, X, MASK, UNIFORM>(call, at, sample, b, rows, d);
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
            const F observed = sum<F>(row_sums[r].count), terms = sum<F>(row_sums[r].terms);
            const F logarithms =
                UNIFORM ? observed * uniform_constant : sum<F>(row_sums[r].logarithm);
            const F constant = logarithms + observed * (F)(0.5 + HALF_LOG_TWO_PI);
            static_cast<F*>(call.log_prob)[position + r] =
                observed > 0 ? -(F(0.5) * terms + constant) : F(0);
            if (uniform_totals) {
              const F factor = static_cast<const F*>(call.grad)[position + r] * uniform_inverse;
              uniform_total += (double)factor * wide_sum<F>(row_sums[r].terms);
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
      if (uniform_totals) uniform_totals[piece] = uniform_total;
    }
  };
  parallel(pieces, threads, work);

  if (uniform_totals) {
    double total = 0;
    for (std::int64_t piece = 0; piece < pieces; ++piece) total += uniform_totals[piece];
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

template <class F, class X, MaskKind MASK>
void linear_likelihood_masked(const LinearGaussianLogLikelihood& linear, int threads) {
  linear.likelihood.scale_kind == ScaleKind::scalar
      ? linear_likelihood_of<F, X, MASK, true>(linear, threads)
      : linear_likelihood_of<F, X, MASK, false>(linear, threads);
}

template <class F, class X>
void linear_likelihood_with(const LinearGaussianLogLikelihood& linear, int threads) {
  switch (linear.likelihood.mask_kind) {
    case MaskKind::none:
      return linear_likelihood_masked<F, X, MaskKind::none>(linear, threads);
    case MaskKind::bytes:
      return linear_likelihood_masked<F, X, MaskKind::bytes>(linear, threads);
    case MaskKind::bits:
      return linear_likelihood_masked<F, X, MaskKind::bits>(linear, threads);
  }
}

template <class F>
void linear_gaussian_log_likelihood(const LinearGaussianLogLikelihood& linear, int threads) {
  const DataType x_type = linear.likelihood.x_type;
  if constexpr (sizeof(F) == 4) {
    if (x_type == DataType::float16) return linear_likelihood_with<F, Half>(linear, threads);
    if (x_type == DataType::bfloat16) return linear_likelihood_with<F, BFloat16>(linear, threads);
    if (x_type == DataType::uint8) return linear_likelihood_with<F, std::uint8_t>(linear, threads);
  }
  linear_likelihood_with<F, F>(linear, threads);
}

}  // namespace RVI_PATH
}  // namespace rvi
