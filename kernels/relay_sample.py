"""relay_sample: gather, select, combine, sample and KL of a batch of rows, and the gradients.

Math:
    Row i = index[b], in each group the m_g coefficients of largest |a| kept (bits), w = a where kept
    (mixture: softmax over the kept), else 0:

        mu = sum_k w_k R_k + e,   r clamped to [-30, 30],   sigma = exp(r)
        z = mu + sigma * noise,   kl = 1/2 sum_t (mu^2 + sigma^2 - 1 - 2 r)

    Backward, with the bits, the noise and (beyond +-30) r held constant:

        grad_mu = sum_s grad_z + grad_kl mu,   grad_e = grad_mu
        grad_r = sum_s grad_z noise sigma + grad_kl (sigma^2 - 1)
        grad_a = <grad_mu, R_k> where kept (mixture: w (<grad_mu, R_k> - sum_j w_j <grad_mu, R_j>))
        grad_R = sum_b w_bk grad_mu_b

Shapes:
    rows [N, W], relays [K, T], index [B], seed [1], noise [S, B, T] or None, z [S, B, T], kl [B],
    bits [B, words]. T <= 256, K_g <= 1024. A block of 16 rows passes over the packed coefficients
    of all groups in tiles of `BLOCK_K` columns; tiles and groups need not begin together.

Saved:
    The kept bits. Mean and noise are made again.

Traffic:
    Per row, in float32: forward reads 4 W + 8 and writes 4 (S T + 1) + 4 words bytes; backward reads
    4 W + 8 + 4 (S T + 1) + 4 words and writes 4 W; grad_relays reads its 4 K + 4 T + 4 words once
    more, from the second-level cache for batches of up to about 16 thousand rows.

Limits:
    Ties go to the lowest index, -0 equals 0, NaN ranks above every number and goes where the formulas
    take it. A row number outside [0, N) gives zeros and raises `row_error`. Sums over the batch are
    made in pieces whose number depends on B alone, and added in order: every run, on whatever GPU of
    an architecture, gives the same bits. Tables are float32, float16 or bfloat16, sums float32; the
    products as `_common.input_precision` says.

Source:
    Paper eq. 3, 4 and 5; `rvi_fast.reference.relay_sample_fwd` and `relay_sample_bwd`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import BITS_PER_WORD, RowLayout
from ._common import (
    BLOCK_B,
    block_of,
    input_precision,
    load_row_numbers,
    magnitude_key,
    mark_largest,
    normal_noise,
    row_error,
    sum_pieces,
)

LARGEST_GROUP, LARGEST_LATENT_DIM = 1024, 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOG_STD_LIMIT = tl.constexpr(30.0)  # reference.LOG_STD_LIMIT
# grad_relays is summed in pieces of at least so many rows, and at most so many pieces
PIECE_ROWS, MAX_PIECES = 64, 128
# coefficients in the registers of a thread while a group is selected
SELECTED = 32


# Packed rows. GROUPS holds for each group (size, kept, first column in a row, first relay vector,
# first word of bits, columns of a block that covers it, rows selected at a time).


@triton.jit
def _locate(column, GROUPS: tl.constexpr):
    """The relay vector and the kept bit of packed columns; relay vector -1 for padding."""
    relay = tl.zeros_like(column) - 1
    bit = tl.zeros_like(column)
    for g in tl.static_range(len(GROUPS)):
        k = column - GROUPS[g][2]
        own = (k >= 0) & (k < GROUPS[g][0])
        relay = tl.where(own, k + GROUPS[g][3], relay)
        bit = tl.where(own, k + 32 * GROUPS[g][4], bit)
    return relay, bit


@triton.jit
def _load_kept(bits, position, bit, exists, WORDS: tl.constexpr):
    word = tl.load(bits + position.to(tl.int64) * WORDS + (bit >> 5), mask=exists, other=0)
    return ((word >> (bit & 31)) & 1) == 1


@triton.jit
def _load_weights(
    rows,
    bits,
    softmax,
    row,
    position,
    valid,
    column,
    relay,
    bit,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
):
    """What multiplies the relay vectors of packed columns [1, BLOCK_K]; 0 where not kept."""
    exists = valid & (relay >= 0)
    if softmax is not None:
        return tl.load(softmax + position.to(tl.int64) * DEVIATION + column, mask=exists, other=0.0)
    value = tl.load(rows + row * WIDTH + column, mask=exists, other=0.0).to(tl.float32)
    return tl.where(_load_kept(bits, position, bit, exists, WORDS), value, 0.0)


@triton.jit
def _load_relays(relays, relay, t, T: tl.constexpr):
    """Relay vectors [BLOCK_K, BLOCK_T] of packed columns [BLOCK_K, 1]."""
    exists = (relay >= 0) & (t < T)
    return tl.load(relays + relay.to(tl.int64) * T + t, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _load_kept_values(
    rows,
    bits,
    row,
    position,
    valid,
    first,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Coefficients of a group from `first` on, -inf where not kept; their columns; which exist."""
    k = first + tl.arange(0, BLOCK_K)[None, :]
    exists = valid & (k < GROUP[0])
    column = GROUP[2] + k
    kept = _load_kept(bits, position, 32 * GROUP[4] + k, exists, WORDS)
    value = tl.load(rows + row * WIDTH + column, mask=exists, other=0.0).to(tl.float32)
    return tl.where(kept, value, float("-inf")), column, exists


