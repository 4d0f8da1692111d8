// A register-blocked matrix product.

#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace rvi {
namespace RVI_PATH {

// accumulators of a product, by PRODUCT_VECTORS vectors: with a row of the right factor they fill
// the registers
constexpr int PRODUCT_ROWS = 6;

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

}  // namespace RVI_PATH
}  // namespace rvi
