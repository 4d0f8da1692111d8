// relay_sample: gather, select, combine, sample and KL, and the gradients; see
// rvi_fast.reference.relay_sample_fwd and relay_sample_bwd for what is computed.
//
// Rows are worked on in blocks, so that the relay vectors of a group stay in the first-level cache
// while the block passes over them. Sums over the batch have an order that depends on its size
// alone.

namespace rvi {
namespace RVI_PATH {

constexpr int FORWARD_ROWS = 16;
constexpr int BACKWARD_ROWS = 64;  // one bit each in a word
// latent dimensions held in registers at once, in vectors
constexpr int CHUNK = 4;
// tile of the dense products <grad_mean, R_k>: rows and vectors of k
#if defined(RVI_AVX512)
constexpr int TILE_ROWS = 8, TILE_VECTORS = 3;
#elif defined(RVI_AVX2)
constexpr int TILE_ROWS = 4, TILE_VECTORS = 3;
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
#endif
static_assert(BACKWARD_ROWS % TILE_ROWS == 0, "a block is made of whole tiles");
// below this share of kept coefficients a product each is cheaper than dense ones
constexpr double DENSE_SHARE = 0.3;
// rows whose sum of relay gradients is made in one piece, and the most pieces
constexpr std::int64_t PIECE_ROWS = 2048, MAX_PIECES = 32;

template <class F>
RVI_INLINE void prefetch_row(const F* row, int width) {
  const char* begin = reinterpret_cast<const char*>(row);
  for (std::size_t byte = 0; byte < width * sizeof(F); byte += 64) __builtin_prefetch(begin + byte);
}

template <class F>
RVI_INLINE Vec<F> clamped_log_std(Vec<F> log_std) {
  const F limit = 30;  // reference.LOG_STD_LIMIT; NaN stays NaN
  log_std = log_std > limit ? broadcast(limit) : log_std;
  return log_std < -limit ? broadcast(-limit) : log_std;
}

// A matrix [height, width] with rows of `stride` >= width elements, what is beyond width being 0;
// the matrix itself where its rows need nothing of that.
template <class F>
inline const F* padded(const F* matrix, std::int64_t height, int width, std::int64_t stride,
                       Scratch& memory) {
  if (width == stride) return matrix;
  F* copy = memory.make<F>(height * stride);
  for (std::int64_t row = 0; row < height; ++row) {
    for (int column = 0; column < stride; ++column) {
      copy[row * stride + column] = column < width ? matrix[row * width + column] : F(0);
    }
  }
  return copy;
}

// Writes which bits are set, in ascending order, and perhaps up to 16 entries more; returns how
// many.
RVI_INLINE int list_bits(const std::uint32_t* words, int size, std::uint32_t* list) {
  int count = 0;
#if defined(RVI_AVX512)
  __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int k = 0; k < size; k += 16) {
    const __mmask16 bits = (__mmask16)(words[k / 32] >> (k % 32));
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32(bits, numbers));
    count += __builtin_popcount(bits);
    numbers = _mm512_add_epi32(numbers, _mm512_set1_epi32(16));
  }
#else
  for (int word = 0; word * 32 < size; ++word) {
    for (std::uint32_t bits = words[word]; bits != 0; bits &= bits - 1) {
      list[count++] = word * 32 + __builtin_ctz(bits);
    }
  }
#endif
  return count;
}

// mean += sum of weights[k] relays[k] over the listed k, `VECTORS` vectors wide. Two sums at a
// time, so that an addition need not wait for the one before.
template <class F, int VECTORS>
RVI_INLINE void combine_chunk(const std::uint32_t* list, int count, const F* weights,
                              const F* relays, std::int64_t stride, F* mean) {
  constexpr int LANES = Simd<F>::LANES;
  Vec<F> even[VECTORS], odd[VECTORS] = {};
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) even[v] = load<Vec<F>>(mean + v * LANES);
  int j = 0;
  for (; j + 2 <= count; j += 2) {
    const std::int64_t k = list[j], next = list[j + 1];
    const Vec<F> weight = broadcast(weights[k]), next_weight = broadcast(weights[next]);
    const F* relay = relays + k * stride;
    const F* next_relay = relays + next * stride;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      even[v] += weight * load<Vec<F>>(relay + v * LANES);
      odd[v] += next_weight * load<Vec<F>>(next_relay + v * LANES);
    }
  }
  if (j < count) {
    const std::int64_t k = list[j];
    const Vec<F> weight = broadcast(weights[k]);
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      even[v] += weight * load<Vec<F>>(relays + k * stride + v * LANES);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) store(mean + v * LANES, even[v] + odd[v]);
}

