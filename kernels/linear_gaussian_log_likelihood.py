"""Log-likelihood of a batch under Gaussians around the output of a linear layer, never written down.

Math:
    forward     mean_b = W h_b + bias,   u = (x - mean) / s,
                log p(x_b) = sum_{d observed} (-1/2 u_bd^2 - log s - 1/2 log 2 pi)
    backward    E = g u / s where observed, else 0:
                grad_h = E W,   grad_W = E^T h,   grad_bias = sum_b E_b,   grad_s = sum g (u^2 - 1) / s
    `x` and what is observed are constants.

Shapes:
    hidden [S, B, H] and weight [D, H], H up to 256, bias [D] or None: float32, float16 or bfloat16;
    x [B, D] uint8 (counts as x / 255), float16, bfloat16, float32 or float64; scale [], [1], [D] or
    [B, D]; mask None (NaN in x marks what is missing), bool [B, D], or int32 [B, ceil(D / 32)] with
    entry d in bit d % 32 of word d // 32. log_prob [S, B] float32.

Saved:
    The inputs alone. The mean is computed again by each kernel of the backward pass: four products.

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
    `rvi_fast.reference.linear_gaussian_log_likelihood_fwd` and `_bwd`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import checked
from ._common import block_of, input_precision, sum_pieces

LARGEST_HIDDEN = 256
# programs of a kernel where the batch is small: two to a processor of a large GPU, and no more, which
# would wait for a second turn. Sums have as many pieces as that takes.
PROGRAMS = 256
HALF_LOG_TWO_PI = tl.constexpr(0.9189385332046727)
PIXEL_SCALE = tl.constexpr(1.0 / 255.0)


# `first` is the first row of a tile as int64, `rows` count from there: their offsets within the tile
# fit int32, which takes half the registers


@triton.jit
def _load_values(x_ptr, first, rows, columns, inside, num_features):
    x_ptr += first * num_features
    values = tl.load(x_ptr + rows * num_features + columns, mask=inside, other=0)
    if x_ptr.dtype.element_ty == tl.uint8:
        return values.to(tl.float32) * PIXEL_SCALE
    else:
        return values.to(tl.float32)


@triton.jit
def _load_observed(
    mask_ptr, values, first, rows, columns, inside, num_features, MASK: tl.constexpr
):
    if MASK == "nan":
        return inside & (values == values)
    elif MASK == "bool":
        mask_ptr += first * num_features
        return tl.load(mask_ptr + rows * num_features + columns, mask=inside, other=0) != 0
    else:
        num_words = (num_features + 31) // 32
        words = mask_ptr + first * num_words + rows * num_words + columns // 32
        bit = (columns % 32).to(tl.int32)
        return ((tl.load(words, mask=inside, other=0) >> bit) & 1) != 0


@triton.jit
def _load_scale(scale_ptr, first, rows, columns, inside, num_features, SCALE: tl.constexpr):
    """float32, of a shape that broadcasts to the tile."""
    if SCALE == "scalar":
        return tl.load(scale_ptr).to(tl.float32)
    elif SCALE == "feature":
        return tl.load(scale_ptr + columns, mask=columns < num_features, other=1.0).to(tl.float32)
    else:
        scale_ptr += first * num_features
        return tl.load(scale_ptr + rows * num_features + columns, mask=inside, other=1.0).to(
            tl.float32
        )


@triton.jit
def _load_matrix(ptr, first, exists, start, HIDDEN_DIM: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns from `start` of as many rows as `exists` has entries, [n, BLOCK_K]; 0 outside."""
    row, unit = tl.arange(0, exists.shape[0])[:, None], start + tl.arange(0, BLOCK_K)[None, :]
    inside = exists[:, None] & (unit < HIDDEN_DIM)
    pointers = ptr + first * HIDDEN_DIM + (row * HIDDEN_DIM + unit)
    return tl.load(pointers, mask=inside, other=0).to(tl.float32)


