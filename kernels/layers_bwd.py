"""Hidden layers backwards, for blocks of the batch: parts of `backward_to_rows`, which says the rest."""

from __future__ import annotations

import triton
import triton.language as tl

from .relay_sample import load_relays
from .row_tiles import load_block

# pieces of the gradient that are read at a time
TOGETHER = tl.constexpr(8)


@triton.jit
def sum_of_pieces(
    pieces,
    num_pieces,
    position,
    valid,
    batch,
    WIDTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of pieces [p, B, WIDTH] for the rows of a block."""
    unit = tl.arange(0, BLOCK)[None, :]
    exists = valid & (unit < WIDTH)
    total = tl.zeros([BLOCK_B, BLOCK], tl.float32)
    for first in range(0, num_pieces, TOGETHER):
        for own in tl.static_range(TOGETHER):
            piece = first + own
            place = (piece * batch.to(tl.int64) + position) * WIDTH + unit
            total += tl.load(pieces + place, mask=exists & (piece < num_pieces), other=0.0)
    return total


# LAYERS holds for each hidden layer, the last first: inputs, outputs, columns of a block that covers
# each, outputs of a tile, column of `work` at which the gradient of its products begins, elements of
# `grads` at which those of weight and bias begin, or -1, and the turn at which the first tile is made.


@triton.jit
def through_layer(
    grad,
    after,
    weight,
    work,
    position,
    valid,
    LAYER: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The gradient of a layer's input from that of its output; that of its products is stored."""
    INPUTS: tl.constexpr = LAYER[0]
    OUTPUTS: tl.constexpr = LAYER[1]
    BLOCK: tl.constexpr = LAYER[2]
    BLOCK_H: tl.constexpr = LAYER[4]
    i = tl.arange(0, BLOCK)[None, :]
    # weights are on their way while the gradient arrives
    p = tl.arange(0, BLOCK_H)
    vectors = load_relays(weight, tl.where(p < OUTPUTS, p, -1), i, INPUTS)
    unit = tl.arange(0, LAYER[3])[None, :]
    exists = valid & (unit < OUTPUTS)
    value = tl.load(after + position.to(tl.int64) * OUTPUTS + unit, mask=exists, other=0.0)
    part = work + position.to(tl.int64) * STRIDE + LAYER[5]
    tl.store(part + unit, tl.where(value <= 0, 0.0, grad), mask=exists)
    # it comes back in parts, to other threads: all of it, as an operand, would fill the registers
    tl.debug_barrier()
    total = tl.zeros([BLOCK_B, BLOCK], tl.float32)
    for first in range(0, OUTPUTS, BLOCK_H):
        left = tl.load(
            part + (first + p[None, :]), mask=valid & (first + p < OUTPUTS)[None, :], other=0.0
        )
        later = first + BLOCK_H + p
        following = load_relays(weight, tl.where(later < OUTPUTS, later, -1), i, INPUTS)
        total = tl.dot(left, vectors, total, input_precision=PRECISION)
        vectors = following
    return total


@triton.jit
def sum_layer(
    first,
    before,
    work,
    piece,
    index,
    row_error,
    sizes,
    LAYER: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Gradients of a layer's weight and bias, summed over all blocks, for a tile of its outputs."""
    INPUTS: tl.constexpr = LAYER[0]
    OUTPUTS: tl.constexpr = LAYER[1]
    BLOCK: tl.constexpr = LAYER[2]
    BLOCK_H: tl.constexpr = LAYER[4]
    WEIGHT: tl.constexpr = LAYER[6]
    BIAS: tl.constexpr = LAYER[7]
    unit = first + tl.arange(0, BLOCK_H)
    i = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([BLOCK_H, BLOCK], tl.float32)
    total_bias = tl.zeros([BLOCK_H], tl.float32)
    for step in range(sizes[0]):
        position, _, valid = load_block(index, row_error, step, sizes, BLOCK_B)
        place = position.to(tl.int64) * STRIDE + (LAYER[5] + unit[None, :])
        grad = tl.load(work + place, mask=valid & (unit < OUTPUTS)[None, :], other=0.0)
        place = position.to(tl.int64) * INPUTS + i
        given = tl.load(before + place, mask=valid & (i < INPUTS), other=0.0)
        total = tl.dot(tl.trans(grad), given, total, input_precision=PRECISION)
        total_bias += tl.sum(grad, 0)
    exists = unit < OUTPUTS
    if WEIGHT >= 0:
        place = WEIGHT + unit[:, None].to(tl.int64) * INPUTS + i
        tl.store(piece + place, total, mask=exists[:, None] & (i < INPUTS))
    if BIAS >= 0:
        tl.store(piece + BIAS + unit.to(tl.int64), total_bias, mask=exists)