template <class F>
inline void combine(const std::uint32_t* words, int size, const F* weights, const F* relays,
                    std::int64_t stride, std::uint32_t* list, F* mean) {
  constexpr int LANES = Simd<F>::LANES;
  const int count = list_bits(words, size, list);
  std::int64_t t = 0;
  for (; t + CHUNK * LANES <= stride; t += CHUNK * LANES) {
    combine_chunk<F, CHUNK>(list, count, weights, relays + t, stride, mean + t);
  }
  for (; t < stride; t += LANES) {
    combine_chunk<F, 1>(list, count, weights, relays + t, stride, mean + t);
  }
}

// Softmax over the kept coefficients of a group, 0 elsewhere. Writes up to a vector too far.
template <class F>
inline void mixture_weights(const std::uint32_t* words, int size, const F* coefficients,
                            F* weights) {
  constexpr int LANES = Simd<F>::LANES;
  const F lowest = -std::numeric_limits<F>::infinity();
  Vec<F> largest = broadcast(lowest);
  for (int k = 0; k < size; k += LANES) {
    IntVec<F> kept = lanes_of<F>(words[k / 32] >> (k % 32));
    Vec<F> value = kept ? load_up_to(coefficients + k, size - k) : broadcast(lowest);
    largest = value > largest ? value : largest;
    store(weights + k, value);
  }
  F top = lowest;
  for (int lane = 0; lane < LANES; ++lane) top = largest[lane] > top ? largest[lane] : top;
  Vec<F> total = {};
  for (int k = 0; k < size; k += LANES) {
    IntVec<F> kept = lanes_of<F>(words[k / 32] >> (k % 32));
    Vec<F> value = exponential(load<Vec<F>>(weights + k) - top);
    value = kept ? value : Vec<F>{};
    total += value;
    store(weights + k, value);
  }
  const F scale = 1 / sum<F>(total);
  for (int k = 0; k < size; k += LANES) store(weights + k, load<Vec<F>>(weights + k) * scale);
}

// The noise of a row and sample: given, or drawn into `buffer`.
template <class F>
RVI_INLINE const F* noise_of(const F* given, std::uint64_t seed, std::int64_t row,
                             std::int64_t sample, std::int64_t position, int latent_dim,
                             F* buffer) {
  if (given != nullptr) return given + position * latent_dim;
  for (int t = 0; t < latent_dim; t += NORMALS) {
    normals(seed, (std::uint64_t)row, (std::uint32_t)sample, t, buffer + t);
  }
  return buffer;
}

// What both directions need of a batch, in the types of the path.
template <class F>
struct Batch {
  const RowLayout& layout;
  const Index& index;
  const F* rows;
  std::int64_t stride;  // T in whole vectors
  const F* relays;      // [K, stride]
  int weights_width;    // of one row's mixture weights

  // Weights of the kept coefficients of a block whose bits are known, with the positions of the
  // coefficients: in the mixture they are made in `memory` [count, weights_width], otherwise they
  // are the rows themselves.
  void weights(const F* const* block, int count, const std::uint32_t* bits, F* memory,
               const F** result) const {
    for (int i = 0; i < count; ++i) {
      result[i] = block[i];
      if (layout.form != Form::mixture) continue;
      F* own = memory + (std::int64_t)i * weights_width;
      result[i] = own;
      const std::uint32_t* words = bits + (std::int64_t)i * layout.num_words;
      for (std::size_t g = 0; g < layout.groups.size(); ++g) {
        const int offset = layout.group_offsets[g];
        mixture_weights(words + layout.word_offsets[g], layout.groups[g], block[i] + offset,
                        own + offset);
      }
    }
  }

