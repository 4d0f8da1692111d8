"""What `log_likelihood` relies on."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import DATA_DTYPES
from ..layout import BITS_PER_WORD
from .holds import BOOL, FLOATS, INT32, hold, hold_dims, refuse

# whether a law has a scale, by its name: `reference.laws` enters each
SCALED: dict[str, bool] = {}


def hold_data(
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    device: torch.device,
    batch: int,
    num_features: int,
) -> None:
    hold("x", x, device, DATA_DTYPES, (batch, num_features))
    if law not in SCALED:
        raise ValueError(f"law: expected one of {', '.join(SCALED)}, got {law!r}")
    if SCALED[law]:
        hold_scale(scale, device, batch, num_features)
    elif scale is not None:
        raise ValueError(f"scale: expected None for the law {law!r}, got {type(scale).__name__}")
    if mask is None:
        return
    if isinstance(mask, Tensor) and mask.dtype == torch.int32:
        hold("mask", mask, device, INT32, (batch, -(-num_features // BITS_PER_WORD)))
    else:
        hold("mask", mask, device, BOOL, (batch, num_features))


def hold_scale(scale: Tensor | None, device: torch.device, batch: int, num_features: int) -> None:
    shapes = ((), (1,), (num_features,), (batch, num_features))
    if scale is None or not (
        scale.dtype in FLOATS and scale.shape in shapes and scale.device == device
    ):
        refuse("scale", scale, device, FLOATS, *shapes)


def log_likelihood_fwd(
    x: Tensor, output: Tensor, scale: Tensor | None, mask: Tensor | None, law: str
) -> None:
    hold_dims("output", output, FLOATS, "SBD")
    _, batch, num_features = output.shape
    hold_data(x, scale, mask, law, output.device, batch, num_features)


def log_likelihood_bwd(
    grad_log_prob: Tensor,
    x: Tensor,
    output: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    need_output: bool,
    need_scale: bool,
) -> None:
    log_likelihood_fwd(x, output, scale, mask, law)
    hold("grad_log_prob", grad_log_prob, output.device, FLOATS, (output.shape[0], output.shape[1]))
