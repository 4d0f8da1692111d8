"""What `gaussian_log_likelihood` relies on."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import DATA_DTYPES
from ..layout import BITS_PER_WORD
from .holds import BOOL, FLOATS, INT32, hold, hold_dims, refuse


def hold_data(
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    device: torch.device,
    batch: int,
    num_features: int,
) -> None:
    hold("x", x, device, DATA_DTYPES, (batch, num_features))
    shapes = ((), (1,), (num_features,), (batch, num_features))
    if not (scale.dtype in FLOATS and scale.shape in shapes and scale.device == device):
        refuse("scale", scale, device, FLOATS, *shapes)
    if mask is None:
        return
    if isinstance(mask, Tensor) and mask.dtype == torch.int32:
        hold("mask", mask, device, INT32, (batch, -(-num_features // BITS_PER_WORD)))
    else:
        hold("mask", mask, device, BOOL, (batch, num_features))


def gaussian_log_likelihood_fwd(
    x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None
) -> None:
    hold_dims("mean", mean, FLOATS, "SBD")
    _, batch, num_features = mean.shape
    hold_data(x, scale, mask, mean.device, batch, num_features)


def gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_mean: bool,
    need_scale: bool,
) -> None:
    gaussian_log_likelihood_fwd(x, mean, scale, mask)
    hold("grad_log_prob", grad_log_prob, mean.device, FLOATS, (mean.shape[0], mean.shape[1]))
