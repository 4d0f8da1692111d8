"""Tiles of packed rows: their gradients by the posterior, and the step of dense Adam, in place.

Parts of `backward_to_rows`, whose docstring says the rest. `tables` are rows, exp_avg and exp_avg_sq;
`adam` is the number of the step, the factors of `row_adam.adam_factors` and the betas of
`row_adam.stepped`; `sizes` are the blocks of a program and the rows of table and batch. `key_index` is
that of `row_adam`. Each row of `work` begins with the gradient of the mean.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import load_row_numbers
from .relay_sample import (
    LOG_STD_LIMIT,
    clamp_log_std,
    load_kept,
    load_noise,
    load_relays,
    locate,
)
from .row_adam import load_moment, row_key, stepped, store_moments


@triton.jit
def load_block(index, row_error, step, sizes, BLOCK_B: tl.constexpr):
    """Positions in the batch and row numbers of a program's block, and which lie in the table."""
    steps, num_data, batch = sizes
    # positions in the batch take half the registers in 32 bits
    start = ((tl.program_id(0).to(tl.int64) * steps + step) * BLOCK_B).to(tl.int32)
    position = start + tl.arange(0, BLOCK_B)[:, None]
    row, valid = load_row_numbers(index, row_error, position, num_data, batch, True)
    return position, row, valid


@triton.jit
def _load_tile(tables, row, first, exists, WIDTH: tl.constexpr):
    """Rows and their moments, of as many columns from `first` on as `exists` has."""
    place = row * WIDTH + (first + tl.arange(0, exists.shape[1])[None, :])
    moment = load_moment(tables[1] + place, exists)
    square = load_moment(tables[2] + place, exists)
    return tl.load(tables[0] + place, mask=exists, other=0.0), moment, square


@triton.jit
def _step_tile(tables, values, grad, row, key, first, exists, adam, WIDTH: tl.constexpr):
    """Writes what `_load_tile` has read, after the step."""
    count, factors, betas = adam
    theta, moment, square = stepped(values[0], values[1], values[2], grad, factors, betas)
    place = row * WIDTH + (first + tl.arange(0, exists.shape[1])[None, :])
    tl.store(tables[0] + place, theta, mask=exists)
    store_moments(tables[1] + place, tables[2] + place, moment, square, key, first, count, exists)


@triton.jit
def step_posterior(
    tables,
    row_step,
    grad_z,
    grad_kl,
    grad_mean,
    seed,
    noise_index,
    key_index,
    row,
    position,
    valid,
    adam,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    LOG_STD: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Steps deviation and log_std of a block's rows, and says what step they are up to date with."""
    t = tl.arange(0, BLOCK_T)[None, :]
    # both parts are followed by the same padding
    exists = valid & (t < WIDTH - LOG_STD)
    values = _load_tile(tables, row, DEVIATION, exists, WIDTH)
    own_key = row_key(key_index, position, row, valid)
    _step_tile(tables, values, grad_mean, row, own_key, DEVIATION, exists, adam, WIDTH)

    values = _load_tile(tables, row, LOG_STD, exists, WIDTH)
    log_std = values[0]
    std = tl.exp(clamp_log_std(log_std))
    key = tl.load(noise_index + position, mask=valid, other=0).to(tl.int64)
    draw = load_noise(None, position, seed, key, 0, valid, BLOCK_T)
    grad = grad_z * draw * std + grad_kl * (std * std - 1.0)
    free = valid & (t < T) & (log_std >= -LOG_STD_LIMIT) & (log_std <= LOG_STD_LIMIT)
    grad = tl.where(free, grad, 0.0)
    _step_tile(tables, values, grad, row, own_key, LOG_STD, exists, adam, WIDTH)
    count = tl.zeros_like(row) + adam[0]
    tl.store(row_step + row, count.to(tl.int32), mask=valid)


@triton.jit
def step_coefficients(
    first,
    tables,
    relays,
    bits,
    work,
    piece,
    index,
    key_index,
    row_error,
    adam,
    sizes,
    RELAYS: tl.constexpr,
    STRIDE: tl.constexpr,
    GROUPS: tl.constexpr,
    T: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Steps a tile of packed coefficients in all blocks, and sums the gradient of its relays."""
    column = first + tl.arange(0, BLOCK_K)
    relay, bit = locate(column, GROUPS)
    t = tl.arange(0, BLOCK_T)[None, :]
    total = tl.zeros([BLOCK_K, BLOCK_T], tl.float32)
    for step in range(sizes[0]):
        position, row, valid = load_block(index, row_error, step, sizes, BLOCK_B)
        exists, used = valid & (column < DEVIATION)[None, :], valid & (relay >= 0)[None, :]
        values = _load_tile(tables, row, first, exists, WIDTH)
        kept = used & load_kept(bits, position, bit[None, :], used, WORDS)
        grad_mean = work + position.to(tl.int64) * STRIDE
        product = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
        for t_first in range(0, T, BLOCK_P):
            p = t_first + tl.arange(0, BLOCK_P)[None, :]
            grad = tl.load(grad_mean + p, mask=valid & (p < T), other=0.0)
            vectors = load_relays(relays, relay, p, T)
            product = tl.dot(grad, tl.trans(vectors), product, input_precision=PRECISION)
        if RELAYS >= 0:
            # of the coefficients as they were before the step
            weight = tl.where(kept, values[0], 0.0)
            grad = tl.load(grad_mean + t, mask=valid & (t < T), other=0.0)
            total = tl.dot(tl.trans(weight), grad, total, input_precision=PRECISION)
        product = tl.where(kept, product, 0.0)
        own_key = row_key(key_index, position, row, valid)
        _step_tile(tables, values, product, row, own_key, first, exists, adam, WIDTH)
    if RELAYS >= 0:
        relay = relay[:, None]
        tl.store(piece + RELAYS + relay.to(tl.int64) * T + t, total, mask=(relay >= 0) & (t < T))
