// Noise: Philox 4x32-10 (Salmon et al. 2011) and Box-Muller, as rvi_fast.reference.normal_noise
// defines it. The key is the seed, the counter (t / 4, sample, row).

#pragma once

#include <cmath>
#include <cstdint>

#include "simd/math.h"
#include "simd/simd.h"

namespace rvi {
namespace RVI_PATH {

constexpr std::uint32_t MULTIPLIER_0 = 0xD2511F53, MULTIPLIER_1 = 0xCD9E8D57;
constexpr std::uint32_t WEYL_0 = 0x9E3779B9, WEYL_1 = 0xBB67AE85;

// Words in the low halves of 64-bit lanes; what is in the high halves changes nothing.
struct PhiloxWords {
  Uint64Vec word[4];
};

template <int STREAMS>
RVI_INLINE void philox_rounds(PhiloxWords (&streams)[STREAMS], std::uint32_t k0, std::uint32_t k1) {
  const Uint64Vec m0 = (std::uint64_t)MULTIPLIER_0 - Uint64Vec{};
  const Uint64Vec m1 = (std::uint64_t)MULTIPLIER_1 - Uint64Vec{};
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int s = 0; s < STREAMS; ++s) {
      Uint64Vec* word = streams[s].word;
      Uint64Vec product0 = multiply_low(word[0], m0), product1 = multiply_low(word[2], m1);
      word[0] = (product1 >> 32) ^ word[1] ^ (std::uint64_t)k0;
      word[2] = (product0 >> 32) ^ word[3] ^ (std::uint64_t)k1;
      word[1] = product1;
      word[3] = product0;
    }
    k0 += WEYL_0;
    k1 += WEYL_1;
  }
}

// The raw words for `count` counters, [count, 4] each: for tests.
inline void philox(const std::uint32_t* counter, const std::uint32_t* key, std::uint32_t* words,
                   std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    PhiloxWords stream[1];
    for (int w = 0; w < 4; ++w) stream[0].word[w] = (std::uint64_t)counter[4 * i + w] - Uint64Vec{};
    philox_rounds(stream, key[0], key[1]);
    for (int w = 0; w < 4; ++w) words[4 * i + w] = (std::uint32_t)stream[0].word[w][0];
  }
}

// Words, or normals, that one call of the functions below makes: four for each 32-bit lane.
constexpr int NORMALS = VECTOR_BYTES;

// Four words for each of the quads first / 4 ... of a row; `first` a multiple of 4.
RVI_INLINE void row_words(std::uint64_t seed, std::uint64_t row, std::uint32_t counter, int first,
                          Uint32Vec (&words)[4]) {
  constexpr int WIDE = VECTOR_BYTES / 8;
  // even quads in one stream, odd ones in the other: together they are 32-bit lanes in order
  PhiloxWords streams[2];
  Uint64Vec even;
  for (int lane = 0; lane < WIDE; ++lane) even[lane] = 2 * lane;
  for (int s = 0; s < 2; ++s) {
    streams[s].word[0] = even + (std::uint64_t)(first / 4 + s);
    streams[s].word[1] = (std::uint64_t)counter - Uint64Vec{};
    streams[s].word[2] = (std::uint64_t)(std::uint32_t)row - Uint64Vec{};
    streams[s].word[3] = (row >> 32) - Uint64Vec{};
  }
  philox_rounds(streams, (std::uint32_t)seed, (std::uint32_t)(seed >> 32));
  for (int w = 0; w < 4; ++w) {
    Uint64Vec low = streams[0].word[w] & 0xFFFFFFFFu, high = streams[1].word[w] << 32;
    words[w] = (Uint32Vec)(low | high);
  }
}

// Stores the first lanes of four vectors, then the second ones, and so on.
template <class V>
RVI_INLINE void store_quads(void* out, V n0, V n1, V n2, V n3) {
  DoubleVec low01 = (DoubleVec)zip<0>(n0, n1), high01 = (DoubleVec)zip<1>(n0, n1);
  DoubleVec low23 = (DoubleVec)zip<0>(n2, n3), high23 = (DoubleVec)zip<1>(n2, n3);
  char* bytes = static_cast<char*>(out);
  store(bytes, zip<0>(low01, low23));
  store(bytes + VECTOR_BYTES, zip<1>(low01, low23));
  store(bytes + 2 * VECTOR_BYTES, zip<0>(high01, high23));
  store(bytes + 3 * VECTOR_BYTES, zip<1>(high01, high23));
}

// radius * (cos, sin) from the 24-bit uniforms of two words.
RVI_INLINE void box_muller(Uint32Vec first, Uint32Vec second, FloatVec& a, FloatVec& b) {
  FloatVec u = __builtin_convertvector((Int32Vec)first, FloatVec) * 0x1p-24f + 0x1p-24f;
  FloatVec radius = square_root(-2.0f * logarithm_of_normal(u));
  // quarter turns: nearest whole number, and the exact rest in [-1/2, 1/2]
  Int32Vec turn = (Int32Vec)second;
  Int32Vec quarter = (turn + 0x200000) >> 22;
  FloatVec rest = __builtin_convertvector(turn - (quarter << 22), FloatVec);
  FloatVec x = rest * (float)(1.57079632679489661923 * 0x1p-22);
  FloatVec square = x * x;
  FloatVec s = -1.9515295891e-4f * square + 8.3321608736e-3f;
  s = s * square - 1.6666654611e-1f;
  s = s * (square * x) + x;
  FloatVec c = 2.443315711809948e-5f * square - 1.388731625493765e-3f;
  c = c * square + 4.166664568298827e-2f;
  c = c * (square * square) + (1.0f - 0.5f * square);
  Int32Vec odd = (quarter & 1) != 0;
  FloatVec cosine = odd ? s : c, sine = odd ? c : s;
  cosine = (FloatVec)((Int32Vec)cosine ^ (((quarter + 1) & 2) << 30));
  sine = (FloatVec)((Int32Vec)sine ^ ((quarter & 2) << 30));
  a = radius * cosine;
  b = radius * sine;
}

// Noise of latent dimensions first .. first + NORMALS - 1 of one row and sample; first a multiple
// of 4.
template <class F>
RVI_INLINE void normals(std::uint64_t seed, std::uint64_t row, std::uint32_t sample, int first,
                        F* out) {
  Uint32Vec uniform[4];
  row_words(seed, row, sample, first, uniform);
  for (int w = 0; w < 4; ++w) uniform[w] = uniform[w] >> 8;
  if constexpr (sizeof(F) == 4) {
    FloatVec n0, n1, n2, n3;
    box_muller(uniform[0], uniform[1], n0, n1);
    box_muller(uniform[2], uniform[3], n2, n3);
    store_quads(out, n0, n1, n2, n3);
  } else {
    for (int quad = 0; quad < VECTOR_BYTES / 4; ++quad) {
      for (int pair = 0; pair < 2; ++pair) {
        double u = uniform[2 * pair][quad] * 0x1p-24, v = uniform[2 * pair + 1][quad] * 0x1p-24;
        double radius = std::sqrt(-2.0 * std::log(u + 0x1p-24));
        double angle = 6.283185307179586 * v;
        out[4 * quad + 2 * pair] = radius * std::cos(angle);
        out[4 * quad + 2 * pair + 1] = radius * std::sin(angle);
      }
    }
  }
}

}  // namespace RVI_PATH
}  // namespace rvi
