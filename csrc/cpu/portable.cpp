// The kernels, compiled for any machine.
#define RVI_PATH portable
#if defined(__SSE2__)
#define RVI_SIMD "simd/sse2.h"
#else
#define RVI_SIMD "simd/portable.h"
#endif
#include "cpu/kernels.inc"
