"""The likelihood of data given the decoder's output."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional import gaussian_log_likelihood, linear_gaussian_log_likelihood


class GaussianLikelihood(nn.Module):
    """Independent Gaussians around the decoder's output, missing entries left out.

    Args:
        num_features: D.
        scale: "scalar": one standard deviation for all features, learned; "feature": one per
            feature, learned; "fixed": `initial_scale`, not learned.
        initial_scale: where the standard deviation starts.
        checked: refuse NaN where a mask says observed, see `gaussian_log_likelihood`.

    Attributes:
        log_scale: parameter (a buffer if fixed), [] or [D]. FSDP2 refuses parameters without
            dimensions: `fully_shard(model, ignored_params={likelihood.log_scale})`.

    Example:
        >>> import torch, rvi_fast
        >>> likelihood = rvi_fast.GaussianLikelihood(num_features=3)
        >>> likelihood(torch.zeros(2, 3), torch.zeros(2, 3)).shape
        torch.Size([2])
    """

    log_scale: Tensor
    # data of this law may be shifted and scaled, and have this law again: `fit` may standardise them
    location_scale = True

    def __init__(
        self,
        num_features: int,
        *,
        scale: str = "scalar",
        initial_scale: float = 1.0,
        checked: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if scale not in ("scalar", "feature", "fixed"):
            raise ValueError(f"scale: expected scalar, feature or fixed, got {scale!r}")
        self.num_features = _checks.check_positive_int("num_features", num_features)
        self.kind = scale
        self.checked = checked
        log_scale = torch.full(
            (num_features,) if scale == "feature" else (),
            math.log(_checks.check_positive_float("initial_scale", initial_scale)),
            device=device,
            dtype=dtype,
        )
        if scale == "fixed":
            self.register_buffer("log_scale", log_scale)
        else:
            self.log_scale = nn.Parameter(log_scale)

    @property
    def scale(self) -> Tensor:
        """The standard deviation s, [] or [D]."""
        return self.log_scale.exp()

    def forward(self, x: Tensor, mean: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-likelihood [B] (or [S, B]) of x [B, D] given mean [B, D] (or [S, B, D]), in nats."""
        self._check_width(x)
        return gaussian_log_likelihood(x, mean, self.scale, mask, checked=self.checked)

    def mean(self, outputs: Tensor) -> Tensor:
        """The expected x [..., D], given the decoder's output: that output."""
        return outputs

    def sample(self, outputs: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Draws x [..., D] around the decoder's output.

        Args:
            outputs: [..., D].
            noise: standard normal draws like `outputs`; from torch's default generator if not given.
        """
        noise = torch.randn_like(outputs) if noise is None else noise
        return outputs + self.scale * noise

    def of_linear(
        self, x: Tensor, hidden: Tensor, layer: nn.Linear, mask: Tensor | None = None
    ) -> Tensor:
        """The same given mean = layer(hidden), which is not computed as a whole.

        See `linear_gaussian_log_likelihood`. Hooks of the layer are not called.
        """
        self._check_width(x)
        return linear_gaussian_log_likelihood(
            hidden, layer.weight, layer.bias, x, self.scale, mask, checked=self.checked
        )

    def _check_width(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.shape[-1:] != (self.num_features,):
            raise ValueError(
                f"x: expected shape [B, {self.num_features}], got {_checks.shape_of(x)}"
            )

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, scale={self.kind!r}"
