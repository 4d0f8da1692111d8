"""Log-likelihood of the observed entries of a batch under independent Gaussians.

Math:
    forward     log p(x_b) = sum_{d observed} (-1/2 u_bd^2 - log s - 1/2 log 2 pi),   u = (x - mean) / s
    backward    grad_mean = g u / s,   grad_scale = sum g (u^2 - 1) / s over observed entries
    `x` and what is observed are constants.

Shapes:
    x [B, D] uint8 (counts as x / 255), float16, bfloat16, float32 or float64; mean [S, B, D] float32,
    float16 or bfloat16; scale [], [1], [D] or [B, D]; mask None (NaN in x marks what is missing), bool
    [B, D], or int32 [B, ceil(D / 32)] with entry d in bit d % 32 of word d // 32. log_prob [S, B]
    float32.

Saved:
    The inputs alone: u is cheaper to compute again than to read back.

Traffic:
    Bytes of x, mean, mask and scale, each read once per direction (in the forward pass x, mask and an
    entry-wise scale once per sample, from the second on out of the cache), and of log_prob or grad_mean
    and grad_scale written. A scale that is not entry-wise adds up to `PARTIALS` rows of partial sums.

Limits:
    A NaN in x where the mask says observed gives NaN, as does one in mean or scale; what stands at
    missing entries is never used. A row with nothing observed has 0. Sums are float32 in an order that
    depends on B, D and S alone. float64 means are left to the reference.

Source:
    `rvi_fast.reference.gaussian_log_likelihood_fwd` and `_bwd`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import checked
from ._common import sum_pieces

# row chunks of the backward pass, each with its own partial sums: enough programs for the largest
# GPUs, and 3 MB of partial sums for a thousand features
PARTIALS = 1024
# elements of a tile: 8 for each of 128 threads
TILE = 1024
HALF_LOG_TWO_PI = tl.constexpr(0.9189385332046727)
PIXEL_SCALE = tl.constexpr(1.0 / 255.0)


@triton.jit
def _load_values(x_ptr, offsets, inside):
    values = tl.load(x_ptr + offsets, mask=inside, other=0)
    if x_ptr.dtype.element_ty == tl.uint8:
        return values.to(tl.float32) * PIXEL_SCALE
    else:
        return values.to(tl.float32)


@triton.jit
def _load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK: tl.constexpr):
    if MASK == "nan":
        return inside & (values == values)
    elif MASK == "bool":
        return tl.load(mask_ptr + rows * num_features + columns, mask=inside, other=0) != 0
    else:
        words = mask_ptr + rows * ((num_features + 31) // 32) + columns // 32
        return ((tl.load(words, mask=inside, other=0) >> (columns % 32)) & 1) != 0


@triton.jit
def _load_scale(scale_ptr, rows, columns, inside, num_features, SCALE: tl.constexpr):
    """float32, of a shape that broadcasts to the tile."""
    if SCALE == "scalar":
        return tl.load(scale_ptr).to(tl.float32)
    elif SCALE == "feature":
        return tl.load(scale_ptr + columns, mask=columns < num_features, other=1.0).to(tl.float32)
    else:
        offsets = rows * num_features + columns
        return tl.load(scale_ptr + offsets, mask=inside, other=1.0).to(tl.float32)


# what changes with the batch is not specialised: an epoch's last batch compiles nothing
@triton.jit(do_not_specialize=["batch"])
def _gaussian_log_likelihood_fwd_kernel(
    x_ptr,
    mean_ptr,
    scale_ptr,
    mask_ptr,
    log_prob_ptr,
    batch,
    num_features,
    SCALE: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    sample_row = tl.program_id(1).to(tl.int64) * batch + row
    rows = row[:, None]
    total = tl.zeros((BLOCK_B,), dtype=tl.float32)
    for start in range(0, num_features, BLOCK_D):
        columns = (start + tl.arange(0, BLOCK_D))[None, :]
        inside = (rows < batch) & (columns < num_features)
        values = _load_values(x_ptr, rows * num_features + columns, inside)
        observed = _load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK)
        scale = _load_scale(scale_ptr, rows, columns, inside, num_features, SCALE)
        means = mean_ptr + sample_row[:, None] * num_features + columns
        mean = tl.load(means, mask=observed, other=0).to(tl.float32)
        scaled = (values - mean) / scale
        entry = -0.5 * scaled * scaled - (tl.log(scale) + HALF_LOG_TWO_PI)
        total += tl.sum(tl.where(observed, entry, 0.0), axis=1)
    tl.store(log_prob_ptr + sample_row, total, mask=row < batch)


@triton.jit(do_not_specialize=["num_samples", "batch", "chunk_blocks"])
def _gaussian_log_likelihood_bwd_kernel(
    grad_log_prob_ptr,
    x_ptr,
    mean_ptr,
    scale_ptr,
    mask_ptr,
    grad_mean_ptr,
    grad_scale_ptr,
    num_samples,
    batch,
    num_features,
    chunk_blocks,
    NEED_MEAN: tl.constexpr,
    NEED_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program takes `chunk_blocks` tiles of BLOCK_B rows, one below the other, and all samples.

    `grad_scale_ptr` holds the result where the scale is entry-wise, else partial sums: [chunks, D], or
    one for each program.
    """
    chunk, column_block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = (column_block * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    total = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
    for block in range(chunk_blocks):
        rows = ((chunk * chunk_blocks + block) * BLOCK_B + tl.arange(0, BLOCK_B))[:, None]
        inside = (rows < batch) & (columns < num_features)
        offsets = rows * num_features + columns
        values = _load_values(x_ptr, offsets, inside)
        observed = _load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK)
        scale = _load_scale(scale_ptr, rows, columns, inside, num_features, SCALE)
        inverse = 1.0 / scale
        if SCALE == "entry":
            total = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
        sample_rows = rows
        for _ in range(num_samples):
            offsets = sample_rows * num_features + columns
            grad = tl.load(grad_log_prob_ptr + sample_rows, mask=rows < batch, other=0)
            mean = tl.load(mean_ptr + offsets, mask=observed, other=0).to(tl.float32)
            scaled = (values - mean) * inverse
            factor = grad.to(tl.float32) * inverse
            if NEED_MEAN:
                grad_mean = tl.where(observed, factor * scaled, 0.0)
                tl.store(grad_mean_ptr + offsets, grad_mean, mask=inside)
            if NEED_SCALE:
                total += tl.where(observed, factor * (scaled * scaled - 1.0), 0.0)
            sample_rows += batch
        if NEED_SCALE and SCALE == "entry":
            tl.store(grad_scale_ptr + rows * num_features + columns, total, mask=inside)
    if NEED_SCALE and SCALE == "feature":
        partial = tl.sum(total, axis=0)[None, :]
        partials = grad_scale_ptr + chunk * num_features + columns
        tl.store(partials, partial, mask=columns < num_features)
    if NEED_SCALE and SCALE == "scalar":
        program = chunk * tl.num_programs(1) + column_block
        tl.store(grad_scale_ptr + program, tl.sum(tl.sum(total, axis=1), axis=0))


