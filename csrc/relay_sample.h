// relay_sample: what both directions share; see rvi_fast.reference.relay_sample_fwd and
// relay_sample_bwd for what is computed.
//
// Rows are worked on in blocks, so that the relay vectors of a group stay in the first-level cache
// while the block passes over them. Sums over the batch have an order that depends on its size
// alone.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "calls.h"
#include "philox.h"
#include "simd/math.h"
#include "simd/simd.h"
#include "work.h"

namespace rvi {
namespace RVI_PATH {

// latent dimensions held in registers at once, in vectors
constexpr int CHUNK = 4;

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

}  // namespace RVI_PATH
}  // namespace rvi
