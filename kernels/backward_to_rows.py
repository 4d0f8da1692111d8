"""Backward through hidden layers and posterior, and dense Adam for the rows of the batch, in one launch.

Math:
    With g_l the gradient of what hidden layer l gives, h_l = relu(W_l h_{l-1} + b_l), h_0 = z:

        g_l <- g_l where h_l > 0, else 0
        grad_W_l = sum_b g_l h_{l-1}^T,   grad_b_l = sum_b g_l,   g_{l-1} = W_l^T g_l

    With g_0 for grad_z and kl_weight / full_size for grad_kl the gradients of the posterior are those of
    `relay_sample`; with them the rows, which have missed no step, take that of `row_adam`.

Shapes:
    grad_hidden [p, B, H]; h_l [B, H_l], z and mean [B, T]; rows, exp_avg, exp_avg_sq [N, W]; grads
    [n, P]. T and H_l from 1 to 128, up to 3 layers, K_g <= 1024. Sixteen rows are a block. A program
    takes one, or several where there would be more than `MAX_PIECES`, and writes a piece of grads.
    Up to `SHARES` programs share a block and the piece: each makes g_l and grad_mu of the block itself,
    and takes its turns at what follows from them, a tile of columns or of a layer's outputs at a time.

Saved:
    Nothing. g_l and grad_mu go through memory of the launch's own, [shares, B, T + sum H_l].

Traffic:
    24 W bytes for each row, read and written with its moments (bfloat16: 16 W). Each of the programs
    that share a block reads 4 (p H + sum H_l + T) of its gradient and activations, which the
    second-level cache has for all but the first, and writes 4 (T + sum H_l), to read them back.
    A piece is written once: 78 kB where T = H_l = 64 and K = 175. A sum over blocks that stayed in
    memory would cost a block 156 kB, more than the 118 kB of its rows; it stays in registers, a tile of
    32 relays or outputs, for which the program walks over its blocks. For that grad_mu is read once
    for every tile, 24 kB for a block, and g_l with what goes into the layer, 24 kB.

Limits:
    Each row stands once in the batch: no two programs write the same element then, and what two programs
    of a block read of a row neither writes. The gradient of the relays is of the coefficients before the
    step, which the same program reads and steps. Padding between the parts of a row has gradient 0, and
    is stepped like the rest. A row number outside [0, N) is left out and, unless it is -1, raises
    `row_error`. Sums are made in an order that depends on sizes alone. Tables are float32, moments
    float32 or bfloat16; the products as `_common.input_precision` says.

Source:
    `rvi_fast.reference.fused_step.backward_to_rows`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import layout_of
from ..layout import ALIGNMENT, RowLayout
from ._adam import logarithm
from ._common import BLOCK_B, block_of, input_precision, launch, row_error
from .layers_bwd import sum_layer, sum_of_pieces, through_layer
from .pieces import PROGRAMS
from .relay_sample import constants_of
from .row_adam import adam_factors, moment_keys, moment_table
from .row_tiles import load_block, step_coefficients, step_posterior

# programs that share a block, at most, so that each has few tiles, one after the other: each goes
# through the layers itself, and more would read more than they save
SHARES = 8
# of `grads`: then a program shares its block with nobody
MAX_PIECES = 256


@triton.jit(
    do_not_specialize=["full_size", "num_data", "batch", "num_pieces", "steps", "num_shared"]
)
def _backward_to_rows_kernel(
    grad_hidden,
    activations,
    weights,
    saved_mean,
    bits,
    rows,
    exp_avg,
    exp_avg_sq,
    row_step,
    relays,
    index,
    seed,
    noise_index,
    key_index,
    kl_weight,
    clock,
    lr,
    work,
    grads,
    row_error,
    full_size,
    num_data,
    batch,
    num_pieces,
    steps,
    num_shared,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    beta2,
    rest1,
    rest2,
    eps,
    weight_decay: tl.float64,
    LAYERS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    RELAYS: tl.constexpr,
    STRIDE: tl.constexpr,
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
    BLOCK_H: tl.constexpr,
):
    """Activations and weights are those of the last layer first, z the last of all."""
    share, shares = tl.program_id(1), tl.num_programs(1)
    tables, sizes = (rows, exp_avg, exp_avg_sq), (steps, num_data, batch)
    # a program has its own: none waits for another
    work += share.to(tl.int64) * batch * STRIDE
    piece = grads + tl.program_id(0).to(tl.int64) * num_shared
    count = tl.load(clock) + 1
    factors = adam_factors(count, lr, log_beta1, log_beta2, weight_decay)
    adam = count, factors, (beta2, rest1, rest2, eps)
    grad_kl = (tl.load(kl_weight).to(tl.float64) / full_size).to(tl.float32)
    t = tl.arange(0, BLOCK_T)[None, :]

    for step in range(steps):
        position, row, valid = load_block(index, row_error, step, sizes, BLOCK_B)
        grad = sum_of_pieces(
            grad_hidden, num_pieces, position, valid, batch, OUTPUTS, BLOCK_B, BLOCK_H
        )
        for own in tl.static_range(len(LAYERS)):
            grad = through_layer(
                grad,
                activations[own],
                weights[own],
                work,
                position,
                valid,
                tl.constexpr(LAYERS[own]),
                STRIDE,
                PRECISION,
                BLOCK_B,
            )
        exists = valid & (t < T)
        mean = tl.load(saved_mean + position.to(tl.int64) * T + t, mask=exists, other=0.0)
        grad_mean = tl.where(exists, grad + grad_kl * mean, 0.0)
        tl.store(work + position.to(tl.int64) * STRIDE + t, grad_mean, mask=exists)
        if share == 0:
            step_posterior(
                tables,
                row_step,
                grad,
                grad_kl,
                grad_mean,
                seed,
                noise_index,
                key_index,
                row,
                position,
                valid,
                adam,
                T,
                WIDTH,
                DEVIATION,
                LOG_STD,
                BLOCK_T,
            )
    # other threads read what was stored
    tl.debug_barrier()

    # the posterior was the first turn
    turn = (share + shares - 1) % shares
    for first in range(turn * BLOCK_K, DEVIATION, shares * BLOCK_K):
        step_coefficients(
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
            RELAYS,
            STRIDE,
            GROUPS,
            T,
            WORDS,
            WIDTH,
            DEVIATION,
            PRECISION,
            BLOCK_B,
            BLOCK_K,
            BLOCK_T,
            BLOCK_P,
        )
    for own in tl.static_range(len(LAYERS)):
        turn = (share + shares - LAYERS[own][8] % shares) % shares
        for first in range(turn * LAYERS[own][4], LAYERS[own][1], shares * LAYERS[own][4]):
            sum_layer(
                first,
                activations[own + 1],
                work,
                piece,
                index,
                row_error,
                sizes,
                tl.constexpr(LAYERS[own]),
                STRIDE,
                PRECISION,
                BLOCK_B,
            )


# Launcher


@functools.lru_cache(maxsize=256)
def _constants_of(
    layout: RowLayout,
    hidden: tuple[int, ...],
    places: tuple[int | None, ...],
    precision: str,
) -> dict[str, Any]:
    """Layout, layers, tiles and launch options, of layers with `hidden` outputs."""
    of_rows = constants_of(layout, precision)
    widths = (layout.latent_dim, *hidden)
    # of more than 64 four warps, or wider tiles, would spill on sm_80
    tile, warps = (32, 4) if max(map(block_of, widths)) <= 64 else (16, 8)
    starts = [-1 if place is None else place for place in places]
    column = _padded(layout.latent_dim)
    turn = 1 + triton.cdiv(layout.deviation_offset, of_rows["BLOCK_K"])
    layers = []
    for number in range(len(hidden)):
        inputs, outputs = widths[number : number + 2]
        blocks = block_of(inputs), block_of(outputs)
        own = (min(tile, blocks[1]), column, *starts[1 + 2 * number : 3 + 2 * number])
        layers.append((inputs, outputs, *blocks, *own, turn))
        column += _padded(outputs)
        turn += triton.cdiv(outputs, own[0])
    return of_rows | {
        "LAYERS": tuple(layers[::-1]),
        "OUTPUTS": widths[-1],
        "RELAYS": starts[0],
        "STRIDE": column,
        "BLOCK_P": min(tile, of_rows["BLOCK_T"]),
        "BLOCK_H": block_of(widths[-1]),
        "num_warps": warps,
        "maxnreg": 255,
    }


def _padded(width: int) -> int:
    return -(-width // ALIGNMENT) * ALIGNMENT


def pieces_for(batch: int) -> int:
    """How many pieces `backward_to_rows` writes for a batch of so many rows."""
    return triton.cdiv(triton.cdiv(batch, BLOCK_B), _steps_for(batch))


def _steps_for(batch: int) -> int:
    return triton.cdiv(triton.cdiv(batch, BLOCK_B), MAX_PIECES)


def backward_to_rows(
    grad_hidden: Tensor,
    hidden: Sequence[Tensor],
    z: Tensor,
    mean: Tensor,
    bits: Tensor,
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise_index: Tensor | None,
    weights: Sequence[Tensor],
    kl_weight: Tensor,
    full_size: int,
    clock: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    groups: list[int],
    kept: list[int],
    form: str,
    grads: Tensor,
    places: Sequence[int | None],
) -> list[int]:
    """`reference.fused_step.backward_to_rows`, of float32 tables and float32 or bfloat16 moments.

    Raises:
        ValueError: `grads` has fewer pieces than `pieces_for(batch)`.
    """
    layout = layout_of(relays.shape[1], tuple(groups), tuple(kept), form)
    batch, num_pieces = len(index), pieces_for(len(index))
    if len(grads) < num_pieces:
        raise ValueError(f"grads: expected {num_pieces} pieces or more, got {len(grads)}")
    # two to a processor of a large GPU
    shares = max(1, min(SHARES, PROGRAMS // num_pieces))
    widths = tuple(weight.shape[0] for weight in weights)
    constants = _constants_of(layout, widths, tuple(places), input_precision())
    launch(_backward_to_rows_kernel, (num_pieces, shares))(
        grad_hidden=grad_hidden,
        activations=(*hidden[::-1], z),
        weights=tuple(weights[::-1]),
        saved_mean=mean,
        bits=bits,
        rows=rows,
        exp_avg=moment_table(exp_avg),
        exp_avg_sq=moment_table(exp_avg_sq),
        row_step=row_step,
        relays=relays,
        index=index,
        seed=seed,
        noise_index=index if noise_index is None else noise_index,
        key_index=moment_keys(exp_avg, noise_index),
        kl_weight=kl_weight,
        clock=clock,
        lr=lr,
        work=rows.new_empty((shares, batch, constants["STRIDE"])),
        grads=grads,
        row_error=row_error(rows.device),
        full_size=full_size,
        num_data=rows.shape[0],
        batch=batch,
        num_pieces=len(grad_hidden),
        steps=_steps_for(batch),
        num_shared=grads.shape[1],
        log_beta1=logarithm(beta1),
        log_beta2=logarithm(beta2),
        beta2=beta2,
        rest1=1.0 - beta1,
        rest2=1.0 - beta2,
        eps=eps,
        weight_decay=float(weight_decay),
        **constants,
    )
    return [0 if place is None else num_pieces for place in places]