def _tile(num_features: int) -> tuple[int, int]:
    block_d = min(TILE, max(16, triton.next_power_of_2(num_features)))
    return TILE // block_d, block_d


def _kinds(scale: Tensor, mask: Tensor | None) -> tuple[Tensor | None, str, str]:
    """The mask as the kernels read it, and the kinds of scale and mask."""
    kind = (
        "scalar"
        if scale.dim() == 0 or scale.shape == (1,)
        else ("feature", "entry")[scale.dim() - 1]
    )
    if mask is None:
        return None, kind, "nan"
    mask = mask.contiguous()
    if mask.dtype == torch.bool:
        return mask.view(torch.uint8), kind, "bool"
    return mask, kind, "bits"


@checked
def gaussian_log_likelihood_fwd(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> Tensor:
    """`reference.gaussian_log_likelihood_fwd`."""
    if mean.dtype == torch.float64:
        return NotImplemented
    num_samples, batch, num_features = mean.shape
    log_prob = torch.empty((num_samples, batch), dtype=torch.float32, device=mean.device)
    if log_prob.numel() == 0:
        return log_prob
    mask, scale_kind, mask_kind = _kinds(scale, mask)
    block_b, block_d = _tile(num_features)
    _gaussian_log_likelihood_fwd_kernel[(triton.cdiv(batch, block_b), num_samples)](
        x_ptr=x.contiguous(),
        mean_ptr=mean.contiguous(),
        scale_ptr=scale.contiguous(),
        mask_ptr=mask,
        log_prob_ptr=log_prob,
        batch=batch,
        num_features=num_features,
        SCALE=scale_kind,
        MASK=mask_kind,
        BLOCK_B=block_b,
        BLOCK_D=block_d,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return log_prob


@checked
def gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_mean: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.gaussian_log_likelihood_bwd`."""
    if mean.dtype == torch.float64:
        return NotImplemented
    num_samples, batch, num_features = mean.shape
    grad_mean = torch.empty(mean.shape if need_mean else 0, dtype=mean.dtype, device=mean.device)
    grad_scale = torch.empty(
        scale.shape if need_scale else 0, dtype=scale.dtype, device=scale.device
    )
    mask, scale_kind, mask_kind = _kinds(scale, mask)
    block_b, block_d = _tile(num_features)
    num_blocks, column_blocks = triton.cdiv(batch, block_b), triton.cdiv(num_features, block_d)
    chunk_blocks = max(1, triton.cdiv(num_blocks, PARTIALS))
    num_chunks = triton.cdiv(num_blocks, chunk_blocks)
    sums = grad_scale
    if need_scale and scale_kind != "entry":
        shape = (
            (num_chunks, num_features)
            if scale_kind == "feature"
            else (num_chunks * column_blocks, 1)
        )
        sums = torch.empty(shape, dtype=torch.float32, device=scale.device)
    if num_chunks * column_blocks > 0:
        _gaussian_log_likelihood_bwd_kernel[(num_chunks, column_blocks)](
            grad_log_prob_ptr=grad_log_prob.contiguous(),
            x_ptr=x.contiguous(),
            mean_ptr=mean.contiguous(),
            scale_ptr=scale.contiguous(),
            mask_ptr=mask,
            grad_mean_ptr=grad_mean,
            grad_scale_ptr=sums,
            num_samples=num_samples,
            batch=batch,
            num_features=num_features,
            chunk_blocks=chunk_blocks,
            NEED_MEAN=need_mean,
            NEED_SCALE=need_scale,
            SCALE=scale_kind,
            MASK=mask_kind,
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=4,
            # left to itself ptxas takes 72 for a case, and spills (Triton 3.6, sm_90)
            maxnreg=128,
            enable_fp_fusion=True,
        )
    if sums is not grad_scale and grad_scale.numel():
        sum_pieces(sums, grad_scale)
    return grad_mean, grad_scale
