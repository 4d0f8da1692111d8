// The kernels, compiled for AArch64 machines.
#if defined(__aarch64__)
#define RVI_PATH neon
#define RVI_SIMD "simd/neon.h"
#include "cpu/kernels.inc"
#endif
