"""The likelihood of data given the decoder's output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..functional import gaussian_log_likelihood, linear_gaussian_log_likelihood
from .base import Likelihood
from .parameters import learned, with_wider_scale


class GaussianLikelihood(Likelihood, law="gaussian"):
    """Independent Gaussians around the decoder's output, missing entries left out.

        log p(x_b) = sum_{d observed} (-1/2 ((x_bd - o_bd) / s)^2 - log s - 1/2 log 2 pi)

    `rvi_fast.likelihoods.Gaussian` is the same class. uint8 are pixels and count as x / 255.

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
    location_scale = True
    pixels = True
    step_tensors = 2.0

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
        super().__init__(num_features)
        self.kind = scale
        self.checked = checked
        logarithm = math.log(_checks.check_positive_float("initial_scale", initial_scale))
        learned(self, "scale", "log_scale", scale, logarithm, device=device, dtype=dtype)

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

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable x [..., D], given the decoder's output: that output."""
        return outputs

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws x [..., D] around the decoder's output, see `Likelihood.sample`."""
        noise = self._noise(outputs, noise, generator)
        return outputs + self.scale * noise

    def widened(self, factor: float) -> GaussianLikelihood:
        """A view of this law with a scale `factor` times as large, see `Likelihood.widened`."""
        return with_wider_scale(self, factor)

    def arguments(self) -> dict[str, Any]:
        """See `Likelihood.arguments`: where the scale starts is a value, not part of the law."""
        found: dict[str, Any] = {} if self.kind == "scalar" else {"scale": self.kind}
        return found | ({"checked": True} if self.checked else {})

    @property
    def fused(self) -> bool:
        """Whether the last layer and this law are one op: not in a subclass, nor where `checked`."""
        return type(self) is GaussianLikelihood and not self.checked

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

    def step_of_linear(
        self,
        grad: Tensor,
        hidden: Tensor,
        layer: nn.Linear,
        x: Tensor,
        mask: Tensor | None,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        """`of_linear` and its gradients in one pass, see `Likelihood.step_of_linear`."""
        log_scale, scale = self.log_scale, self.scale
        learn_scale = learn and isinstance(log_scale, nn.Parameter)
        log_prob, grad, grad_scale = self._step_of_linear(
            "gaussian", grad, hidden, layer, x, mask, learn, scale, learn_scale
        )
        if learn_scale:
            log_scale.grad = grad_scale * scale
        return log_prob, grad

    def _check_width(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.shape[-1:] != (self.num_features,):
            raise ValueError(
                f"x: expected shape [B, {self.num_features}], got {_checks.shape_of(x)}"
            )

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, scale={self.kind!r}"


# its short name; pickles and checkpoints know the long one
Gaussian = GaussianLikelihood
