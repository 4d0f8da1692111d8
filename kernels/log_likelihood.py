"""Log-likelihood of the observed entries of a batch under a law of `laws`.

Math:
    forward     log p(x_b) = sum_{d observed} entry(x_bd, o_bd, s)
    backward    grad_o = slope factor,   grad_s = sum factor scale_term over observed entries
    `x` and what is observed are constants.

Shapes:
    x [B, D] uint8 (counts as x / 255), float16, bfloat16, float32 or float64; output o [S, B, D]
    float32, float16 or bfloat16; scale [], [1], [D] or [B, D], or None for a law that has none; mask
    None (NaN in x marks what is missing), bool [B, D], or int32 [B, ceil(D / 32)] with entry d in bit
    d % 32 of word d // 32. log_prob [S, B] float32.

Saved:
    The inputs alone: the residual is cheaper to compute again than to read back.

Traffic:
    Bytes of x, output, mask and scale, each read once per direction (in the forward pass x, mask and an
    entry-wise scale once per sample, from the second on out of the cache), and of log_prob or
    grad_output and grad_scale written. A scale that is not entry-wise adds up to `PARTIALS` rows of
    partial sums.

Limits:
    A NaN in x where the mask says observed gives NaN, as does one in output or scale; what stands at
    missing entries is never used. A row with nothing observed has 0. Sums are float32 in an order that
    depends on B, D and S alone. float64 outputs are left to the reference.

Source:
    `rvi_fast.reference.log_likelihood_fwd` and `_bwd`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import checked
from . import laws
from ._common import launch, sum_pieces
from .data import kind_of_mask, kind_of_scale, load_observed, load_scale, load_values, marks_of

# row chunks of the backward pass, each with its own partial sums: enough programs for the largest
# GPUs, and 3 MB of partial sums for a thousand features
PARTIALS = 1024
# elements of a tile: 8 for each of 128 threads
TILE = 1024


# what changes with the batch is not specialised: an epoch's last batch compiles nothing
@triton.jit(do_not_specialize=["batch"])
def _log_likelihood_fwd_kernel(
    x_ptr,
    output_ptr,
    scale_ptr,
    mask_ptr,
    log_prob_ptr,
    batch,
    num_features,
    LAW: tl.constexpr,
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
        offsets = rows * num_features + columns
        values = load_values(x_ptr + offsets, inside)
        observed = load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK)
        scale = load_scale(scale_ptr, offsets, columns, inside, num_features, SCALE)
        outputs = output_ptr + sample_row[:, None] * num_features + columns
        output = tl.load(outputs, mask=observed, other=0).to(tl.float32)
        apart = laws.residual(values, output, scale, LAW, False)
        entry = laws.entry(values, output, tl.log(scale), apart, LAW)
        total += tl.sum(tl.where(observed, entry, 0.0), axis=1)
    tl.store(log_prob_ptr + sample_row, total, mask=row < batch)


@triton.jit(do_not_specialize=["num_samples", "batch", "chunk_blocks"])
def _log_likelihood_bwd_kernel(
    grad_log_prob_ptr,
    x_ptr,
    output_ptr,
    scale_ptr,
    mask_ptr,
    grad_output_ptr,
    grad_scale_ptr,
    num_samples,
    batch,
    num_features,
    chunk_blocks,
    LAW: tl.constexpr,
    NEED_OUTPUT: tl.constexpr,
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
        values = load_values(x_ptr + offsets, inside)
        observed = load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK)
        scale = load_scale(scale_ptr, offsets, columns, inside, num_features, SCALE)
        inverse = 1.0 / scale
        if SCALE == "entry":
            total = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
        sample_rows = rows
        for _ in range(num_samples):
            offsets = sample_rows * num_features + columns
            grad = tl.load(grad_log_prob_ptr + sample_rows, mask=rows < batch, other=0)
            output = tl.load(output_ptr + offsets, mask=observed, other=0).to(tl.float32)
            apart = laws.residual(values, output, inverse, LAW, True)
            factor = laws.factor(grad.to(tl.float32), inverse, LAW, True)
            if NEED_OUTPUT:
                grad_output = tl.where(observed, factor * laws.slope(apart, LAW), 0.0)
                tl.store(grad_output_ptr + offsets, grad_output, mask=inside)
            if NEED_SCALE:
                total += tl.where(observed, factor * laws.scale_term(apart, LAW), 0.0)
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


@checked
def log_likelihood_fwd(
    x: Tensor, output: Tensor, scale: Tensor | None, mask: Tensor | None, law: str
) -> Tensor:
    """`reference.log_likelihood_fwd`."""
    if output.dtype == torch.float64:
        return NotImplemented
    num_samples, batch, num_features = output.shape
    log_prob = torch.empty((num_samples, batch), dtype=torch.float32, device=output.device)
    if log_prob.numel() == 0:
        return log_prob
    scale_kind = kind_of_scale(scale)
    block_b, block_d = _tile(num_features)
    launch(_log_likelihood_fwd_kernel, (triton.cdiv(batch, block_b), num_samples))(
        x_ptr=x.contiguous(),
        output_ptr=output.contiguous(),
        scale_ptr=None if scale is None else scale.contiguous(),
        mask_ptr=marks_of(mask),
        log_prob_ptr=log_prob,
        batch=batch,
        num_features=num_features,
        LAW=law,
        SCALE=scale_kind,
        MASK=kind_of_mask(mask),
        BLOCK_B=block_b,
        BLOCK_D=block_d,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return log_prob


@checked
def log_likelihood_bwd(
    grad_log_prob: Tensor,
    x: Tensor,
    output: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    need_output: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.log_likelihood_bwd`."""
    if output.dtype == torch.float64:
        return NotImplemented
    num_samples, batch, num_features = output.shape
    grad_output = output.new_empty(output.shape if need_output else 0)
    if scale is None:
        need_scale, grad_scale = False, output.new_empty(0)
    else:
        grad_scale = scale.new_empty(scale.shape if need_scale else 0)
    scale_kind = kind_of_scale(scale)
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
        sums = output.new_empty(shape, dtype=torch.float32)
    if num_chunks * column_blocks > 0:
        launch(_log_likelihood_bwd_kernel, (num_chunks, column_blocks))(
            grad_log_prob_ptr=grad_log_prob.contiguous(),
            x_ptr=x.contiguous(),
            output_ptr=output.contiguous(),
            scale_ptr=None if scale is None else scale.contiguous(),
            mask_ptr=marks_of(mask),
            grad_output_ptr=grad_output,
            grad_scale_ptr=sums,
            num_samples=num_samples,
            batch=batch,
            num_features=num_features,
            chunk_blocks=chunk_blocks,
            LAW=law,
            NEED_OUTPUT=need_output,
            NEED_SCALE=need_scale,
            SCALE=scale_kind,
            MASK=kind_of_mask(mask),
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=4,
            # left to itself ptxas takes 72 for a case, and spills (Triton 3.6, sm_90)
            maxnreg=128,
            enable_fp_fusion=True,
        )
    if sums is not grad_scale and grad_scale.numel():
        sum_pieces(sums, grad_scale)
    return grad_output, grad_scale
