// relay_sample: gather, select, combine, sample and KL.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "calls.h"
#include "philox.h"
#include "relay_sample.h"
#include "select.h"
#include "simd/math.h"
#include "simd/simd.h"
#include "work.h"

namespace rvi {
namespace RVI_PATH {

constexpr int FORWARD_ROWS = 16;

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

}  // namespace RVI_PATH
}  // namespace rvi
