// Any machine: vectors of 16 bytes, which the compiler makes of what there is.

#pragma once

#define RVI_VECTOR_BYTES 16
#include "simd/any.h"
#include "simd/vector.h"

namespace rvi {
namespace RVI_PATH {

// accumulators that stay in the registers: a tile of relay products, a tile of matrix products
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
constexpr int PRODUCT_VECTORS = 2;

using any::at_least;
using any::lanes_of;
using any::list_bits;
using any::load_halves;
using any::load_some;
using any::multiply_low;
using any::square_root;
using any::store_some;
using any::sum;
using any::wide_sum;

}  // namespace RVI_PATH
}  // namespace rvi
