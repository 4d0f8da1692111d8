// The vectors of the path and the functions that its instruction set is asked for.

#pragma once

#include <cstdint>

// cpu/<path>.cpp names the file; a header read on its own takes what any machine has
#if !defined(RVI_SIMD)
#define RVI_SIMD "simd/portable.h"
#endif
#include RVI_SIMD

namespace rvi {
namespace RVI_PATH {

template <class F>
RVI_INLINE Vec<F> load_up_to(const F* from, std::int64_t count) {
  return count >= Simd<F>::LANES ? load<Vec<F>>(from) : load_some<F>(from, (int)count);
}

template <class F>
RVI_INLINE void store_up_to(F* to, Vec<F> value, std::int64_t count) {
  if (count >= Simd<F>::LANES) {
    store(to, value);
  } else {
    store_some<F>(to, value, (int)count);
  }
}

}  // namespace RVI_PATH
}  // namespace rvi