@triton.jit
def _weigh_group(
    rows,
    bits,
    softmax,
    row,
    position,
    valid,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Stores the softmax of a group's kept coefficients, 0 for the others."""
    largest = tl.zeros_like(row).to(tl.float32) + float("-inf")
    for first in range(0, GROUP[0], BLOCK_K):
        value, _, _ = _load_kept_values(
            rows, bits, row, position, valid, first, GROUP, WORDS, WIDTH, BLOCK_K
        )
        largest = tl.maximum(largest, tl.max(value, 1, keep_dims=True))
    total = tl.zeros_like(largest)
    for first in range(0, GROUP[0], BLOCK_K):
        value, _, _ = _load_kept_values(
            rows, bits, row, position, valid, first, GROUP, WORDS, WIDTH, BLOCK_K
        )
        total += tl.sum(tl.exp(value - largest), 1, keep_dims=True)
    for first in range(0, GROUP[0], BLOCK_K):
        value, column, exists = _load_kept_values(
            rows, bits, row, position, valid, first, GROUP, WORDS, WIDTH, BLOCK_K
        )
        weight = tl.exp(value - largest) / total
        tl.store(softmax + position.to(tl.int64) * DEVIATION + column, weight, mask=exists)


@triton.jit
def _posterior_mean(
    rows,
    relays,
    bits,
    softmax,
    row,
    position,
    valid,
    GROUPS: tl.constexpr,
    T: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """mu [BLOCK_B, BLOCK_T] of rows whose bits are in memory; mixtures leave their weights there."""
    if softmax is not None:
        for g in tl.static_range(len(GROUPS)):
            _weigh_group(
                rows,
                bits,
                softmax,
                row,
                position,
                valid,
                tl.constexpr(GROUPS[g]),
                WORDS,
                WIDTH,
                DEVIATION,
                BLOCK_K,
            )
        tl.debug_barrier()
    t = tl.arange(0, BLOCK_T)[None, :]
    mean = tl.load(rows + row * WIDTH + DEVIATION + t, mask=valid & (t < T), other=0.0)
    mean = mean.to(tl.float32)
    for first in range(0, DEVIATION, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        relay, bit = _locate(column, GROUPS)
        weight = _load_weights(
            rows,
            bits,
            softmax,
            row,
            position,
            valid,
            column[None, :],
            relay[None, :],
            bit[None, :],
            WORDS,
            WIDTH,
            DEVIATION,
        )
        vectors = _load_relays(relays, relay[:, None], t, T)
        mean = tl.dot(weight, vectors, mean, input_precision=PRECISION)
    return mean


@triton.jit
def _clamp_log_std(log_std):
    # tl.clamp would turn NaN into a number
    log_std = tl.where(log_std > LOG_STD_LIMIT, LOG_STD_LIMIT, log_std)
    return tl.where(log_std < -LOG_STD_LIMIT, -LOG_STD_LIMIT, log_std)


@triton.jit
def _load_noise(noise, seed, row, position, sample, batch, mask, T, BLOCK_T: tl.constexpr):
    """The noise of a sample, given or drawn, and where it lies in [S, B, T]."""
    t = tl.arange(0, BLOCK_T)[None, :]
    place = (position + sample * batch.to(tl.int64)) * T + t
    if noise is not None:
        draw = tl.load(noise + place, mask=mask, other=0.0).to(tl.float32)
    else:
        draw = normal_noise(tl.load(seed), row, sample, BLOCK_T)
    return draw, place


# Forward


@triton.jit
def _keep_group(
    rows,
    index,
    bits,
    row_error,
    start,
    num_data,
    batch,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Selects within a group, for as many rows at a time as the registers hold; stores the bits."""
    SIZE: tl.constexpr = GROUP[0]
    BLOCK: tl.constexpr = GROUP[5]
    BLOCK_S: tl.constexpr = GROUP[6]
    k = tl.arange(0, BLOCK)[None, :]
    word = tl.arange(0, BLOCK // 32)[None, :]
    for first in range(0, BLOCK_B, BLOCK_S):
        position = start + first + tl.arange(0, BLOCK_S)[:, None]
        row, valid = load_row_numbers(index, row_error, position, num_data, batch)
        kept = valid & (k < SIZE)
        value = tl.load(rows + row * WIDTH + GROUP[2] + k, mask=kept, other=0.0).to(tl.float32)
        if GROUP[1] < SIZE:
            key = tl.where(k < SIZE, magnitude_key(value), -1)
            kept = mark_largest(key, k, GROUP[1]) & valid
        packed = tl.reshape(kept.to(tl.int32) << (k & 31), [BLOCK_S, BLOCK // 32, 32])
        exists = (position < batch) & (word < (SIZE + 31) // 32)
        place = bits + position.to(tl.int64) * WORDS + GROUP[4] + word
        tl.store(place, tl.sum(packed, 2), mask=exists)


@triton.jit(do_not_specialize=["num_data", "batch", "num_samples"])
def _relay_sample_fwd_kernel(
    rows,
    relays,
    index,
    seed,
    noise,
    z,
    kl,
    bits,
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
):
    start = tl.program_id(0) * BLOCK_B
    for g in tl.static_range(len(GROUPS)):
        _keep_group(
            rows,
            index,
            bits,
            row_error,
            start,
            num_data,
            batch,
            tl.constexpr(GROUPS[g]),
            WORDS,
            WIDTH,
            BLOCK_B,
        )
    # other threads read what was stored
    tl.debug_barrier()

    position = start + tl.arange(0, BLOCK_B)[:, None]
    row, valid = load_row_numbers(index, row_error, position, num_data, batch)
    inside = position < batch
    mean = _posterior_mean(
        rows,
        relays,
        bits,
        softmax,
        row,
        position,
        valid,
        GROUPS,
        T,
        WORDS,
        WIDTH,
        DEVIATION,
        PRECISION,
        BLOCK_K,
        BLOCK_T,
    )
    t = tl.arange(0, BLOCK_T)[None, :]
    exists = valid & (t < T)
    log_std = tl.load(rows + row * WIDTH + LOG_STD + t, mask=exists, other=0.0).to(tl.float32)
    log_std = _clamp_log_std(log_std)
    std = tl.exp(log_std)
    terms = tl.where(exists, mean * mean + std * std - 1.0 - 2.0 * log_std, 0.0)
    tl.store(kl + position, 0.5 * tl.sum(terms, 1, keep_dims=True), mask=inside)
    for sample in range(num_samples):
        draw, place = _load_noise(noise, seed, row, position, sample, batch, exists, T, BLOCK_T)
        tl.store(z + place, tl.where(valid, mean + std * draw, 0.0), mask=inside & (t < T))


# Backward


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
    bits,
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
    position = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    row, valid = load_row_numbers(index, row_error, position, num_data, batch)
    inside = position < batch

    mean = _posterior_mean(
        rows,
        relays,
        bits,
        softmax,
        row,
        position,
        valid,
        GROUPS,
        T,
        WORDS,
        WIDTH,
        DEVIATION,
        PRECISION,
        BLOCK_K,
        BLOCK_T,
    )
    t = tl.arange(0, BLOCK_T)[None, :]
    exists = valid & (t < T)
    grad_kl_b = tl.load(grad_kl + position, mask=valid, other=0.0).to(tl.float32)
    grad_mu = tl.where(exists, grad_kl_b * mean, 0.0)
    grad_std = tl.zeros_like(grad_mu)
    for sample in range(num_samples):
        if grad_rows is not None:
            draw, place = _load_noise(noise, seed, row, position, sample, batch, exists, T, BLOCK_T)
            grad = tl.load(grad_z + place, mask=exists, other=0.0).to(tl.float32)
            grad_std += grad * draw
        else:
            place = (position + sample * batch.to(tl.int64)) * T + t
            grad = tl.load(grad_z + place, mask=exists, other=0.0).to(tl.float32)
        grad_mu += grad
    if grad_mean is not None:
        tl.store(grad_mean + position.to(tl.int64) * T + t, grad_mu, mask=inside & (t < T))

    if grad_rows is not None:
        log_std = tl.load(rows + row * WIDTH + LOG_STD + t, mask=exists, other=0.0)
        log_std = log_std.to(tl.float32)
        std = tl.exp(_clamp_log_std(log_std))
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
            relay, bit = _locate(column, GROUPS)
            product = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
            for t_first in range(0, T, BLOCK_P):
                p = t_first + tl.arange(0, BLOCK_P)[None, :]
                grad = tl.load(
                    grad_rows + position.to(tl.int64) * WIDTH + DEVIATION + p,
                    mask=valid & (p < T),
                    other=0.0,
                )
                vectors = _load_relays(relays, relay[:, None], p, T)
                product = tl.dot(grad, tl.trans(vectors), product, input_precision=PRECISION)
            column, used = column[None, :], valid & (relay >= 0)[None, :]
            if softmax is None:
                used &= _load_kept(bits, position, bit[None, :], used, WORDS)
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
    NUM_RELAYS: tl.constexpr,
    GRAD_STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Sums of w_bk grad_mean_b over a piece of the batch: pieces [P, K, T]."""
    column = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    relay, bit = _locate(column, GROUPS)
    t = tl.arange(0, BLOCK_T)[None, :]
    total = tl.zeros([BLOCK_K, BLOCK_T], tl.float32)
    start = tl.program_id(1) * piece_rows
    for offset in range(0, piece_rows, BLOCK_B):
        position = start + offset + tl.arange(0, BLOCK_B)[:, None]
        row, valid = load_row_numbers(index, row_error, position, num_data, batch)
        weight = _load_weights(
            rows,
            bits,
            softmax,
            row,
            position,
            valid,
            column[None, :],
            relay[None, :],
            bit[None, :],
            WORDS,
            WIDTH,
            DEVIATION,
        )
        grad = tl.load(
            grad_mean + position.to(tl.int64) * GRAD_STRIDE + t, mask=valid & (t < T), other=0.0
        )
        total = tl.dot(tl.trans(weight), grad, total, input_precision=PRECISION)
    relay = relay[:, None]
    place = (tl.program_id(1).to(tl.int64) * NUM_RELAYS + relay) * T + t
    tl.store(pieces + place, total, mask=(relay >= 0) & (t < T))


# Launchers


def _covers(rows: Tensor, relays: Tensor, groups: list[int]) -> bool:
    return (
        rows.dtype in DTYPES
        and relays.dtype == rows.dtype
        and relays.shape[1] <= LARGEST_LATENT_DIM
        and max(groups, default=0) <= LARGEST_GROUP
    )


def _constants(layout: RowLayout) -> dict[str, Any]:
    """Layout, tiles and launch options; no kernel spills a register with them, on sm_80 to sm_120."""
    block_t = block_of(layout.latent_dim)
    num_warps = max(4, block_t // 32)
    words = tuple(sum(layout.word_counts[:g]) for g in range(len(layout.groups)))
    starts = (layout.group_offsets, layout.relay_offsets, words)
    blocks = [block_of(size, least=BITS_PER_WORD) for size in layout.groups]
    selected = [min(BLOCK_B, SELECTED * 32 * num_warps // block) for block in blocks]
    return {
        "GROUPS": tuple(zip(layout.groups, layout.kept, *starts, blocks, selected, strict=True)),
        "T": layout.latent_dim,
        "WORDS": sum(layout.word_counts),
        "WIDTH": layout.width,
        "DEVIATION": layout.deviation_offset,
        "PRECISION": input_precision(),
        "BLOCK_B": BLOCK_B,
        "BLOCK_K": min(32, block_of(layout.deviation_offset)),
        "BLOCK_T": block_t,
        "num_warps": num_warps,
        "num_stages": 1,
        # with 128 four programs fit into a multiprocessor; without a limit the assembler may spill
        # a few registers to make room for one program more
        "maxnreg": 128 if block_t <= 64 and layout.deviation_offset < 256 else 255,
        "enable_fp_fusion": True,
    }


def relay_sample_fwd(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    groups: list[int],
    kept: list[int],
    form: str,
    num_samples: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.relay_sample_fwd`."""
    if not _covers(rows, relays, groups):
        return NotImplemented
    layout = RowLayout(relays.shape[1], tuple(groups), tuple(kept), form)
    batch = index.shape[0]
    words, float32 = sum(layout.word_counts), torch.float32
    z = rows.new_empty((num_samples, batch, layout.latent_dim))
    kl = rows.new_empty(batch, dtype=float32)
    bits = rows.new_empty((batch, words), dtype=torch.int32)
    softmax = None
    if form == "mixture":
        softmax = rows.new_empty((batch, layout.deviation_offset), dtype=float32)
    if batch:
        _relay_sample_fwd_kernel[(triton.cdiv(batch, BLOCK_B),)](
            rows=rows.contiguous(),
            relays=relays.contiguous(),
            index=index.contiguous(),
            seed=seed,
            noise=None if noise is None else noise.contiguous(),
            z=z,
            kl=kl,
            bits=bits,
            softmax=softmax,
            row_error=row_error(rows.device),
            num_data=rows.shape[0],
            batch=batch,
            num_samples=num_samples,
            **_constants(layout),
            LOG_STD=layout.log_std_offset,
        )
    return z, kl, bits


def relay_sample_bwd(
    grad_z: Tensor,
    grad_kl: Tensor,
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise: Tensor | None,
    bits: Tensor,
    groups: list[int],
    kept: list[int],
    form: str,
    need_rows: bool,
    need_relays: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.relay_sample_bwd`."""
    if not _covers(rows, relays, groups):
        return NotImplemented
    layout = RowLayout(relays.shape[1], tuple(groups), tuple(kept), form)
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
    constants = _constants(layout)
    _relay_sample_bwd_kernel[(triton.cdiv(batch, BLOCK_B),)](
        grad_z=grad_z.contiguous(),
        grad_kl=grad_kl.contiguous(),
        rows=rows,
        relays=relays.contiguous(),
        index=index,
        seed=seed,
        noise=None if noise is None else noise.contiguous(),
        bits=bits,
        grad_rows=grad_rows if need_rows else None,
        grad_mean=grad_mean,
        softmax=softmax,
        **common,
        num_samples=grad_z.shape[0],
        **constants,
        LOG_STD=layout.log_std_offset,
        BLOCK_P=min(32, constants["BLOCK_T"]),
    )
    if grad_relays.numel():
        num_pieces = min(MAX_PIECES, triton.cdiv(batch, PIECE_ROWS))
        pieces = grad_relays
        if num_pieces > 1:
            pieces = relays.new_empty((num_pieces, *relays.shape), dtype=float32)
        grid = (triton.cdiv(layout.deviation_offset, constants["BLOCK_K"]), num_pieces)
        _relay_sample_bwd_relays_kernel[grid](
            rows=rows,
            index=index,
            bits=bits,
            grad_mean=grad_rows[:, layout.deviation_offset :] if need_rows else grad_mean,
            softmax=softmax,
            pieces=pieces,
            **common,
            piece_rows=triton.cdiv(batch, num_pieces * BLOCK_B) * BLOCK_B,
            **constants,
            NUM_RELAYS=layout.num_relays,
            GRAD_STRIDE=layout.width if need_rows else latent_dim,
        )
        if num_pieces > 1:
            sum_pieces(pieces, grad_relays)
    return grad_rows.to(rows.dtype), grad_relays
