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
    rows [N, W], relays [K, T], index and noise_index [B], seed [1], noise [S, B, T] or None,
    z [S, B, T], kl [B], bits [B, words]. T <= 256, K_g <= 1024. A block of 16 rows passes over the
    packed coefficients of all groups in tiles of `BLOCK_K` columns; tiles and groups need not begin
    together. Drawn noise is keyed by `noise_index`; a launcher passes `index` where there is none.

Saved:
    The kept bits and mu. The noise is made again.

Traffic:
    Per row, in float32: forward reads 4 W + 8 and writes 4 (S T + T + 1) + 4 words bytes; backward
    reads 4 T + 8 + 4 (S T + T + 1) + 4 words (a mixture its coefficients as well) and writes 4 W;
    grad_relays reads its 4 K + 4 T + 4 words once more, from the second-level cache for batches of up
    to about 16 thousand rows. A noise_index of its own is 8 bytes more.

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

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import checked, layout_of
from ..layout import BITS_PER_WORD, RowLayout
from ._common import (
    BLOCK_B,
    block_of,
    input_precision,
    launch,
    load_row_numbers,
    magnitude_key,
    mark_largest,
    normal_noise,
    row_error,
)

LARGEST_GROUP, LARGEST_LATENT_DIM = 1024, 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOG_STD_LIMIT = tl.constexpr(30.0)  # reference.LOG_STD_LIMIT
# coefficients in the registers of a thread while a group is selected
SELECTED = 32


# Packed rows. GROUPS holds for each group (size, kept, first column in a row, first relay vector,
# first word of bits, columns of a block that covers it, rows selected at a time).


@triton.jit
def locate(column, GROUPS: tl.constexpr):
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
def load_kept(bits, position, bit, exists, WORDS: tl.constexpr):
    word = tl.load(bits + position.to(tl.int64) * WORDS + (bit >> 5), mask=exists, other=0)
    return ((word >> (bit & 31)) & 1) == 1


