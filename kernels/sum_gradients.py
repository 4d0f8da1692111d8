"""sum_gradients: the gradient of what all rows share from its pieces, for several processes to sum.

Math:
    g = the sum of a block's pieces, in the order of the pieces, as `finish_step` takes it.

Shapes:
    grads [n, P] float32, of which the first piece becomes g; parts int32 [P / SHARED_BLOCK].

Saved:
    Nothing.

Traffic:
    4 P for each piece that a block has, and 4 P written.

Limits:
    Pieces are added up in an order that depends on n alone. A program has its columns to itself, and
    writes them when it has read them. What stands in `grads` beyond the pieces of a block is never used.

Source:
    `rvi_fast.reference.fused_step.sum_gradients`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._common import launch
from .adam_step import MAX_BLOCK_N, TILE
from .pieces import SHARED_BLOCK


@triton.jit
def gradient(
    grads_ptr,
    columns,
    valid,
    parts,
    size,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The sum of each column's pieces; of a block whose count is negative all its numbers in one."""
    count = tl.abs(parts)
    piece = tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_P), dtype=tl.float32)
    for _ in range(0, tl.max(count, axis=0), BLOCK_N):
        inside = (piece < count[None, :]) & valid[None, :]
        total += tl.load(grads_ptr + piece * size + columns[None, :], mask=inside, other=0.0)
        piece += BLOCK_N
    grad = tl.sum(total, axis=0)
    number = tl.sum(tl.reshape(grad, (BLOCK_P // BLOCK, BLOCK)), axis=1)[:, None]
    number = tl.where(tl.arange(0, BLOCK)[None, :] == 0, number, 0.0)
    return tl.where(parts < 0, tl.reshape(number, (BLOCK_P,)), grad)


@triton.jit
def _sum_gradients_kernel(
    grads_ptr,
    parts_ptr,
    size,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = columns < size
    parts = tl.load(parts_ptr + columns // BLOCK, mask=valid, other=0)
    grad = gradient(grads_ptr, columns, valid, parts, size, BLOCK, BLOCK_N, BLOCK_P)
    # other threads of the program may have read the first piece of these columns
    tl.debug_barrier()
    tl.store(grads_ptr + columns, grad, mask=valid)


# Launcher


def columns_of(num_parts: int) -> tuple[int, int]:
    """Pieces and columns of a tile of `gradient`, where there are so many pieces."""
    block_n = min(MAX_BLOCK_N, triton.next_power_of_2(num_parts))
    return block_n, TILE // block_n


def sum_gradients(grads: Tensor, parts: Tensor) -> None:
    """`reference.fused_step.sum_gradients`."""
    num_parts, size = grads.shape
    block_n, block_p = columns_of(num_parts)
    launch(_sum_gradients_kernel, (max(1, triton.cdiv(size, block_p)),))(
        grads_ptr=grads,
        parts_ptr=parts,
        size=size,
        BLOCK=SHARED_BLOCK,
        BLOCK_N=block_n,
        BLOCK_P=block_p,
        num_warps=4,
        enable_fp_fusion=True,
    )
