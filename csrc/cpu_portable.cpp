// The kernels, compiled for any machine.
#define RVI_PATH portable
#include "kernels.inc"
