// gaussian_log_likelihood: see rvi_fast.reference.gaussian_log_likelihood_fwd and _bwd.
//
// One pass over x and mean in either direction. A scale that is not a single number goes through
// two arrays of a row's length, 1/s and log s: made once where s is per feature, row by row where
// it is per entry. Sums over the batch have an order that depends on its size alone.

namespace rvi {
namespace RVI_PATH {

constexpr double HALF_LOG_TWO_PI = 0.91893853320467274178;
constexpr std::int64_t LIKELIHOOD_PIECE_ROWS = 1024, LIKELIHOOD_MAX_PIECES = 32;
// rows summed before they join the sum of the piece, so that rounding errors grow slowly
constexpr int SUB_SUM_ROWS = 32;

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

RVI_INLINE float to_float(Half half) {
  const std::uint32_t sign = (std::uint32_t)(half.bits & 0x8000) << 16;
  const std::uint32_t exponent = (half.bits >> 10) & 31, mantissa = half.bits & 1023;
  float result;
  if (exponent == 0) {
    result = (float)mantissa * 0x1p-24f;
    std::uint32_t bits;
    std::memcpy(&bits, &result, 4);
    bits |= sign;
    std::memcpy(&result, &bits, 4);
    return result;
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  const std::uint32_t bits = sign | (wide << 23) | (mantissa << 13);
  std::memcpy(&result, &bits, 4);
  return result;
}

template <class T, int LANES>
struct Narrow {
  typedef T Type __attribute__((vector_size(LANES * sizeof(T))));
};

template <class F, class X>
RVI_INLINE Vec<F> load_values(const X* x) {
  constexpr int LANES = Simd<F>::LANES;
  if constexpr (std::is_same_v<X, F>) {
    return load<Vec<F>>(x);
  } else if constexpr (std::is_same_v<X, BFloat16>) {
    auto raw = load<typename Narrow<std::uint16_t, LANES>::Type>(x);
    return (FloatVec)(__builtin_convertvector(raw, Uint32Vec) << 16);
  } else if constexpr (std::is_same_v<X, Half>) {
#if defined(RVI_AVX512)
    return (FloatVec)_mm512_cvtph_ps(load<__m256i>(x));
#elif defined(RVI_AVX2)
    return (FloatVec)_mm256_cvtph_ps(load<__m128i>(x));
#else
    FloatVec result;
    for (int lane = 0; lane < LANES; ++lane) result[lane] = to_float(x[lane]);
    return result;
#endif
  } else {
    auto raw = load<typename Narrow<std::uint8_t, LANES>::Type>(x);
    return __builtin_convertvector(__builtin_convertvector(raw, Int32Vec), FloatVec) *
           (float)(1.0 / 255.0);
  }
}

// What the inner loops read at once: `observed` is all ones or 0 in each lane.
template <class F>
struct Entries {
  Vec<F> residual;  // 0 where not observed
  IntVec<F> observed;
};

// x and mean are those of entry d, the mask is that of its row.
template <class F, class X, MaskKind MASK>
RVI_INLINE Entries<F> load_entries(const X* x, const F* mean, const std::uint8_t* mask,
                                   std::int64_t d) {
  Vec<F> value = load_values<F>(x);
  IntVec<F> observed;
  if constexpr (MASK == MaskKind::bytes) {
    auto raw = load<typename Narrow<std::uint8_t, Simd<F>::LANES>::Type>(mask + d);
    observed = __builtin_convertvector(raw, IntVec<F>) != 0;
  } else if constexpr (MASK == MaskKind::bits) {
    // no vector goes over the end of a word: its lanes divide 32, and d is a multiple of them
    observed = lanes_of<F>(load<std::uint32_t>(mask + d / 32 * 4) >> (d % 32));
  } else {
    observed = value == value;
  }
  Vec<F> residual = value - load<Vec<F>>(mean);
  return {observed ? residual : Vec<F>{}, observed};
}

template <class F, class X, MaskKind MASK>
RVI_INLINE Entries<F> load_some_entries(const X* x, const F* mean, const std::uint8_t* mask,
                                        std::int64_t d, int count) {
  constexpr int LANES = Simd<F>::LANES;
  X some_x[LANES] = {};
  F some_mean[LANES] = {};
  std::uint8_t some_mask[LANES] = {};
  std::memcpy(some_x, x, count * sizeof(X));
  std::memcpy(some_mean, mean, count * sizeof(F));
  if constexpr (MASK == MaskKind::bytes) {
    std::memcpy(some_mask, mask + d, count);
    mask = some_mask, d = 0;
  }
  Entries<F> result = load_entries<F, X, MASK>(some_x, some_mean, mask, d);
  result.observed &= lanes_of<F>((1u << count) - 1);
  return result;
}

template <MaskKind MASK>
RVI_INLINE const std::uint8_t* row_mask(const std::uint8_t* mask, std::int64_t row,
                                        std::int64_t width) {
  if (MASK == MaskKind::none) return nullptr;
  return mask + row * (MASK == MaskKind::bytes ? width : (width + 31) / 32 * 4);
}

// 1/s and, where wanted, log s of `count` scales; the arrays are whole vectors.
template <class F>
inline void prepare_scales(const F* scale, std::int64_t count, F* inverse, F* logarithms) {
  constexpr int LANES = Simd<F>::LANES;
  for (std::int64_t d = 0; d < count; d += LANES) {
    Vec<F> s = load_up_to(scale + d, count - d);
    store(inverse + d, F(1) / s);
    if (logarithms) store(logarithms + d, logarithm(s));
  }
}

template <class F, class X, MaskKind MASK, bool UNIFORM>
void likelihood_fwd(const GaussianLogLikelihood& call, int threads) {
  constexpr int LANES = Simd<F>::LANES;
  const std::int64_t width = call.num_features, padded_width = round_up(width, LANES);
  const X* x = static_cast<const X*>(call.x);
  const F* mean = static_cast<const F*>(call.mean);
  const F* scale = static_cast<const F*>(call.scale);
  F* log_prob = static_cast<F*>(call.log_prob);
  Scratch shared_memory;
  F* shared = nullptr;
  F uniform_inverse = 0, uniform_constant = 0;
  if constexpr (UNIFORM) {
    uniform_inverse = F(1) / scale[0];
    uniform_constant = (F)(std::log(scale[0]) + HALF_LOG_TWO_PI);
  } else if (call.scale_kind == ScaleKind::feature) {
    shared = shared_memory.make<F>(2 * padded_width);
    prepare_scales(scale, width, shared, shared + padded_width);
  }

  auto work = [&](std::int64_t begin, std::int64_t end) {
    Scratch own_memory;
    F* own = nullptr;
    if (!UNIFORM && shared == nullptr) own = own_memory.make<F>(2 * padded_width);
    const F* inverse = shared ? shared : own;
    const F* logarithms = inverse + (UNIFORM ? 0 : padded_width);
    for (std::int64_t b = begin; b < end; ++b) {
      if (own) prepare_scales(scale + b * width, width, own, own + padded_width);
      const X* row = x + b * width;
      const std::uint8_t* marks = row_mask<MASK>(call.mask, b, width);
      for (std::int64_t s = 0; s < call.num_samples; ++s) {
        const F* row_mean = mean + (s * call.batch + b) * width;
        Vec<F> squares[2] = {}, constants[2] = {};
        IntVec<F> count[2] = {};
        auto add = [&](int n, std::int64_t d, Entries<F> entries) __attribute__((always_inline)) {
          Vec<F> scaled;
          if constexpr (UNIFORM) {
            scaled = entries.residual * uniform_inverse;
          } else {
            scaled = entries.residual * load<Vec<F>>(inverse + d);
            Vec<F> constant = load<Vec<F>>(logarithms + d);
            constants[n] += entries.observed ? constant : Vec<F>{};
            // an infinite or missing 1/s times nothing is still nothing
            scaled = entries.observed ? scaled : Vec<F>{};
          }
          squares[n] += scaled * scaled;
          count[n] -= entries.observed;
        };
        std::int64_t d = 0;
        for (; d + 2 * LANES <= width; d += 2 * LANES) {
          add(0, d, load_entries<F, X, MASK>(row + d, row_mean + d, marks, d));
          add(1, d + LANES,
              load_entries<F, X, MASK>(row + d + LANES, row_mean + d + LANES, marks, d + LANES));
        }
        for (; d < width; d += LANES) {
          const std::int64_t left = width - d;
          add(0, d,
              left >= LANES
                  ? load_entries<F, X, MASK>(row + d, row_mean + d, marks, d)
                  : load_some_entries<F, X, MASK>(row + d, row_mean + d, marks, d, (int)left));
        }
        const F observed = sum<F>(__builtin_convertvector(count[0] + count[1], Vec<F>));
        F constant = 0;
        if constexpr (UNIFORM) {
          constant = observed > 0 ? observed * uniform_constant : F(0);
        } else {
          constant = sum<F>(constants[0] + constants[1]) + observed * (F)HALF_LOG_TWO_PI;
        }
        log_prob[s * call.batch + b] =
            observed > 0 ? -(F(0.5) * sum<F>(squares[0] + squares[1]) + constant) : F(0);
      }
    }
  };
  parallel(call.batch, threads, work);
}

template <class F, class X, MaskKind MASK, bool UNIFORM>
void likelihood_bwd(const GaussianLogLikelihood& call, int threads) {
  constexpr int LANES = Simd<F>::LANES;
  const std::int64_t width = call.num_features, padded_width = round_up(width, LANES);
  const X* x = static_cast<const X*>(call.x);
  const F* mean = static_cast<const F*>(call.mean);
  const F* scale = static_cast<const F*>(call.scale);
  const F* grad = static_cast<const F*>(call.grad);
  F* grad_mean = static_cast<F*>(call.grad_mean);
  F* grad_scale = static_cast<F*>(call.grad_scale);
  const bool per_feature = call.scale_kind == ScaleKind::feature;
  const bool per_entry = call.scale_kind == ScaleKind::entry;

  std::int64_t piece_rows = LIKELIHOOD_PIECE_ROWS;
  if (call.batch > piece_rows * LIKELIHOOD_MAX_PIECES) {
    piece_rows = (call.batch + LIKELIHOOD_MAX_PIECES - 1) / LIKELIHOOD_MAX_PIECES;
  }
  const std::int64_t num_pieces = (call.batch + piece_rows - 1) / piece_rows;
  Scratch shared_memory, totals_memory, uniform_memory;
  F* shared = nullptr;
  if (per_feature) {
    shared = shared_memory.make<F>(padded_width);
    prepare_scales<F>(scale, width, shared, nullptr);
  }
  const F uniform_inverse = UNIFORM ? F(1) / scale[0] : F(0);
  // per feature a row of sums for each piece, for a single scale one sum for each
  F* totals = nullptr;
  double* uniform_totals = nullptr;
  if (grad_scale && per_feature) totals = totals_memory.make<F>(num_pieces * padded_width);
  if (grad_scale && UNIFORM) uniform_totals = uniform_memory.make<double>(num_pieces);

  auto work = [&](std::int64_t first_piece, std::int64_t last_piece) {
    Scratch own_memory, sub_memory;
    F* own = nullptr;
    if (per_entry) own = own_memory.make<F>(padded_width);
    const F* inverse = shared ? shared : own;
    // sums over the samples of an entry, or over a few rows of a feature
    F* sub = nullptr;
    if (grad_scale && !UNIFORM) sub = sub_memory.make<F>(padded_width);
    for (std::int64_t piece = first_piece; piece < last_piece; ++piece) {
      const std::int64_t stop = (piece + 1) * piece_rows;
      const std::int64_t end = stop < call.batch ? stop : call.batch;
      F* total = totals ? totals + piece * padded_width : nullptr;
      if (!UNIFORM && total) {
        std::memset(total, 0, padded_width * sizeof(F));
        std::memset(sub, 0, padded_width * sizeof(F));
      }
      double uniform_total = 0;
      for (std::int64_t b = piece * piece_rows; b < end; ++b) {
        if (own) {
          prepare_scales<F>(scale + b * width, width, own, nullptr);
          if (sub) std::memset(sub, 0, padded_width * sizeof(F));
        }
        const X* row = x + b * width;
        const std::uint8_t* marks = row_mask<MASK>(call.mask, b, width);
        for (std::int64_t s = 0; s < call.num_samples; ++s) {
          const std::int64_t position = s * call.batch + b;
          const F* row_mean = mean + position * width;
          F* out = grad_mean ? grad_mean + position * width : nullptr;
          const F g = grad[position];
          const F uniform_factor = g * uniform_inverse;
          Vec<F> squares[2] = {};
          auto add = [&](int n, std::int64_t d, Entries<F> entries,
                         std::int64_t left) __attribute__((always_inline)) {
            Vec<F> result;
            if constexpr (UNIFORM) {
              Vec<F> scaled = entries.residual * uniform_inverse;
              result = scaled * uniform_factor;
              Vec<F> term = scaled * scaled - F(1);
              squares[n] += entries.observed ? term : Vec<F>{};
            } else {
              Vec<F> inverted = load<Vec<F>>(inverse + d);
              Vec<F> scaled = entries.residual * inverted, factor = g * inverted;
              result = scaled * factor;
              if (sub) {
                Vec<F> term = (scaled * scaled - F(1)) * factor;
                store(sub + d, load<Vec<F>>(sub + d) + (entries.observed ? term : Vec<F>{}));
              }
            }
            if (out) store_up_to(out + d, result, left);
          };
          std::int64_t d = 0;
          for (; d + 2 * LANES <= width; d += 2 * LANES) {
            add(0, d, load_entries<F, X, MASK>(row + d, row_mean + d, marks, d), LANES);
            add(1, d + LANES,
                load_entries<F, X, MASK>(row + d + LANES, row_mean + d + LANES, marks, d + LANES),
                LANES);
          }
          for (; d < width; d += LANES) {
            const std::int64_t left = width - d;
            add(0, d,
                left >= LANES
                    ? load_entries<F, X, MASK>(row + d, row_mean + d, marks, d)
                    : load_some_entries<F, X, MASK>(row + d, row_mean + d, marks, d, (int)left),
                left);
          }
          if (uniform_totals) {
            uniform_total +=
                (double)uniform_factor * (wide_sum<F>(squares[0]) + wide_sum<F>(squares[1]));
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
      if (uniform_totals) uniform_totals[piece] = uniform_total;
    }
  };
  parallel(num_pieces, threads, work);

  if (uniform_totals) {
    double total = 0;
    for (std::int64_t piece = 0; piece < num_pieces; ++piece) total += uniform_totals[piece];
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

template <class F, class X, MaskKind MASK>
void likelihood_with(const GaussianLogLikelihood& call, int threads) {
  const bool uniform = call.scale_kind == ScaleKind::scalar;
  if (call.backward) {
    uniform ? likelihood_bwd<F, X, MASK, true>(call, threads)
            : likelihood_bwd<F, X, MASK, false>(call, threads);
  } else {
    uniform ? likelihood_fwd<F, X, MASK, true>(call, threads)
            : likelihood_fwd<F, X, MASK, false>(call, threads);
  }
}

template <class F, class X>
void likelihood_of(const GaussianLogLikelihood& call, int threads) {
  switch (call.mask_kind) {
    case MaskKind::none:
      return likelihood_with<F, X, MaskKind::none>(call, threads);
    case MaskKind::bytes:
      return likelihood_with<F, X, MaskKind::bytes>(call, threads);
    case MaskKind::bits:
      return likelihood_with<F, X, MaskKind::bits>(call, threads);
  }
}

template <class F>
void gaussian_log_likelihood(const GaussianLogLikelihood& call, int threads) {
  if constexpr (sizeof(F) == 4) {
    if (call.x_type == DataType::float16) return likelihood_of<F, Half>(call, threads);
    if (call.x_type == DataType::bfloat16) return likelihood_of<F, BFloat16>(call, threads);
    if (call.x_type == DataType::uint8) return likelihood_of<F, std::uint8_t>(call, threads);
  }
  likelihood_of<F, F>(call, threads);
}

}  // namespace RVI_PATH
}  // namespace rvi
