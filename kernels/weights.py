"""Products with the weight of a linear layer, tile by tile."""

from __future__ import annotations

import triton
import triton.language as tl


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