@triton.jit
def load_weights(
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
    """What multiplies the relay vectors of packed columns [BLOCK_K]; 0 where not kept."""
    column, relay, bit = column[None, :], relay[None, :], bit[None, :]
    exists = valid & (relay >= 0)
    if softmax is not None:
        return tl.load(softmax + position.to(tl.int64) * DEVIATION + column, mask=exists, other=0.0)
    value = tl.load(rows + row * WIDTH + column, mask=exists, other=0.0).to(tl.float32)
    return tl.where(load_kept(bits, position, bit, exists, WORDS), value, 0.0)


@triton.jit
def load_relays(relays, relay, t, T: tl.constexpr):
    """Relay vectors `relay` [BLOCK_K], as [BLOCK_K, BLOCK_T]."""
    relay = relay[:, None]
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
    kept = load_kept(bits, position, 32 * GROUP[4] + k, exists, WORDS)
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
def weigh_groups(
    rows,
    bits,
    softmax,
    row,
    position,
    valid,
    GROUPS: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Stores the weights of a mixture, of rows whose bits are in memory, for all threads to read."""
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


@triton.jit
def posterior_mean(
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
    """mu [BLOCK_B, BLOCK_T] of rows whose bits, and weights of a mixture, are in memory."""
    t = tl.arange(0, BLOCK_T)[None, :]
    mean = tl.load(rows + row * WIDTH + DEVIATION + t, mask=valid & (t < T), other=0.0)
    mean = mean.to(tl.float32)
    for first in range(0, DEVIATION, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        relay, bit = locate(column, GROUPS)
        weight = load_weights(
            rows, bits, softmax, row, position, valid, column, relay, bit, WORDS, WIDTH, DEVIATION
        )
        vectors = load_relays(relays, relay, t, T)
        mean = tl.dot(weight, vectors, mean, input_precision=PRECISION)
    return mean


@triton.jit
def clamp_log_std(log_std):
    # tl.clamp would turn NaN into a number
    log_std = tl.where(log_std > LOG_STD_LIMIT, LOG_STD_LIMIT, log_std)
    return tl.where(log_std < -LOG_STD_LIMIT, -LOG_STD_LIMIT, log_std)


@triton.jit
def load_log_std(rows, row, t, exists, WIDTH: tl.constexpr, LOG_STD: tl.constexpr):
    log_std = tl.load(rows + row * WIDTH + LOG_STD + t, mask=exists, other=0.0).to(tl.float32)
    return clamp_log_std(log_std)


@triton.jit
def divergence(mean, std, log_std, exists):
    """kl [BLOCK_B, 1]."""
    terms = tl.where(exists, mean * mean + std * std - 1.0 - 2.0 * log_std, 0.0)
    return 0.5 * tl.sum(terms, 1, keep_dims=True)


@triton.jit
def load_noise(noise, place, seed, key, sample, exists, BLOCK_T: tl.constexpr):
    """The noise of a sample: given, at `place`, or drawn for the row numbers `key`."""
    if noise is not None:
        draw = tl.load(noise + place, mask=exists, other=0.0).to(tl.float32)
    else:
        draw = normal_noise(tl.load(seed), key, sample, BLOCK_T)
    return draw


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
        position = start.to(tl.int64) + first + tl.arange(0, BLOCK_S)[:, None]
        row, valid = load_row_numbers(index, row_error, position, num_data, batch, False)
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
    noise_index,
    z,
    kl,
    bits,
    saved_mean,
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
    # positions in the batch take half the registers in 32 bits
    start = (tl.program_id(0).to(tl.int64) * BLOCK_B).to(tl.int32)
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
    mean = posterior_mean(
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
    mean = tl.where(exists, mean, 0.0)
    tl.store(saved_mean + position.to(tl.int64) * T + t, mean, mask=inside & (t < T))
    log_std = load_log_std(rows, row, t, exists, WIDTH, LOG_STD)
    std = tl.exp(log_std)
    tl.store(kl + position, divergence(mean, std, log_std, exists), mask=inside)
    key = tl.load(noise_index + position, mask=inside, other=0).to(tl.int64)
    for sample in range(num_samples):
        place = (position + sample * batch.to(tl.int64)) * T + t
        draw = load_noise(noise, place, seed, key, sample, exists, BLOCK_T)
        tl.store(z + place, tl.where(valid, mean + std * draw, 0.0), mask=inside & (t < T))


# Launcher


def covers(rows: Tensor, relays: Tensor, groups: list[int]) -> bool:
    return (
        rows.dtype in DTYPES
        and relays.dtype == rows.dtype
        and relays.shape[1] <= LARGEST_LATENT_DIM
        and max(groups, default=0) <= LARGEST_GROUP
    )


@functools.lru_cache(maxsize=256)
def constants_of(layout: RowLayout, precision: str) -> dict[str, Any]:
    """Layout, tiles and launch options; no kernel spills a register with them, on sm_80 to sm_120."""
    block_t = block_of(layout.latent_dim)
    num_warps = max(4, block_t // 32)
    narrow = block_t <= 64 and layout.deviation_offset < 256 and layout.form != "mixture"
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
        "LOG_STD": layout.log_std_offset,
        "PRECISION": precision,
        "BLOCK_B": BLOCK_B,
        "BLOCK_K": min(32, block_of(layout.deviation_offset)),
        "BLOCK_T": block_t,
        "num_warps": num_warps,
        "num_stages": 1,
        # with 128 four programs fit into a multiprocessor; without a limit the assembler may spill
        # a few registers to make room for one program more
        "maxnreg": 128 if narrow else 255,
        "enable_fp_fusion": True,
    }


@checked
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
    noise_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference.relay_sample_fwd`."""
    if not covers(rows, relays, groups):
        return NotImplemented
    layout = layout_of(relays.shape[1], tuple(groups), tuple(kept), form)
    batch = index.shape[0]
    words, float32 = sum(layout.word_counts), torch.float32
    z = rows.new_empty((num_samples, batch, layout.latent_dim))
    kl = rows.new_empty(batch, dtype=float32)
    bits = rows.new_empty((batch, words), dtype=torch.int32)
    mean = rows.new_empty((batch, layout.latent_dim), dtype=float32)
    softmax = None
    if form == "mixture":
        softmax = rows.new_empty((batch, layout.deviation_offset), dtype=float32)
    if batch:
        launch(_relay_sample_fwd_kernel, (triton.cdiv(batch, BLOCK_B),))(
            rows=rows.contiguous(),
            relays=relays.contiguous(),
            index=index.contiguous(),
            seed=seed,
            noise=None if noise is None else noise.contiguous(),
            noise_index=(index if noise_index is None else noise_index).contiguous(),
            z=z,
            kl=kl,
            bits=bits,
            saved_mean=mean,
            softmax=softmax,
            row_error=row_error(rows.device),
            num_data=rows.shape[0],
            batch=batch,
            num_samples=num_samples,
            **constants_of(layout, input_precision()),
        )
    return z, kl, bits, mean
