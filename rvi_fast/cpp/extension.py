"""The compiled part, `rvi_fast._C`: that it is of this version, and which of its paths runs."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .. import _C
from .._op_checks.log_likelihood import SCALED

# that of `_C.SIGNATURES`: every function, argument and enumerator of csrc/bindings
DIGEST = "9701bbdb241b7866"

_found = hashlib.sha256(getattr(_C, "SIGNATURES", "").encode()).hexdigest()[:16]
if _found != DIGEST:
    raise ImportError(
        f"rvi_fast._C: expected signatures of digest {DIGEST}, got {_found} from {_C.__file__}: it was "
        "built for another version of rvi_fast and must be built again"
    )
if set(_C.LAWS) != set(SCALED):
    raise ImportError(
        f"rvi_fast._C: expected the laws {', '.join(SCALED)}, got {', '.join(_C.LAWS)} from "
        f"{_C.__file__}: it must be built again"
    )

FLOAT32, FLOAT64, INT32, INT64 = torch.float32, torch.float64, torch.int32, torch.int64
BOTH = (FLOAT32, FLOAT64)
DATA_TYPES = {
    torch.float32: _C.DataType.float32,
    torch.float64: _C.DataType.float64,
    torch.float16: _C.DataType.float16,
    torch.bfloat16: _C.DataType.bfloat16,
    torch.uint8: _C.DataType.uint8,
}
# by the number of dimensions of the scale
SCALE_KINDS = _C.ScaleKind.scalar, _C.ScaleKind.feature, _C.ScaleKind.entry
# by the dtype of the mask
MASK_KINDS = {torch.bool: _C.MaskKind.bytes, torch.int32: _C.MaskKind.bits}
NO_MASK = _C.MaskKind.none


def address_of(tensor: Tensor | None) -> int:
    """Of the first element; 0 where there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def row_numbers(index: Tensor) -> tuple[int, bool, int]:
    """The index as the kernels take it: address, whether int64, size."""
    return index.data_ptr(), index.dtype is INT64, index.shape[0]


def scale_kind(scale: Tensor | None) -> _C.ScaleKind:
    """Whether a scale is one number, one for each feature or one for each entry."""
    if scale is None:  # and nothing reads it
        return _C.ScaleKind.scalar
    return SCALE_KINDS[0 if scale.shape == (1,) else scale.dim()]


def converted(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """Contiguous, in that dtype; `Tensor.to` takes microseconds to find that nothing is to be done."""
    return (tensor if tensor.dtype is dtype else tensor.to(dtype)).contiguous()


def cpu_path() -> str:
    """Which compiled path runs: "avx512", "avx2", "neon", "portable" (`RVI_FAST_CPU` forces one)."""
    return _C.cpu_path()
