"""Log-likelihood of a batch given the output of a linear layer, never written down.

Math:
    forward     o_b = W h_b + bias,   log p(x_b) = sum_{d observed} entry(x_bd, o_bd, s), see `laws`
    backward    E = score factor where observed, else 0:
                grad_h = E W,   grad_W = E^T h,   grad_bias = sum_b E_b,   grad_s = sum factor scale_term
    `x` and what is observed are constants.

Shapes:
    hidden [S, B, H] and weight [D, H], H up to 256, bias [D] or None: float32, float16 or bfloat16;
    x [B, D] uint8 (counts as x / 255), float16, bfloat16, float32 or float64; scale [], [1], [D] or
    [B, D]; mask None (NaN in x marks what is missing), bool [B, D], or int32 [B, ceil(D / 32)] with
    entry d in bit d % 32 of word d // 32. log_prob [S, B] float32.

Saved:
    The inputs alone. The output is computed again by each kernel of the backward pass: four products.

Traffic:
    Two kernels, each a walk as attention's: the first owns rows and walks over the features (log_prob,
    grad_hidden; alone it is the forward pass), the second owns features and walks over the rows
    (grad_weight, grad_bias, grad_scale). Bytes: x, mask and an entry-wise scale once in each, weight and
    hidden once, outputs once. Out of the cache, per row: 4 D H / BLOCK_B of the weight in the first,
    4 H D / BLOCK_D of hidden in the second. FLOP per row: 8 D H backward, 2 D H forward.
    One kernel for all would read x once and take 6 D H, but has to add up grad_hidden over the tiles of
    features (or grad_weight over those of rows) in memory, 12 H D / BLOCK_D bytes a row: 19.6 kB at
    D = 784 and H = 64 with the tiles of 32 by 32 that its three products leave registers for. The two
    take 12.5 kB, x again (3.1 kB) and a third more FLOP, and put nothing as large as x in memory.

Limits:
    A NaN in x where the mask says observed gives NaN; what stands at missing entries is never used. A
    row with nothing observed has 0. Sums are float32 in an order that depends on B, D, H and S alone.
    float64 layers, and H above 256, are left to the reference.

Source:
    `rvi_fast.reference.linear_log_likelihood_fwd` and `_bwd`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import checked
from . import laws
from ._common import input_precision
from .data import kind_of_mask, kind_of_scale, load_tile, marks_of
from .pieces import add_up, pieces_of, share
from .weights import FEATURES_TILES, ROWS_TILES, load_bias, load_matrix, products, tile_of

LARGEST_HIDDEN = 256


@triton.jit(do_not_specialize=["program_tiles", "outputs", "batch"])
def _linear_log_likelihood_rows_kernel(
    grad_log_prob_ptr,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    scale_ptr,
    mask_ptr,
    log_prob_ptr,
    grad_hidden_ptr,
    program_tiles,
    outputs,
    batch,
    num_features,
    LAW: tl.constexpr,
    HIDDEN_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_HIDDEN: tl.constexpr,
    SCALE: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program takes BLOCK_B rows of a sample and walks over `program_tiles` tiles of features.

    It writes a piece of log_prob [S, B] and of grad_hidden [S, B, H]; pieces lie `outputs` = S * B rows
    apart.
    """
    first, piece = tl.program_id(0).to(tl.int64) * BLOCK_B, tl.program_id(1).to(tl.int64)
    row, unit = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_H)[None, :]
    rows, exists = row[:, None], first + row < batch
    position = tl.program_id(2).to(tl.int64) * batch + first
    total = tl.zeros((BLOCK_B,), dtype=tl.float32)
    if NEED_HIDDEN:
        grad = tl.load(grad_log_prob_ptr + position + row, mask=exists, other=0.0)
        grad = grad.to(tl.float32)[:, None]
        grad_hidden = tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32)
    for step in range(program_tiles):
        start = (piece * program_tiles + step) * BLOCK_D
        column = (start + tl.arange(0, BLOCK_D)).to(tl.int32)
        columns, has_column = column[None, :], column < num_features
        inside = exists[:, None] & has_column[None, :]
        values, observed, scale = load_tile(
            x_ptr, mask_ptr, scale_ptr, first, rows, columns, inside, num_features, MASK, SCALE
        )
        output = products(
            hidden_ptr,
            position,
            exists,
            weight_ptr,
            start,
            has_column,
            HIDDEN_DIM,
            PRECISION,
            BLOCK_K,
        )
        output += load_bias(bias_ptr, column, num_features, HAS_BIAS)[None, :]
        scored = tl.where(observed, laws.score(values, output, scale, LAW, False), 0.0)
        entry = laws.entry(values, output, scale, scored, LAW)
        total += tl.sum(tl.where(observed, entry, 0.0), axis=1)
        if NEED_HIDDEN:
            grad_output = tl.where(observed, laws.factor(scored * grad, scale, LAW, False), 0.0)
            weight = load_matrix(weight_ptr, start, has_column, 0, HIDDEN_DIM, BLOCK_H)
            grad_hidden += tl.dot(grad_output, weight, input_precision=PRECISION)
    position += piece * outputs
    tl.store(log_prob_ptr + position + row, total, mask=exists)
    if NEED_HIDDEN:
        to = grad_hidden_ptr + position * HIDDEN_DIM + (rows * HIDDEN_DIM + unit)
        tl.store(to, grad_hidden, mask=exists[:, None] & (unit < HIDDEN_DIM))


