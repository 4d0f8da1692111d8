"""What `linear_log_likelihood` relies on."""

from __future__ import annotations

from torch import Tensor

from .._checks import DATA_DTYPES
from .holds import FLOATS, hold, hold_dims
from .log_likelihood import hold_data


def linear_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> None:
    hold_dims("hidden", hidden, FLOATS, "SBH")
    hold_dims("x", x, DATA_DTYPES, "BD")
    _, batch, hidden_dim = hidden.shape
    device, num_features = hidden.device, x.shape[1]
    hold("weight", weight, device, FLOATS, (num_features, hidden_dim))
    if bias is not None:
        hold("bias", bias, device, (weight.dtype,), (num_features,))
    hold_data(x, scale, mask, law, device, batch, num_features)


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
) -> None:
    linear_log_likelihood_fwd(hidden, weight, bias, x, scale, mask, law)
    shape = (hidden.shape[0], hidden.shape[1])
    hold("grad_log_prob", grad_log_prob, hidden.device, FLOATS, shape)
