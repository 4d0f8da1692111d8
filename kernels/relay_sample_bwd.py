"""Backward of relay_sample: gradients of the rows of a batch, and of the relays.

The mathematics, shapes, traffic and limits stand in `relay_sample`. First a kernel for the rows, which
makes the noise again; then one that sums the gradient of the relays over pieces of the batch, a
tile of relay vectors at a time, and a reduction that adds the pieces in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import checked, layout_of
from ._common import (
    BLOCK_B,
    input_precision,
    launch,
    load_row_numbers,
    row_error,
    sum_pieces,
)
from .relay_sample import (
    LOG_STD_LIMIT,
    clamp_log_std,
    constants_of,
    covers,
    load_kept,
    load_noise,
    load_relays,
    load_weights,
    locate,
    weigh_groups,
)

# grad_relays is summed in pieces of at least so many rows, and at most so many pieces
PIECE_ROWS, MAX_PIECES = 64, 128
# and so many rows at a time; tiles stay below 64, from which on other tensor core instructions are
# used, of a new kind for each architecture
PIECE_BLOCK = 32


@triton.jit
def _centre_group(
    grad_rows,
    softmax,
    position,
    valid,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Turns the stored products of a group into the gradients of a mixture's coefficients."""
    products = grad_rows + position.to(tl.int64) * WIDTH + GROUP[2]
    weights = softmax + position.to(tl.int64) * DEVIATION + GROUP[2]
    centre = tl.zeros_like(position).to(tl.float32)
    for first in range(0, GROUP[0], BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        exists = valid & (k < GROUP[0])
        weight = tl.load(weights + k, mask=exists, other=0.0)
        product = tl.load(products + k, mask=exists, other=0.0)
        centre += tl.sum(weight * product, 1, keep_dims=True)
    # what is written below has been read by everybody
    tl.debug_barrier()
    for first in range(0, GROUP[0], BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)[None, :]
        exists = valid & (k < GROUP[0])
        weight = tl.load(weights + k, mask=exists, other=0.0)
        product = tl.load(products + k, mask=exists, other=0.0)
        tl.store(products + k, weight * (product - centre), mask=exists)


@triton.jit(do_not_specialize=["num_data", "batch", "num_samples"])
def _relay_sample_bwd_kernel(
    grad_z,
    grad_kl,
    rows,
    relays,
    index,
    seed,
    noise,
    noise_index,
    bits,
    saved_mean,
    grad_rows,
    grad_mean,
    softmax,
    row_error,
    num_data,
    batch,
    num_samples,
    GROUPS: tl.constexpr,
    T: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    LOG_STD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Gradients of the rows, and grad_mean [B, T] where asked for: `grad_relays` needs it."""
    start = (tl.program_id(0).to(tl.int64) * BLOCK_B).to(tl.int32)
    position = start + tl.arange(0, BLOCK_B)[:, None]
    row, valid = load_row_numbers(index, row_error, position, num_data, batch, False)
    inside = position < batch

    if softmax is not None:
        weigh_groups(
            rows,
            bits,
            softmax,
            row,
            position,
            valid,
            GROUPS,
            WORDS,
            WIDTH,
            DEVIATION,
            BLOCK_K,
        )
    t = tl.arange(0, BLOCK_T)[None, :]
    exists = valid & (t < T)
    grad_kl_b = tl.load(grad_kl + position, mask=valid, other=0.0).to(tl.float32)
    mean = tl.load(saved_mean + position.to(tl.int64) * T + t, mask=exists, other=0.0)
    grad_mu = tl.where(exists, grad_kl_b * mean, 0.0)
    grad_std = tl.zeros_like(grad_mu)
    key = tl.load(noise_index + position, mask=inside, other=0).to(tl.int64)
    for sample in range(num_samples):
        place = (position + sample * batch.to(tl.int64)) * T + t
        grad = tl.load(grad_z + place, mask=exists, other=0.0).to(tl.float32)
        grad_mu += grad
        if grad_rows is not None:
            grad_std += grad * load_noise(noise, place, seed, key, sample, exists, BLOCK_T)
    if grad_mean is not None:
        tl.store(grad_mean + position.to(tl.int64) * T + t, grad_mu, mask=inside & (t < T))

    if grad_rows is not None:
        log_std = tl.load(rows + row * WIDTH + LOG_STD + t, mask=exists, other=0.0)
        log_std = log_std.to(tl.float32)
        std = tl.exp(clamp_log_std(log_std))
        grad_log_std = grad_std * std + grad_kl_b * (std * std - 1.0)
        free = exists & (log_std >= -LOG_STD_LIMIT) & (log_std <= LOG_STD_LIMIT)
        grad_log_std = tl.where(free, grad_log_std, 0.0)
        # both parts are followed by the same padding, which is written too
        part = grad_rows + position.to(tl.int64) * WIDTH + t
        stored = inside & (t < WIDTH - LOG_STD)
        tl.store(part + DEVIATION, grad_mu, mask=stored)
        tl.store(part + LOG_STD, grad_log_std, mask=stored)

        # grad_mu comes back in parts: all of it, as an operand, would fill the registers
        tl.debug_barrier()
        for first in range(0, DEVIATION, BLOCK_K):
            column = first + tl.arange(0, BLOCK_K)
            relay, bit = locate(column, GROUPS)
            product = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
            for t_first in range(0, T, BLOCK_P):
                p = t_first + tl.arange(0, BLOCK_P)[None, :]
                grad = tl.load(
                    grad_rows + position.to(tl.int64) * WIDTH + DEVIATION + p,
                    mask=valid & (p < T),
                    other=0.0,
                )
                vectors = load_relays(relays, relay, p, T)
                product = tl.dot(grad, tl.trans(vectors), product, input_precision=PRECISION)
            column, used = column[None, :], valid & (relay >= 0)[None, :]
            if softmax is None:
                used &= load_kept(bits, position, bit[None, :], used, WORDS)
            product = tl.where(used, product, 0.0)
            within = inside & (column < DEVIATION)
            tl.store(grad_rows + position.to(tl.int64) * WIDTH + column, product, mask=within)
        if softmax is not None:
            tl.debug_barrier()
            for g in tl.static_range(len(GROUPS)):
                _centre_group(
                    grad_rows,
                    softmax,
                    position,
                    valid,
                    tl.constexpr(GROUPS[g]),
                    WIDTH,
                    DEVIATION,
                    BLOCK_K,
                )


@triton.jit(do_not_specialize=["num_data", "batch", "piece_rows"])
def _relay_sample_bwd_relays_kernel(
    rows,
    index,
    bits,
    grad_mean,
    softmax,
    pieces,
    row_error,
    num_data,
    batch,
    piece_rows,
    GROUPS: tl.constexpr,
    T: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    LOG_STD: tl.constexpr,
    NUM_RELAYS: tl.constexpr,
    GRAD_STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Sums of w_bk grad_mean_b over a piece of the batch: pieces [P, K, T]."""
    column = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    relay, bit = locate(column, GROUPS)
    t = tl.arange(0, BLOCK_T)[None, :]
    total = tl.zeros([BLOCK_K, BLOCK_T], tl.float32)
    start = tl.program_id(1).to(tl.int64) * piece_rows
    for offset in range(0, piece_rows, BLOCK_B):
        position = start + offset + tl.arange(0, BLOCK_B)[:, None]
        row, valid = load_row_numbers(index, row_error, position, num_data, batch, False)
        weight = load_weights(
            rows, bits, softmax, row, position, valid, column, relay, bit, WORDS, WIDTH, DEVIATION
        )
        grad = tl.load(
            grad_mean + position.to(tl.int64) * GRAD_STRIDE + t, mask=valid & (t < T), other=0.0
        )
        total = tl.dot(tl.trans(weight), grad, total, input_precision=PRECISION)
    relay = relay[:, None]
    place = (tl.program_id(1).to(tl.int64) * NUM_RELAYS + relay) * T + t
    tl.store(pieces + place, total, mask=(relay >= 0) & (t < T))


# Launcher


@checked
def relay_sample_bwd(
    grad_z: Tensor,
    grad_kl: Tensor,
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    bits: Tensor,
    mean: Tensor | None,
    groups: list[int],
    kept: list[int],
    form: str,
    need_rows: bool,
    need_relays: bool,
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.relay_sample_bwd`."""
    if not covers(rows, relays, groups) or mean is None:
        return NotImplemented
    layout = layout_of(relays.shape[1], tuple(groups), tuple(kept), form)
    batch, latent_dim, float32 = index.shape[0], layout.latent_dim, torch.float32
    rows, index, bits = rows.contiguous(), index.contiguous(), bits.contiguous()
    grad_rows = rows.new_empty((batch, layout.width) if need_rows else 0, dtype=float32)
    grad_relays = relays.new_empty(relays.shape if need_relays else 0)
    if not batch or not (need_rows or grad_relays.numel()):
        return grad_rows.to(rows.dtype), grad_relays.zero_()
    softmax = grad_mean = None
    if form == "mixture":
        softmax = rows.new_empty((batch, layout.deviation_offset), dtype=float32)
    # grad_mean is the gradient of the deviation too, and is written once
    if grad_relays.numel() and not need_rows:
        grad_mean = rows.new_empty((batch, latent_dim), dtype=float32)
    common = {
        "row_error": row_error(rows.device),
        "num_data": rows.shape[0],
        "batch": batch,
    }
    constants = constants_of(layout, input_precision())
    launch(_relay_sample_bwd_kernel, (triton.cdiv(batch, BLOCK_B),))(
        grad_z=grad_z.contiguous(),
        grad_kl=grad_kl.contiguous(),
        rows=rows,
        relays=relays.contiguous(),
        index=index,
        seed=seed,
        noise=None if noise is None else noise.contiguous(),
        noise_index=(index if noise_index is None else noise_index).contiguous(),
        bits=bits,
        saved_mean=mean.to(float32).contiguous(),
        grad_rows=grad_rows if need_rows else None,
        grad_mean=grad_mean,
        softmax=softmax,
        **common,
        num_samples=grad_z.shape[0],
        **constants,
        BLOCK_P=min(32, constants["BLOCK_T"]),
    )
    if grad_relays.numel():
        num_pieces = min(MAX_PIECES, triton.cdiv(batch, PIECE_ROWS))
        pieces = grad_relays
        if num_pieces > 1:
            pieces = relays.new_empty((num_pieces, *relays.shape), dtype=float32)
        grid = (triton.cdiv(layout.deviation_offset, constants["BLOCK_K"]), num_pieces)
        launch(_relay_sample_bwd_relays_kernel, grid)(
            rows=rows,
            index=index,
            bits=bits,
            grad_mean=grad_rows[:, layout.deviation_offset :] if need_rows else grad_mean,
            softmax=softmax,
            pieces=pieces,
            **common,
            piece_rows=triton.cdiv(batch, num_pieces * PIECE_BLOCK) * PIECE_BLOCK,
            **constants | {"BLOCK_B": PIECE_BLOCK, "maxnreg": 255},
            NUM_RELAYS=layout.num_relays,
            GRAD_STRIDE=layout.width if need_rows else latent_dim,
        )
        if num_pieces > 1:
            sum_pieces(pieces, grad_relays)
    return grad_rows.to(rows.dtype), grad_relays
