// The kernels, compiled for AVX2 machines.
#if defined(__x86_64__)
#define RVI_PATH avx2
#define RVI_SIMD "simd/avx2.h"
#define RVI_TARGET "avx,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"
#include "cpu/kernels.inc"
#endif