  // Means of a block whose bits and weights are known: mean [count, stride]. `list` has room for
  // K + 16 numbers.
  void means(const F* const* block, int count, const std::uint32_t* bits, const F* const* weights,
             std::uint32_t* list, F* mean) const {
    constexpr int LANES = Simd<F>::LANES;
    for (int i = 0; i < count; ++i) {
      const F* deviation = block[i] + layout.deviation_offset;
      for (int t = 0; t < stride; t += LANES) {
        store(mean + i * stride + t, load_up_to(deviation + t, layout.latent_dim - t));
      }
    }
    for (std::size_t g = 0; g < layout.groups.size(); ++g) {
      const int size = layout.groups[g], offset = layout.group_offsets[g];
      const F* part = relays + layout.relay_offsets[g] * stride;
      for (int i = 0; i < count; ++i) {
        const std::uint32_t* words = bits + (std::int64_t)i * layout.num_words;
        words += layout.word_offsets[g];
        combine(words, size, weights[i] + offset, part, stride, list, mean + i * stride);
      }
    }
    // an infinite weight times the zeros of the padding is NaN
    for (int i = 0; i < count; ++i) {
      for (std::int64_t t = layout.latent_dim; t < stride; ++t) mean[i * stride + t] = 0;
    }
  }
};

template <class F>
void relay_sample_fwd(const RelaySampleFwd& call, int threads) {
  constexpr int LANES = Simd<F>::LANES;
  const RowLayout& layout = *call.layout;
  const int latent_dim = layout.latent_dim;
  const std::int64_t stride = round_up(latent_dim, LANES);
  Scratch padded_relays;
  Batch<F> batch{layout,
                 call.index,
                 static_cast<const F*>(call.rows),
                 stride,
                 padded(static_cast<const F*>(call.relays), layout.num_relays, latent_dim, stride,
                        padded_relays),
                 (int)round_up(layout.deviation_offset + LANES, LANES)};
  const F* noise = static_cast<const F*>(call.noise);
  F* z = static_cast<F*>(call.z);
  F* kl = static_cast<F*>(call.kl);
  F* saved_mean = static_cast<F*>(call.mean);
  const std::int64_t size = call.index.size;

  auto work = [&](std::int64_t first_block, std::int64_t last_block) {
    Scratch mean_memory, weights_memory, noise_memory, keys_memory, starts_memory, list_memory;
    std::uint32_t* list = list_memory.make<std::uint32_t>(layout.num_relays + 16);
    F* mean = mean_memory.make<F>(FORWARD_ROWS * stride);
    const bool mixture = layout.form == Form::mixture;
    F* weights = weights_memory.make<F>(mixture ? FORWARD_ROWS * batch.weights_width : 0);
    F* noise_buffer = noise_memory.make<F>(round_up(latent_dim, NORMALS));
    using Int = typename Simd<F>::Int;
    Int* keys = keys_memory.make<Int>(SELECT_ROWS * (layout.deviation_offset + LANES));
    Int* starts = starts_memory.make<Int>((std::int64_t)layout.groups.size());
    for (std::size_t g = 0; g < layout.groups.size(); ++g) starts[g] = Simd<F>::INFINITY_KEY / 2;
    const std::int64_t end = last_block * FORWARD_ROWS < size ? last_block * FORWARD_ROWS : size;
    for (std::int64_t i = first_block * FORWARD_ROWS, n = 0; i < end && n < FORWARD_ROWS;
         ++i, ++n) {
      prefetch_row(batch.rows + call.index[i] * layout.width, layout.width);
    }

    for (std::int64_t begin = first_block * FORWARD_ROWS; begin < end; begin += FORWARD_ROWS) {
      const int count = (int)(end - begin < FORWARD_ROWS ? end - begin : FORWARD_ROWS);
      const F* block[FORWARD_ROWS];
      std::uint32_t* bits = call.bits + begin * layout.num_words;
      for (int i = 0; i < count; ++i) {
        block[i] = batch.rows + call.index[begin + i] * layout.width;
      }
      for (int i = 0; i < count; i += SELECT_ROWS) {
        const int together = count - i < SELECT_ROWS ? count - i : SELECT_ROWS;
        for (std::size_t g = 0; g < layout.groups.size(); ++g) {
          const F* rows[SELECT_ROWS];
          for (int r = 0; r < together; ++r) rows[r] = block[i + r] + layout.group_offsets[g];
          select(rows, together, layout.groups[g], layout.kept[g], starts[g], keys,
                 bits + (std::int64_t)i * layout.num_words + layout.word_offsets[g],
                 layout.num_words);
        }
      }
      const F* weight_rows[FORWARD_ROWS];
      batch.weights(block, count, bits, weights, weight_rows);
      batch.means(block, count, bits, weight_rows, list, mean);
      for (int i = 0; i < count; ++i) {
        if (begin + FORWARD_ROWS + i < end) {
          prefetch_row(batch.rows + call.index[begin + FORWARD_ROWS + i] * layout.width,
                       layout.width);
        }
        const F* row_mean = mean + i * stride;
        std::memcpy(saved_mean + (begin + i) * latent_dim, row_mean, latent_dim * sizeof(F));
        const F* row_log_std = block[i] + layout.log_std_offset;
        const std::int64_t key = call.noise_index[begin + i];
        Vec<F> total = {};
        for (std::int64_t s = 0; s < call.num_samples; ++s) {
          const std::int64_t position = s * size + begin + i;
          const F* draw = noise_of(noise, call.seed, key, s, position, latent_dim, noise_buffer);
          for (int t = 0; t < latent_dim; t += LANES) {
            const int left = latent_dim - t;
            Vec<F> log_std = clamped_log_std<F>(load_up_to(row_log_std + t, left));
            Vec<F> std = exponential(log_std), mu = load<Vec<F>>(row_mean + t);
            store_up_to(z + position * latent_dim + t, mu + std * load_up_to(draw + t, left), left);
            if (s == 0) total += mu * mu + std * std - F(1) - F(2) * log_std;
          }
        }
        kl[begin + i] = F(0.5) * sum<F>(total);
      }
    }
  };
  parallel(round_up(size, FORWARD_ROWS) / FORWARD_ROWS, threads, work);
}

