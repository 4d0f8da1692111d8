"""Log-likelihoods of the observed entries of a batch, given the outputs of a decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from .._op_checks import checked
from ._common import compute_dtype
from .bits import unpack_bits
from .laws import LAWS

# a uint8 entry is a pixel
PIXEL_SCALE = 1.0 / 255.0


def gaussian_log_likelihood(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Gaussian log-likelihood of the observed entries of each row, in nats.

        log p(x_b) = sum_{d observed} (-1/2 ((x_bd - mean_bd) / s)^2 - log s - 1/2 log 2 pi)

    Args and returns: `rvi_fast.gaussian_log_likelihood`.
    """
    return log_likelihood(x, mean, scale, mask, "gaussian")


def log_likelihood(
    x: Tensor, output: Tensor, scale: Tensor | None, mask: Tensor | None, law: str
) -> Tensor:
    """Log-likelihood of the observed entries of each row under one of `LAWS`, in nats.

    Args:
        x, scale, mask: as in `rvi_fast.gaussian_log_likelihood`; no scale for a law that has none.
        output: of the decoder, [B, D] or [S, B, D]: means, logits, ...
        law: its name.

    Returns:
        [B] or [S, B], at least float32.
    """
    dtype = compute_dtype(output)
    values, observed = _values(x, mask, dtype)
    scale = None if scale is None else scale.to(dtype)
    entries = LAWS[law].entries(values, output.to(dtype), scale, observed)
    return torch.where(observed, entries, 0.0).sum(-1)


def _values(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = x.to(dtype) * PIXEL_SCALE if x.dtype == torch.uint8 else x.to(dtype)
    if mask is None:
        return values, ~torch.isnan(values)
    return values, mask if mask.dtype == torch.bool else unpack_bits(mask, x.shape[-1])


@checked
def log_likelihood_fwd(
    x: Tensor, output: Tensor, scale: Tensor | None, mask: Tensor | None, law: str
) -> Tensor:
    """Log-likelihood [S, B] from x [B, D], output [S, B, D], scale [], [D] or [B, D], or None.

    `mask` is bool [B, D], or its bits [B, ceil(D / 32)] as `pack_bits` lays them.
    """
    return log_likelihood(x, output, scale, mask, law)


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
    """Gradients of output [S, B, D] and of scale (its own shape), see `gradients` of the law.

    One not needed, or of a scale that is None, has 0 elements.
    """
    dtype = compute_dtype(output)
    values, observed = _values(x, mask, dtype)
    by_output, by_scale = LAWS[law].gradients(
        grad_log_prob.to(dtype)[..., None],
        values,
        output.to(dtype),
        None if scale is None else scale.to(dtype),
        observed,
    )
    grad_output = by_output.to(output.dtype).contiguous() if need_output else output.new_empty(0)
    if scale is None:
        return grad_output, output.new_empty(0)
    if not need_scale:
        return grad_output, scale.new_empty(0)
    return grad_output, by_scale.sum_to_size(scale.shape).to(scale.dtype)


def grad_x(
    grad_log_prob: Tensor,
    grad_output: Tensor,
    x: Tensor,
    output: Tensor,
    mask: Tensor | None,
    law: str,
) -> Tensor:
    """The gradient of x [B, D] in its dtype, given that of output [S, B, D]."""
    grad = LAWS[law].grad_x(grad_log_prob[..., None], output, grad_output)
    _, observed = _values(x, mask, x.dtype)
    return torch.where(observed, grad, 0.0).sum(0).to(x.dtype)