@triton.jit(do_not_specialize=["program_blocks", "num_samples", "batch"])
def _linear_log_likelihood_features_kernel(
    grad_log_prob_ptr,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    scale_ptr,
    mask_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    grad_scale_ptr,
    program_blocks,
    num_samples,
    batch,
    num_features,
    LAW: tl.constexpr,
    HIDDEN_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_LINEAR: tl.constexpr,
    NEED_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program takes BLOCK_D features and walks over `program_blocks` blocks of rows, all samples.

    It writes a piece of grad_weight [D, H], grad_bias [D] and grad_scale, which is [D], one number for
    each program, or the result itself where the scale is entry-wise. Its tiles have features along
    the first axis.
    """
    piece = tl.program_id(1).to(tl.int64)
    row, rows = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_B)[None, :]
    start = tl.program_id(0).to(tl.int64) * BLOCK_D
    feature, unit = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_H)[None, :]
    # features fit into 32 bits, which are half the registers
    column = (start + feature).to(tl.int32)
    columns, has_column = column[:, None], column < num_features
    bias = load_bias(bias_ptr, column, num_features, HAS_BIAS)[:, None]

    grad_weight = tl.zeros((BLOCK_D, BLOCK_H), dtype=tl.float32)
    grad_bias = tl.zeros((BLOCK_D,), dtype=tl.float32)
    grad_scale = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for block in range(program_blocks):
        first = (piece * program_blocks + block) * BLOCK_B
        exists = first + row < batch
        inside = has_column[:, None] & exists[None, :]
        values, observed, scale = load_tile(
            x_ptr, mask_ptr, scale_ptr, first, rows, columns, inside, num_features, MASK, SCALE
        )
        entry_scale = tl.zeros((BLOCK_D, BLOCK_B), dtype=tl.float32)
        position = first
        for _ in range(num_samples):
            grad = tl.load(grad_log_prob_ptr + position + row, mask=exists, other=0.0)
            output = bias + products(
                weight_ptr,
                start,
                has_column,
                hidden_ptr,
                position,
                exists,
                HIDDEN_DIM,
                PRECISION,
                BLOCK_K,
            )
            scored = tl.where(observed, laws.score(values, output, scale, LAW, False), 0.0)
            factor = laws.factor(grad.to(tl.float32)[None, :], scale, LAW, False)
            factor = tl.where(observed, factor, 0.0)
            if NEED_LINEAR:
                grad_output = scored * factor
                hidden = load_matrix(hidden_ptr, position, exists, 0, HIDDEN_DIM, BLOCK_H)
                grad_weight += tl.dot(grad_output, hidden, input_precision=PRECISION)
                grad_bias += tl.sum(grad_output, axis=1)
            if NEED_SCALE:
                terms = laws.scale_term(scored, LAW) * factor
                if SCALE == "entry":
                    entry_scale += terms
                else:
                    grad_scale += tl.sum(terms, axis=1)
            position += batch
        if NEED_SCALE and SCALE == "entry":
            to = grad_scale_ptr + first * num_features + rows * num_features + columns
            tl.store(to, entry_scale, mask=inside)

    if NEED_LINEAR:
        to = grad_weight_ptr + (piece * num_features + start) * HIDDEN_DIM
        to += feature[:, None] * HIDDEN_DIM + unit
        tl.store(to, grad_weight, mask=has_column[:, None] & (unit < HIDDEN_DIM))
        if HAS_BIAS:
            tl.store(grad_bias_ptr + piece * num_features + column, grad_bias, mask=has_column)
    if NEED_SCALE and SCALE == "feature":
        tl.store(grad_scale_ptr + piece * num_features + column, grad_scale, mask=has_column)
    if NEED_SCALE and SCALE == "scalar":
        number = piece * tl.num_programs(0) + tl.program_id(0)
        tl.store(grad_scale_ptr + number, tl.sum(grad_scale, axis=0))


def _prepared(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Contiguous inputs by name and the constants of both kernels; None for what they leave out."""
    if hidden.dtype == torch.float64 or weight.dtype == torch.float64:
        return None
    if hidden.shape[-1] > LARGEST_HIDDEN or x.shape[1] >= 2**25:  # rows within a tile fit 32 bits
        return None
    tensors = {
        "hidden_ptr": hidden.contiguous(),
        "weight_ptr": weight.contiguous(),
        "bias_ptr": weight if bias is None else bias.contiguous(),
        "x_ptr": x.contiguous(),
        # what is not read is any tensor: helpers of Triton 3.6 cannot return an argument that is None
        "scale_ptr": weight if scale is None else scale.contiguous(),
        "mask_ptr": x if mask is None else marks_of(mask),
    }
    constants = {
        "LAW": law,
        "HIDDEN_DIM": hidden.shape[-1],
        "HAS_BIAS": bias is not None,
        "SCALE": kind_of_scale(scale),
        "MASK": kind_of_mask(mask),
    }
    return tensors, constants


@checked
def linear_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> Tensor:
    """`reference.linear_log_likelihood_fwd`."""
    prepared = _prepared(hidden, weight, bias, x, scale, mask, law)
    if prepared is None:
        return NotImplemented
    log_prob, _ = _over_features(None, *prepared)
    return log_prob


@checked
def linear_log_likelihood_bwd(
    grad_log_prob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    need_hidden: bool,
    need_linear: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.linear_log_likelihood_bwd`."""
    prepared = _prepared(hidden, weight, bias, x, scale, mask, law)
    if prepared is None:
        return NotImplemented
    grad_log_prob = grad_log_prob.contiguous()
    log_prob, grad_hidden = _over_features(grad_log_prob if need_hidden else None, *prepared)
    grad_weight = grad_bias = grad_scale = log_prob.new_empty(0)
    scale_shape = scale.shape if need_scale and scale is not None else None
    if need_linear or scale_shape is not None:
        grad_weight, grad_bias, grad_scale = _over_rows(
            grad_log_prob, *prepared, scale_shape, need_linear
        )
    return (
        log_prob,
        grad_hidden.to(hidden.dtype),
        grad_weight.to(weight.dtype),
        grad_bias.to(weight.dtype if bias is None else bias.dtype),
        grad_scale if scale is None else grad_scale.to(scale.dtype),
    )


def _over_features(
    grad_log_prob: Tensor | None, tensors: dict[str, Any], constants: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """log_prob [S, B] and, with grad_log_prob, grad_hidden [S, B, H]; float32."""
    hidden, x = tensors["hidden_ptr"], tensors["x_ptr"]
    num_samples, batch, hidden_dim = hidden.shape
    need_hidden = grad_log_prob is not None
    log_prob = hidden.new_zeros((num_samples, batch), dtype=torch.float32)
    grad_hidden = hidden.new_zeros(hidden.shape if need_hidden else 0, dtype=torch.float32)
    if log_prob.numel() == 0 or x.numel() == 0:
        return log_prob, grad_hidden
    tile = tile_of(ROWS_TILES, hidden_dim, constants["SCALE"], constants["MASK"])
    blocks, tiles = triton.cdiv(batch, tile["BLOCK_B"]), triton.cdiv(x.shape[1], tile["BLOCK_D"])
    program_tiles = share(tiles, blocks * num_samples)
    pieces = triton.cdiv(tiles, program_tiles)
    parts = [pieces_of(total, pieces) for total in (log_prob, grad_hidden)]
    _linear_log_likelihood_rows_kernel[(blocks, pieces, num_samples)](
        grad_log_prob_ptr=grad_log_prob if need_hidden else log_prob,
        **tensors,
        log_prob_ptr=parts[0],
        grad_hidden_ptr=parts[1],
        program_tiles=program_tiles,
        outputs=num_samples * batch,
        batch=batch,
        num_features=x.shape[1],
        **constants,
        NEED_HIDDEN=need_hidden,
        PRECISION=input_precision(),
        **tile,
        enable_fp_fusion=True,
    )
    add_up(parts[0], log_prob)
    add_up(parts[1], grad_hidden)
    return log_prob, grad_hidden


def _over_rows(
    grad_log_prob: Tensor,
    tensors: dict[str, Any],
    constants: dict[str, Any],
    scale_shape: torch.Size | None,
    need_linear: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_weight, grad_bias and grad_scale in float32; one not needed has 0 elements."""
    hidden, weight = tensors["hidden_ptr"], tensors["weight_ptr"]
    num_samples, batch, hidden_dim = hidden.shape
    num_features = len(weight)
    shapes = (
        weight.shape if need_linear else (0,),
        (num_features,) if need_linear and constants["HAS_BIAS"] else (0,),
        (0,) if scale_shape is None else scale_shape,
    )
    totals = [hidden.new_zeros(shape, dtype=torch.float32) for shape in shapes]
    if hidden.numel() == 0 or num_features == 0:
        return totals[0], totals[1], totals[2]
    tile = tile_of(FEATURES_TILES, hidden_dim, constants["SCALE"], constants["MASK"])
    blocks, tiles = triton.cdiv(batch, tile["BLOCK_B"]), triton.cdiv(num_features, tile["BLOCK_D"])
    program_blocks = share(blocks, tiles)
    pieces = triton.cdiv(blocks, program_blocks)
    parts = [pieces_of(total, pieces) for total in totals]
    if constants["SCALE"] == "scalar":
        parts[2] = pieces_of(totals[2], pieces * tiles)
    elif constants["SCALE"] == "entry":
        parts[2] = totals[2]
    _linear_log_likelihood_features_kernel[(tiles, pieces)](
        grad_log_prob_ptr=grad_log_prob,
        **tensors,
        grad_weight_ptr=parts[0],
        grad_bias_ptr=parts[1],
        grad_scale_ptr=parts[2],
        program_blocks=program_blocks,
        num_samples=num_samples,
        batch=batch,
        num_features=num_features,
        **constants,
        NEED_LINEAR=need_linear,
        NEED_SCALE=scale_shape is not None,
        PRECISION=input_precision(),
        **tile,
        enable_fp_fusion=True,
    )
    for part, total in zip(parts, totals, strict=True):
        add_up(part, total)
    return totals[0], totals[1], totals[2]