// Relay vectors with k along the lanes, in panels of TILE_VECTORS vectors: [panels, T, panel].
// Position in a panel is position in a packed row, padding is 0.
template <class F>
inline const F* transposed_relays(const Batch<F>& batch, Scratch& memory) {
  constexpr int PANEL = TILE_VECTORS * Simd<F>::LANES;
  const RowLayout& layout = batch.layout;
  const std::int64_t panels = round_up(layout.deviation_offset, PANEL) / PANEL;
  const std::int64_t elements = panels * layout.latent_dim * PANEL;
  F* result = memory.make<F>(elements);
  std::memset(result, 0, elements * sizeof(F));
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    // four at a time, which is the alignment of a group within a row
    for (int k = 0; k < layout.groups[g]; k += 4) {
      const int position = layout.group_offsets[g] + k;
      const int left = layout.groups[g] - k, count = left < 4 ? left : 4;
      const F* relay = batch.relays + (layout.relay_offsets[g] + k) * batch.stride;
      F* column = result + (std::int64_t)(position / PANEL) * layout.latent_dim * PANEL;
      column += position % PANEL;
      for (int t = 0; t < layout.latent_dim; ++t) {
        for (int c = 0; c < count; ++c) column[t * PANEL + c] = relay[c * batch.stride + t];
      }
    }
  }
  return result;
}