@triton.jit
def _products(
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
        left = _load_matrix(left_ptr, left_first, left_exists, start, HIDDEN_DIM, BLOCK_K)
        right = _load_matrix(right_ptr, right_first, right_exists, start, HIDDEN_DIM, BLOCK_K)
        total += tl.dot(left, tl.trans(right), input_precision=PRECISION)
    return total


@triton.jit
def _load_bias(bias_ptr, column, num_features, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        return tl.load(bias_ptr + column, mask=column < num_features, other=0).to(tl.float32)
    else:
        return tl.zeros(column.shape, tl.float32)


@triton.jit(do_not_specialize=["program_tiles", "outputs", "batch"])
def _linear_gaussian_log_likelihood_rows_kernel(
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
        values = _load_values(x_ptr, first, rows, columns, inside, num_features)
        observed = _load_observed(
            mask_ptr, values, first, rows, columns, inside, num_features, MASK
        )
        scale = _load_scale(scale_ptr, first, rows, columns, inside, num_features, SCALE)
        mean = _products(
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
        mean += _load_bias(bias_ptr, column, num_features, HAS_BIAS)[None, :]
        scaled = tl.where(observed, (values - mean) / scale, 0.0)
        entry = -0.5 * scaled * scaled - (tl.log(scale) + HALF_LOG_TWO_PI)
        total += tl.sum(tl.where(observed, entry, 0.0), axis=1)
        if NEED_HIDDEN:
            grad_mean = tl.where(observed, scaled * grad / scale, 0.0)
            weight = _load_matrix(weight_ptr, start, has_column, 0, HIDDEN_DIM, BLOCK_H)
            grad_hidden += tl.dot(grad_mean, weight, input_precision=PRECISION)
    position += piece * outputs
    tl.store(log_prob_ptr + position + row, total, mask=exists)
    if NEED_HIDDEN:
        to = grad_hidden_ptr + position * HIDDEN_DIM + (rows * HIDDEN_DIM + unit)
        tl.store(to, grad_hidden, mask=exists[:, None] & (unit < HIDDEN_DIM))


@triton.jit(do_not_specialize=["program_blocks", "num_samples", "batch"])
def _linear_gaussian_log_likelihood_features_kernel(
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
    bias = _load_bias(bias_ptr, column, num_features, HAS_BIAS)[:, None]

    grad_weight = tl.zeros((BLOCK_D, BLOCK_H), dtype=tl.float32)
    grad_bias = tl.zeros((BLOCK_D,), dtype=tl.float32)
    grad_scale = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for block in range(program_blocks):
        first = (piece * program_blocks + block) * BLOCK_B
        exists = first + row < batch
        inside = has_column[:, None] & exists[None, :]
        values = _load_values(x_ptr, first, rows, columns, inside, num_features)
        observed = _load_observed(
            mask_ptr, values, first, rows, columns, inside, num_features, MASK
        )
        scale = _load_scale(scale_ptr, first, rows, columns, inside, num_features, SCALE)
        entry_scale = tl.zeros((BLOCK_D, BLOCK_B), dtype=tl.float32)
        position = first
        for _ in range(num_samples):
            grad = tl.load(grad_log_prob_ptr + position + row, mask=exists, other=0.0)
            mean = bias + _products(
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
            scaled = tl.where(observed, (values - mean) / scale, 0.0)
            factor = tl.where(observed, grad.to(tl.float32)[None, :] / scale, 0.0)
            if NEED_LINEAR:
                grad_mean = scaled * factor
                hidden = _load_matrix(hidden_ptr, position, exists, 0, HIDDEN_DIM, BLOCK_H)
                grad_weight += tl.dot(grad_mean, hidden, input_precision=PRECISION)
                grad_bias += tl.sum(grad_mean, axis=1)
            if NEED_SCALE:
                terms = (scaled * scaled - 1.0) * factor
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


# BLOCK_H -> BLOCK_B, BLOCK_D and warps that compile without spills, of the two kernels
_ROWS_TILES = {
    16: (32, 32, 4),
    32: (32, 32, 4),
    64: (32, 32, 4),
    128: (16, 32, 8),
    256: (16, 32, 8),
}
_FEATURES_TILES = {
    16: (32, 32, 4),
    32: (32, 32, 4),
    64: (32, 32, 4),
    128: (32, 16, 4),
    256: (32, 16, 8),
}


def _tile(tiles: dict[int, tuple[int, int, int]], hidden_dim: int, scale: Any) -> dict[str, int]:
    block = block_of(hidden_dim)
    rows, features, warps = tiles[block]
    chunk = min(block, 32)
    if tiles is _FEATURES_TILES:
        if scale != "scalar":  # more numbers per row and feature to keep
            rows = 16
        if scale != "scalar" or input_precision() == "bf16x3":  # each operand is kept in two parts
            chunk = min(block, 16)
    blocks = {"BLOCK_B": rows, "BLOCK_D": features, "BLOCK_H": block, "BLOCK_K": chunk}
    # without a limit of its own the assembler may spill a few registers for one program more
    return blocks | {"num_warps": warps, "maxnreg": 255}


def _prepared(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
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
        "scale_ptr": scale.contiguous(),
        "mask_ptr": x if mask is None else mask.contiguous(),
    }
    if mask is not None and mask.dtype == torch.bool:
        tensors["mask_ptr"] = tensors["mask_ptr"].view(torch.uint8)
    per_one = scale.dim() == 0 or scale.shape == (1,)
    constants = {
        "HIDDEN_DIM": hidden.shape[-1],
        "HAS_BIAS": bias is not None,
        "SCALE": "scalar" if per_one else ("feature", "entry")[scale.dim() - 1],
        "MASK": "nan" if mask is None else "bool" if mask.dtype == torch.bool else "bits",
    }
    return tensors, constants


@checked
def linear_gaussian_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """`reference.linear_gaussian_log_likelihood_fwd`."""
    prepared = _prepared(hidden, weight, bias, x, scale, mask)
    if prepared is None:
        return NotImplemented
    log_prob, _ = _over_features(None, *prepared)
    return log_prob


@checked
def linear_gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_hidden: bool,
    need_linear: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.linear_gaussian_log_likelihood_bwd`."""
    prepared = _prepared(hidden, weight, bias, x, scale, mask)
    if prepared is None:
        return NotImplemented
    grad_log_prob = grad_log_prob.contiguous()
    log_prob, grad_hidden = _over_features(grad_log_prob if need_hidden else None, *prepared)
    grad_weight = grad_bias = grad_scale = log_prob.new_empty(0)
    if need_linear or need_scale:
        grad_weight, grad_bias, grad_scale = _over_rows(
            grad_log_prob, *prepared, scale.shape, need_linear, need_scale
        )
    return (
        log_prob,
        grad_hidden.to(hidden.dtype),
        grad_weight.to(weight.dtype),
        grad_bias.to(weight.dtype if bias is None else bias.dtype),
        grad_scale.to(scale.dtype),
    )


def _over_features(
    grad_log_prob: Tensor | None, tensors: dict[str, Tensor], constants: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """log_prob [S, B] and, with grad_log_prob, grad_hidden [S, B, H]; float32."""
    hidden, x = tensors["hidden_ptr"], tensors["x_ptr"]
    num_samples, batch, hidden_dim = hidden.shape
    need_hidden = grad_log_prob is not None
    log_prob = hidden.new_zeros((num_samples, batch), dtype=torch.float32)
    grad_hidden = hidden.new_zeros(hidden.shape if need_hidden else 0, dtype=torch.float32)
    if log_prob.numel() == 0 or x.numel() == 0:
        return log_prob, grad_hidden
    tile = _tile(_ROWS_TILES, hidden_dim, constants["SCALE"])
    blocks, tiles = triton.cdiv(batch, tile["BLOCK_B"]), triton.cdiv(x.shape[1], tile["BLOCK_D"])
    program_tiles = _share(tiles, blocks * num_samples)
    pieces = triton.cdiv(tiles, program_tiles)
    parts = [_pieces(total, pieces) for total in (log_prob, grad_hidden)]
    _linear_gaussian_log_likelihood_rows_kernel[(blocks, pieces, num_samples)](
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
    _add_up(parts[0], log_prob)
    _add_up(parts[1], grad_hidden)
    return log_prob, grad_hidden


def _over_rows(
    grad_log_prob: Tensor,
    tensors: dict[str, Tensor],
    constants: dict[str, Any],
    scale_shape: torch.Size,
    need_linear: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_weight, grad_bias and grad_scale in float32; one not needed has 0 elements."""
    hidden, weight = tensors["hidden_ptr"], tensors["weight_ptr"]
    num_samples, batch, hidden_dim = hidden.shape
    num_features = len(weight)
    shapes = (
        weight.shape if need_linear else (0,),
        (num_features,) if need_linear and constants["HAS_BIAS"] else (0,),
        scale_shape if need_scale else (0,),
    )
    totals = [hidden.new_zeros(shape, dtype=torch.float32) for shape in shapes]
    if hidden.numel() == 0 or num_features == 0:
        return totals[0], totals[1], totals[2]
    tile = _tile(_FEATURES_TILES, hidden_dim, constants["SCALE"])
    blocks, tiles = triton.cdiv(batch, tile["BLOCK_B"]), triton.cdiv(num_features, tile["BLOCK_D"])
    program_blocks = _share(blocks, tiles)
    pieces = triton.cdiv(blocks, program_blocks)
    parts = [_pieces(total, pieces) for total in totals]
    if constants["SCALE"] == "scalar":
        parts[2] = _pieces(totals[2], pieces * tiles)
    elif constants["SCALE"] == "entry":
        parts[2] = totals[2]
    _linear_gaussian_log_likelihood_features_kernel[(tiles, pieces)](
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
        NEED_SCALE=need_scale,
        PRECISION=input_precision(),
        **tile,
        enable_fp_fusion=True,
    )
    for part, total in zip(parts, totals, strict=True):
        _add_up(part, total)
    return totals[0], totals[1], totals[2]


def _share(steps: int, walks: int) -> int:
    """Steps of a walk that a program takes: then `PROGRAMS` do for all walks, or as many as walks."""
    return triton.cdiv(steps, max(1, PROGRAMS // walks))


def _pieces(total: Tensor, pieces: int) -> Tensor:
    """Room for `pieces` parts of a sum; the sum itself where there is but one."""
    return total if pieces == 1 else total.new_empty((pieces, *total.shape))


def _add_up(pieces: Tensor, total: Tensor) -> None:
    if pieces is not total and total.numel():
        sum_pieces(pieces, total)
