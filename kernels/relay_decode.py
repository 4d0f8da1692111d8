"""relay_decode: the posterior of a batch of rows, a draw from it, and the hidden layers of its decoder.

Math:
    Row i = index[b] with its kept bits, w = a where kept, else 0:

        mu = sum_k w_k R_k + e,   r clamped to [-30, 30],   sigma = exp(r)
        z = mu + sigma * noise,   kl = 1/2 sum_t (mu^2 + sigma^2 - 1 - 2 r)
        h_1 = relu(W_1 z + b_1),   h_l = relu(W_l h_(l-1) + b_l)

Shapes:
    rows [N, W], relays [K, T], index and noise_index [B], seed [1], bits [B, words], W_l [H_l, H_(l-1)]
    with H_0 = T, b_l [H_l] or None; z and mu [B, T], kl [B], h_l [B, H_l]. All float32; T and H_l up to
    128, three layers at most, none as well. A program has 16 rows of the batch.

Saved:
    mu, z and what each layer gives. The noise is made again.

Traffic:
    Per row 4 W + 4 words + 8 bytes read, 8 T + 4 + 4 sum H_l written; relays and weights once for each
    16 rows, from the second-level cache. Between layers nothing is read back.

Limits:
    z, kl and mu are those of `relay_sample_fwd` with one sample, by the same operations. A row number
    outside [0, N) gives zeros everywhere and, unless it is -1, raises `row_error`. Products as
    `_common.input_precision` says.

Source:
    `rvi_fast.reference.fused_step.relay_decode`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import layout_of
from ..layout import RowLayout
from ._common import (
    BLOCK_B,
    block_of,
    input_precision,
    launch,
    load_row_numbers,
    normal_noise,
    row_error,
)
from .relay_sample import constants_of, divergence, load_log_std, posterior_mean

# warps by the widest block of z and what the layers give
WARPS = {16: 4, 32: 4, 64: 8, 128: 8}

# numbers of the weights that a thread holds while the posterior is computed
HELD = 48


@triton.jit
def _load_weight(weight, IN: tl.constexpr, OUT: tl.constexpr):
    """W of a layer from the sizes IN to OUT, [block, block]; 0 beyond them."""
    OUT_BLOCK: tl.constexpr = OUT[1]
    IN_BLOCK: tl.constexpr = IN[1]
    unit, column = tl.arange(0, OUT_BLOCK)[:, None], tl.arange(0, IN_BLOCK)[None, :]
    exists = (unit < OUT[0]) & (column < IN[0])
    return tl.load(weight + unit * IN[0] + column, mask=exists, other=0.0)


@triton.jit
def _layer(x, weight, bias, OUTPUT: tl.constexpr, PRECISION: tl.constexpr):
    """relu(W x + b) of x [BLOCK_B, BLOCK] and W [BLOCK_OUT, BLOCK]."""
    total = tl.dot(x, tl.trans(weight), input_precision=PRECISION)
    if bias is not None:
        unit = tl.arange(0, weight.shape[0])
        total += tl.load(bias + unit, mask=unit < OUTPUT, other=0.0)[None, :]
    # NaN stays
    return tl.where(total < 0.0, 0.0, total)


@triton.jit(do_not_specialize=["num_data", "batch"])
def _relay_decode_kernel(
    rows,
    relays,
    index,
    seed,
    noise_index,
    bits,
    weights,
    biases,
    z,
    kl,
    saved_mean,
    hidden,
    row_error,
    num_data,
    batch,
    GROUPS: tl.constexpr,
    T: tl.constexpr,
    WORDS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEVIATION: tl.constexpr,
    LOG_STD: tl.constexpr,
    SIZES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """SIZES holds (size, block that covers it) of z and what each layer gives."""
    start = (tl.program_id(0).to(tl.int64) * BLOCK_B).to(tl.int32)
    position = start + tl.arange(0, BLOCK_B)[:, None]
    row, valid = load_row_numbers(index, row_error, position, num_data, batch, True)
    inside = position < batch
    # the first weights are on their way while the posterior is computed
    held = weights[:0]
    for i in tl.static_range(AHEAD):
        own = _load_weight(weights[i], tl.constexpr(SIZES[i]), tl.constexpr(SIZES[i + 1]))
        held += (own,)
    mean = posterior_mean(
        rows,
        relays,
        bits,
        None,
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
    place = position.to(tl.int64) * T + t
    mean = tl.where(exists, mean, 0.0)
    tl.store(saved_mean + place, mean, mask=inside & (t < T))
    log_std = load_log_std(rows, row, t, exists, WIDTH, LOG_STD)
    std = tl.exp(log_std)
    tl.store(kl + position, divergence(mean, std, log_std, exists), mask=inside)
    key = tl.load(noise_index + position, mask=inside, other=0).to(tl.int64)
    x = mean + std * normal_noise(tl.load(seed), key, 0, BLOCK_T)
    x = tl.where(exists, x, 0.0)
    tl.store(z + place, x, mask=inside & (t < T))
    for i in tl.static_range(len(weights)):
        if i < AHEAD:
            weight = held[i]
        else:
            weight = _load_weight(weights[i], tl.constexpr(SIZES[i]), tl.constexpr(SIZES[i + 1]))
        x = _layer(x, weight, biases[i], SIZES[i + 1][0], PRECISION)
        x = tl.where(valid, x, 0.0)
        unit = tl.arange(0, SIZES[i + 1][1])[None, :]
        place = position.to(tl.int64) * SIZES[i + 1][0] + unit
        tl.store(hidden[i] + place, x, mask=inside & (unit < SIZES[i + 1][0]))


# Launcher


@functools.lru_cache(maxsize=256)
def _constants_of(layout: RowLayout, widths: tuple[int, ...], precision: str) -> dict[str, Any]:
    """Layout, tiles and launch options."""
    sizes = tuple((width, block_of(width)) for width in (layout.latent_dim, *widths))
    warps = WARPS[max(block for _, block in sizes)]
    elements = (left * right for (_, left), (_, right) in itertools.pairwise(sizes))
    held = itertools.accumulate(elements)
    return constants_of(layout, precision) | {
        "SIZES": sizes,
        "AHEAD": sum(total <= HELD * 32 * warps for total in held),
        "num_warps": warps,
        "maxnreg": 255,
    }


def relay_decode(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise_index: Tensor | None,
    bits: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    groups: list[int],
    kept: list[int],
    form: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """`reference.fused_step.relay_decode`."""
    layout = layout_of(relays.shape[1], tuple(groups), tuple(kept), form)
    batch, widths = index.shape[0], tuple(len(weight) for weight in weights)
    z, mean = (rows.new_empty((batch, layout.latent_dim)) for _ in range(2))
    kl = rows.new_empty(batch)
    hidden = [rows.new_empty((batch, width)) for width in widths]
    launch(_relay_decode_kernel, (triton.cdiv(batch, BLOCK_B),))(
        rows=rows,
        relays=relays,
        index=index,
        seed=seed,
        noise_index=index if noise_index is None else noise_index,
        bits=bits,
        weights=tuple(weights),
        biases=tuple(biases),
        z=z,
        kl=kl,
        saved_mean=mean,
        hidden=tuple(hidden),
        row_error=row_error(rows.device),
        num_data=rows.shape[0],
        batch=batch,
        **_constants_of(layout, widths, input_precision()),
    )
    return z, kl, mean, hidden