// out[i, k] = <grad_mean_i, R_k> for the set bits, 0 for the other coefficients and the padding.
// `marks` [BACKWARD_ROWS, mark_words] are bits by position in the packed row.
template <class F>
inline void dense_products(const Batch<F>& batch, const F* panels, const F* grad_mean, int count,
                           const std::uint32_t* marks, int mark_words, F* out) {
  constexpr int LANES = Simd<F>::LANES, PANEL = TILE_VECTORS * LANES;
  const int width = batch.layout.deviation_offset, latent_dim = batch.layout.latent_dim;
  for (int first = 0; first < width; first += PANEL, panels += (std::int64_t)latent_dim * PANEL) {
    for (int i = 0; i < count; i += TILE_ROWS) {
      Vec<F> total[TILE_ROWS][TILE_VECTORS] = {};
      const F* grad = grad_mean + i * batch.stride;
      for (int t = 0; t < latent_dim; ++t) {
        Vec<F> relay[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) {
          relay[v] = load<Vec<F>>(panels + (std::int64_t)t * PANEL + v * LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS; ++r) {
          const Vec<F> factor = broadcast(grad[r * batch.stride + t]);
#pragma GCC unroll 4
          for (int v = 0; v < TILE_VECTORS; ++v) total[r][v] += factor * relay[v];
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < TILE_ROWS; ++r) {
        if (i + r >= count) break;
        const std::uint32_t* mark = marks + (i + r) * mark_words;
        F* row = out + (std::int64_t)(i + r) * batch.layout.width;
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; ++v) {
          const int k = first + v * LANES;
          if (k >= width) break;
          IntVec<F> kept = lanes_of<F>(mark[k / 32] >> (k % 32));
          store_up_to(row + k, kept ? total[r][v] : Vec<F>{}, width - k);
        }
      }
    }
  }
}

// The same, one product at a time.
template <class F>
inline void sparse_products(const Batch<F>& batch, const F* grad_mean, int count,
                            const std::uint32_t* bits, F* out) {
  constexpr int LANES = Simd<F>::LANES;
  const RowLayout& layout = batch.layout;
  for (int i = 0; i < count; ++i) {
    F* row = out + (std::int64_t)i * layout.width;
    std::memset(row, 0, layout.deviation_offset * sizeof(F));
    const F* grad = grad_mean + i * batch.stride;
    for (std::size_t g = 0; g < layout.groups.size(); ++g) {
      const std::uint32_t* words = bits + (std::int64_t)i * layout.num_words;
      words += layout.word_offsets[g];
      for (int word = 0; word * 32 < layout.groups[g]; ++word) {
        for (std::uint32_t left = words[word]; left != 0; left &= left - 1) {
          const int k = word * 32 + __builtin_ctz(left);
          const F* relay = batch.relays + (layout.relay_offsets[g] + k) * batch.stride;
          Vec<F> total = {};
          for (int t = 0; t < batch.stride; t += LANES) {
            total += load<Vec<F>>(grad + t) * load<Vec<F>>(relay + t);
          }
          row[layout.group_offsets[g] + k] = sum<F>(total);
        }
      }
    }
  }
}

// From products to gradients of coefficients: w (product - sum of w product).
template <class F>
inline void mixture_gradients(const RowLayout& layout, const F* weights, F* row) {
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    const int offset = layout.group_offsets[g], size = layout.groups[g];
    F centre = 0;
    for (int k = offset; k < offset + size; ++k) centre += weights[k] * row[k];
    for (int k = offset; k < offset + size; ++k) row[k] = weights[k] * (row[k] - centre);
  }
}

// Bit c of word r becomes bit r of word c.
inline void transpose_bits(std::uint32_t* words) {
  std::uint32_t mask = 0x0000FFFF;
  for (int step = 16; step != 0; step >>= 1, mask ^= mask << step) {
    for (int k = 0; k < 32; k = (k + step + 1) & ~step) {
      const std::uint32_t swapped = ((words[k] >> step) ^ words[k + step]) & mask;
      words[k] ^= swapped << step;
      words[k + step] ^= swapped;
    }
  }
}

// total += sum of weights[i][position] grad_mean[i] over the rows i whose bit is set.
template <class F, int VECTORS>
RVI_INLINE void add_relay_gradient(std::uint64_t rows, const F* const* weights, int position,
                                   const F* grad_mean, std::int64_t stride, F* total) {
  constexpr int LANES = Simd<F>::LANES;
  Vec<F> own[VECTORS];
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) own[v] = load<Vec<F>>(total + v * LANES);
  for (; rows != 0; rows &= rows - 1) {
    const int i = __builtin_ctzll(rows);
    const Vec<F> weight = broadcast(weights[i][position]);
    const F* grad = grad_mean + i * stride;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) own[v] += weight * load<Vec<F>>(grad + v * LANES);
  }
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) store(total + v * LANES, own[v]);
}

// The block's part of the relay gradients: totals [K, stride] += sum_b w_bk grad_mean_b.
template <class F>
inline void add_relay_gradients(const Batch<F>& batch, const std::uint32_t* bits, int count,
                                const F* const* weights, const F* grad_mean, F* totals) {
  constexpr int LANES = Simd<F>::LANES;
  const RowLayout& layout = batch.layout;
  const std::int64_t stride = batch.stride;
  for (std::size_t g = 0; g < layout.groups.size(); ++g) {
    for (int word = 0; word * 32 < layout.groups[g]; ++word) {
      std::uint32_t halves[2][32] = {};
      const std::uint32_t* column = bits + layout.word_offsets[g] + word;
      for (int i = 0; i < count; ++i) {
        halves[i / 32][i % 32] = column[(std::int64_t)i * layout.num_words];
      }
      transpose_bits(halves[0]);
      if (count > 32) transpose_bits(halves[1]);
      const int left = layout.groups[g] - word * 32, last = left < 32 ? left : 32;
      for (int c = 0; c < last; ++c) {
        const int k = word * 32 + c, position = layout.group_offsets[g] + k;
        const std::uint64_t rows = halves[0][c] | (std::uint64_t)halves[1][c] << 32;
        F* total = totals + (layout.relay_offsets[g] + k) * stride;
        std::int64_t t = 0;
        for (; t + CHUNK * LANES <= stride; t += CHUNK * LANES) {
          add_relay_gradient<F, CHUNK>(rows, weights, position, grad_mean + t, stride, total + t);
        }
        for (; t < stride; t += LANES) {
          add_relay_gradient<F, 1>(rows, weights, position, grad_mean + t, stride, total + t);
        }
      }
    }
  }
}

