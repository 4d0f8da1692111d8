"""Log-likelihoods of the observed entries of a batch, given the outputs of a decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._op_checks import checked
from ._common import compute_dtype
from .bits import unpack_bits

# a uint8 entry is a pixel
PIXEL_SCALE = 1.0 / 255.0


def gaussian_log_likelihood(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Gaussian log-likelihood of the observed entries of each row, in nats.

        log p(x_b) = sum_{d observed} (-1/2 ((x_bd - mean_bd) / s)^2 - log s - 1/2 log 2 pi)

    Args and returns: `rvi_fast.gaussian_log_likelihood`.
    """
    dtype = compute_dtype(mean)
    values, observed = _values(x, mask, dtype)
    residual = torch.where(observed, values - mean.to(dtype), 0.0) / scale.to(dtype)
    constant = scale.to(dtype).log() + 0.5 * math.log(2.0 * math.pi)
    return torch.where(observed, -0.5 * residual.square() - constant, 0.0).sum(-1)


def _values(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values = x.to(dtype) * PIXEL_SCALE if x.dtype == torch.uint8 else x.to(dtype)
    if mask is None:
        return values, ~torch.isnan(values)
    return values, mask if mask.dtype == torch.bool else unpack_bits(mask, x.shape[-1])


@checked
def gaussian_log_likelihood_fwd(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> Tensor:
    """Log-likelihood [S, B] from x [B, D], mean [S, B, D], scale [], [D] or [B, D].

    `mask` is bool [B, D], or its bits [B, ceil(D / 32)] as `pack_bits` lays them.
    """
    return gaussian_log_likelihood(x, mean, scale, mask)


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
    """Gradients of mean [S, B, D] and of scale (its own shape); one not needed has 0 elements.

    With u = (x - mean) / s where observed, else 0:
    grad_mean = g u / s and grad_scale = sum g (u^2 - 1) / s over observed entries.
    """
    dtype = compute_dtype(mean)
    values, observed = _values(x, mask, dtype)
    # an infinite or missing 1/s times nothing is still nothing
    inverse = torch.where(observed, scale.to(dtype).reciprocal(), 0.0)
    scaled = torch.where(observed, values - mean.to(dtype), 0.0) * inverse
    grad = grad_log_prob.to(dtype)[..., None]
    grad_mean = mean.new_empty(0)
    if need_mean:
        grad_mean = (grad * scaled * inverse).to(mean.dtype).contiguous()
    grad_scale = scale.new_empty(0)
    if need_scale:
        terms = grad * torch.where(observed, (scaled.square() - 1.0) * inverse, 0.0)
        grad_scale = terms.sum_to_size(scale.shape).to(scale.dtype)
    return grad_mean, grad_scale
