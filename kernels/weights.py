"""Products with the weight of a linear layer, tile by tile, and the sizes of the tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import block_of, multiplies_in_groups

# BLOCK_H -> BLOCK_B, BLOCK_D and warps that compile without spills, of the two kernels
ROWS_TILES = {
    16: (32, 32, 4),
    32: (32, 32, 4),
    64: (32, 32, 4),
    128: (16, 32, 8),
    256: (16, 32, 8),
}
FEATURES_TILES = {
    16: (32, 32, 4),
    32: (32, 32, 4),
    64: (32, 32, 4),
    128: (32, 16, 4),
    256: (32, 16, 8),
}
# where four warps multiply 64 rows together, with operands in shared memory (sm_90): fewer registers for
# a tile, and an operand is taken apart once for all warps. Other laws have too many numbers at a time.
WIDE_ROWS, WIDE_FEATURES, WIDE_LAW = (64, 32, 4), (32, 64, 4), "gaussian"


def tile_of(tiles: dict[int, tuple[int, int, int]], hidden_dim: int, law: str) -> dict[str, int]:
    """Sizes of the tiles and options of a launch."""
    block = block_of(hidden_dim)
    rows, features, warps = tiles[block]
    if block <= 64 and law == WIDE_LAW and multiplies_in_groups():
        rows, features, warps = WIDE_ROWS if tiles is ROWS_TILES else WIDE_FEATURES
    # the operand that stays the same is kept where there are registers for it
    chunk = block if block <= 64 else 32
    blocks = {"BLOCK_B": rows, "BLOCK_D": features, "BLOCK_H": block, "BLOCK_K": chunk}
    # without a limit of its own the assembler may spill a few registers for one program more
    return blocks | {"num_warps": warps, "maxnreg": 255}


@triton.jit
def load_matrix(ptr, first, exists, start, HIDDEN_DIM: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns from `start` of as many rows as `exists` has entries, [n, BLOCK_K]; 0 outside."""
    row, unit = tl.arange(0, exists.shape[0])[:, None], start + tl.arange(0, BLOCK_K)[None, :]
    inside = exists[:, None] & (unit < HIDDEN_DIM)
    pointers = ptr + first * HIDDEN_DIM + (row * HIDDEN_DIM + unit)
    return tl.load(pointers, mask=inside, other=0).to(tl.float32)


@triton.jit
def products(
    left_ptr,
    left_first,
    left_exists,
    right_ptr,
    right_first,
    right_exists,
    HIDDEN_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """left right^T [n, m], read BLOCK_K columns at a time.

    One of the two stays the same from tile to tile, but in registers it would leave too few.
    """
    total = tl.zeros((left_exists.shape[0], right_exists.shape[0]), dtype=tl.float32)
    for start in range(0, HIDDEN_DIM, BLOCK_K):
        left = load_matrix(left_ptr, left_first, left_exists, start, HIDDEN_DIM, BLOCK_K)
        right = load_matrix(right_ptr, right_first, right_exists, start, HIDDEN_DIM, BLOCK_K)
        total += tl.dot(left, tl.trans(right), input_precision=PRECISION)
    return total


@triton.jit
def load_bias(bias_ptr, column, num_features, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        return tl.load(bias_ptr + column, mask=column < num_features, other=0).to(tl.float32)
    else:
        return tl.zeros(column.shape, tl.float32)