template <class F>
void relay_sample_bwd(const RelaySampleBwd& call, int threads) {
  constexpr int LANES = Simd<F>::LANES;
  const RowLayout& layout = *call.layout;
  const int latent_dim = layout.latent_dim;
  const std::int64_t stride = round_up(latent_dim, LANES), size = call.index.size;
  Scratch padded_relays, panels_memory, pieces_memory;
  const Batch<F> batch{layout,
                       call.index,
                       static_cast<const F*>(call.rows),
                       stride,
                       padded(static_cast<const F*>(call.relays), layout.num_relays, latent_dim,
                              stride, padded_relays),
                       (int)round_up(layout.deviation_offset + LANES, LANES)};
  const F* noise = static_cast<const F*>(call.noise);
  const F* grad_z = static_cast<const F*>(call.grad_z);
  const F* grad_kl = static_cast<const F*>(call.grad_kl);
  const F* saved_mean = static_cast<const F*>(call.mean);
  F* grad_batch = static_cast<F*>(call.grad_batch);
  F* grad_relays = static_cast<F*>(call.grad_relays);

  int kept = 0;
  for (int count : layout.kept) kept += count;
  const bool dense = kept >= DENSE_SHARE * layout.num_relays;
  const F* panels = grad_batch && dense ? transposed_relays(batch, panels_memory) : nullptr;

  std::int64_t piece_rows = PIECE_ROWS;
  if (size > PIECE_ROWS * MAX_PIECES) {
    piece_rows = round_up((size + MAX_PIECES - 1) / MAX_PIECES, BACKWARD_ROWS);
  }
  const std::int64_t num_pieces = (size + piece_rows - 1) / piece_rows;
  const std::int64_t piece_size = layout.num_relays * stride;
  F* pieces = nullptr;
  const bool in_place = num_pieces <= 1 && stride == latent_dim;
  if (grad_relays) {
    pieces = in_place ? grad_relays : pieces_memory.make<F>(num_pieces * piece_size);
    if (in_place && size == 0) std::memset(grad_relays, 0, piece_size * sizeof(F));
    std::memset(pieces, 0, num_pieces * piece_size * sizeof(F));
  }

  auto work = [&](std::int64_t first_piece, std::int64_t last_piece) {
    const int mark_words = (layout.deviation_offset + 31) / 32 + 1;
    const bool mixture = layout.form == Form::mixture;
    Scratch grad_memory, weights_memory, noise_memory, sum_memory, marks_memory;
    F* grad_mean = grad_memory.make<F>(BACKWARD_ROWS * stride);
    std::memset(grad_mean, 0, BACKWARD_ROWS * stride * sizeof(F));
    F* weights = weights_memory.make<F>(mixture ? BACKWARD_ROWS * batch.weights_width : 0);
    F* noise_buffer = noise_memory.make<F>(round_up(latent_dim, NORMALS));
    F* noise_sum = sum_memory.make<F>(stride);
    std::uint32_t* marks = marks_memory.make<std::uint32_t>(BACKWARD_ROWS * mark_words);

    for (std::int64_t piece = first_piece; piece < last_piece; ++piece) {
      const std::int64_t stop = (piece + 1) * piece_rows;
      const std::int64_t end = stop < size ? stop : size;
      for (std::int64_t begin = piece * piece_rows; begin < end; begin += BACKWARD_ROWS) {
        const int count = (int)(end - begin < BACKWARD_ROWS ? end - begin : BACKWARD_ROWS);
        const F* block[BACKWARD_ROWS];
        const F* weight_rows[BACKWARD_ROWS];
        const std::uint32_t* bits = call.bits + begin * layout.num_words;
        for (int i = 0; i < count; ++i) {
          block[i] = batch.rows + call.index[begin + i] * layout.width;
        }
        batch.weights(block, count, bits, weights, weight_rows);

        for (int i = 0; i < count; ++i) {
          if (begin + BACKWARD_ROWS + i < end) {
            prefetch_row(batch.rows + call.index[begin + BACKWARD_ROWS + i] * layout.width,
                         layout.width);
          }
          F* mean = grad_mean + i * stride;
          const F* saved = saved_mean + (begin + i) * latent_dim;
          const F gk = grad_kl[begin + i];
          const std::int64_t key = call.noise_index[begin + i];
          for (int t = 0; t < stride; t += LANES) {
            store(mean + t, gk * load_up_to(saved + t, latent_dim - t));
            store(noise_sum + t, Vec<F>{});
          }
          for (std::int64_t s = 0; s < call.num_samples; ++s) {
            const std::int64_t position = s * size + begin + i;
            const F* grad = grad_z + position * latent_dim;
            const F* draw = noise_buffer;
            if (grad_batch) {
              draw = noise_of(noise, call.seed, key, s, position, latent_dim, noise_buffer);
            }
            for (int t = 0; t < latent_dim; t += LANES) {
              const int left = latent_dim - t;
              Vec<F> gz = load_up_to(grad + t, left);
              store(mean + t, load<Vec<F>>(mean + t) + gz);
              if (grad_batch) {
                store(noise_sum + t, load<Vec<F>>(noise_sum + t) + gz * load_up_to(draw + t, left));
              }
            }
          }
          if (!grad_batch) continue;
          F* row = grad_batch + (begin + i) * layout.width;
          const F* row_log_std = block[i] + layout.log_std_offset;
          const F limit = 30;
          for (int t = 0; t < latent_dim; t += LANES) {
            const int left = latent_dim - t;
            Vec<F> raw = load_up_to(row_log_std + t, left);
            Vec<F> log_std = clamped_log_std<F>(raw), std = exponential(log_std);
            Vec<F> grad = load<Vec<F>>(noise_sum + t) * std + gk * (std * std - F(1));
            // false for NaN, as in the reference
            IntVec<F> inside = (raw >= -limit) & (raw <= limit);
            grad = inside ? grad : Vec<F>{};
            store_up_to(row + layout.log_std_offset + t, grad, left);
            store_up_to(row + layout.deviation_offset + t, load<Vec<F>>(mean + t), left);
          }
          for (int t = latent_dim; t < layout.width - layout.log_std_offset; ++t) {
            row[layout.deviation_offset + t] = row[layout.log_std_offset + t] = 0;
          }
        }

        if (grad_batch) {
          F* out = grad_batch + begin * layout.width;
          if (dense) {
            std::memset(marks, 0, count * mark_words * sizeof(std::uint32_t));
            for (int i = 0; i < count; ++i) {
              const std::uint32_t* words = bits + (std::int64_t)i * layout.num_words;
              for (std::size_t g = 0; g < layout.groups.size(); ++g) {
                std::uint32_t* mark = marks + i * mark_words + layout.group_offsets[g] / 32;
                const int shift = layout.group_offsets[g] % 32;
                for (int word = 0; word * 32 < layout.groups[g]; ++word) {
                  const std::uint64_t wide = (std::uint64_t)*words++ << shift;
                  mark[word] |= (std::uint32_t)wide;
                  if (wide >> 32) mark[word + 1] |= (std::uint32_t)(wide >> 32);
                }
              }
            }
            dense_products(batch, panels, grad_mean, count, marks, mark_words, out);
          } else {
            sparse_products(batch, grad_mean, count, bits, out);
          }
          for (int i = 0; i < count && mixture; ++i) {
            mixture_gradients(layout, weight_rows[i], out + (std::int64_t)i * layout.width);
          }
        }
        if (grad_relays) {
          add_relay_gradients(batch, bits, count, weight_rows, grad_mean,
                              pieces + piece * piece_size);
        }
      }
    }
  };
  parallel(num_pieces, threads, work);

  if (!grad_relays || in_place) return;
  for (std::int64_t k = 0; k < layout.num_relays; ++k) {
    for (int t = 0; t < latent_dim; t += LANES) {
      Vec<F> total = {};
      for (std::int64_t piece = 0; piece < num_pieces; ++piece) {
        total += load<Vec<F>>(pieces + piece * piece_size + k * stride + t);
      }
      store_up_to(grad_relays + k * latent_dim + t, total, latent_dim - t);
    }
  }
}

}  // namespace RVI_PATH
}  // namespace rvi
