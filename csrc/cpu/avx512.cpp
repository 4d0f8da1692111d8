// The kernels, compiled for AVX512 machines.
#if defined(__x86_64__)
#define RVI_PATH avx512
#define RVI_SIMD "simd/avx512.h"
#define RVI_TARGET                                                                            \
  "avx,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-" \
  "width=512"
#include "cpu/kernels.inc"
#endif
