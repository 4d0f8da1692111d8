"""What several kernels share: precision, tiles, sums over pieces."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

# elements and pieces that one program of the reduction reads at a time
REDUCED_ELEMENTS, REDUCED_PIECES = 64, 32


def input_precision() -> str:
    """How the tensor cores multiply float32, after `torch.get_float32_matmul_precision()`.

    "highest" is as accurate as float32 (tf32x3: errors of 8e-8), "high" about 4e-6 at half the cost.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":  # multiplies in float32, whatever it is told
        return "tf32x3"
    precision = {"highest": "tf32x3", "high": "bf16x3", "medium": "tf32"}
    return precision[torch.get_float32_matmul_precision()]


def block_of(size: int, least: int = 16) -> int:
    """The power of two, at least `least`, that covers `size`."""
    return max(least, triton.next_power_of_2(size))


# Sums over the batch, made in pieces


@triton.jit(do_not_specialize=["num_pieces", "size"])
def _sum_pieces_kernel(
    pieces,
    total,
    num_pieces,
    size,
    BLOCK_PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    result = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_pieces, BLOCK_PIECES):
        piece = (first + tl.arange(0, BLOCK_PIECES)).to(tl.int64)[:, None]
        exists = (piece < num_pieces) & (element < size)[None, :]
        values = tl.load(pieces + piece * size + element[None, :], mask=exists, other=0.0)
        result += tl.sum(values, 0)
    tl.store(total + element, result, mask=element < size)


def sum_pieces(pieces: Tensor, total: Tensor) -> None:
    """Writes the sum of pieces [P, ...] to `total`, always in the same order."""
    size = total.numel()
    _sum_pieces_kernel[(triton.cdiv(size, REDUCED_ELEMENTS),)](
        pieces,
        total,
        num_pieces=len(pieces),
        size=size,
        BLOCK_PIECES=REDUCED_PIECES,
        BLOCK=REDUCED_ELEMENTS,
        num_warps=4,
        enable_fp_fusion=True,
    )
