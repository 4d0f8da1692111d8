// relay_sample: the gradients of the rows of the batch and of the relay vectors.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "calls.h"
#include "philox.h"
#include "relay_sample.h"
#include "simd/math.h"
#include "simd/simd.h"
#include "work.h"

namespace rvi {
namespace RVI_PATH {

constexpr int BACKWARD_ROWS = 64;  // one bit each in a word
static_assert(BACKWARD_ROWS % TILE_ROWS == 0, "a block is made of whole tiles");
// below this share of kept coefficients a product each is cheaper than dense ones
constexpr double DENSE_SHARE = 0.3;
// rows whose sum of relay gradients is made in one piece, and the most pieces
constexpr std::int64_t PIECE_ROWS = 2048, MAX_PIECES = 32;

// Relay vectors with k along the lanes, in panels of TILE_VECTORS vectors: [panels, T, panel].
// Position in a panel is position in a packed row, padding is 0.
template <class F>
inline const F* transposed_relays(const Batch<F>& batch, Scratch& memory) {
  constexpr int PANEL = TILE_VECTORS * Simd<F>::LANES;
  static_assert(PANEL % 4 == 0, "four coefficients never lie in two panels");
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
