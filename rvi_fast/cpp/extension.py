"""The compiled part, `rvi_fast._C`: that it is of this version, and which of its paths runs."""

from __future__ import annotations

import torch

from .. import _C  # type: ignore[attr-defined]

# goes up with every change of a signature in csrc/bindings.cpp, which holds the same number
API = 8

if getattr(_C, "API", None) != API:
    raise ImportError(
        f"rvi_fast._C: expected API {API}, got {getattr(_C, 'API', None)} from {_C.__file__}: it was "
        "built for another version of rvi_fast and must be built again"
    )

FLOAT32, FLOAT64, INT32, INT64 = torch.float32, torch.float64, torch.int32, torch.int64
BOTH = (FLOAT32, FLOAT64)
# the numbers of `DataType` in csrc/rows.h
DATA_TYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.uint8: 4,
}


def cpu_path() -> str:
    """Which of the compiled paths runs: "avx512", "avx2" or "portable" (`RVI_FAST_CPU` forces one)."""
    path: str = _C.cpu_path()
    return path
