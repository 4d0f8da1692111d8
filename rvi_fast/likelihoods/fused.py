"""Laws that are ops, the decoder's last layer and law in one too; and those around a centre."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops import ops
from .base import Likelihood
from .parameters import learned, with_wider_scale


class Fused(Likelihood):
    """A law that is an op; its name is the op's.

    Attributes:
        doors: the public functions of the law, given outputs, and given the last layer. A subclass that
            does not give its own has another law, of which nothing is fused.
        checked: refuse NaN where a mask says observed, where the functions can do that.
    """

    doors: ClassVar[tuple[Callable[..., Tensor], Callable[..., Tensor]]]
    checked = False

    @property
    def fused(self) -> bool:
        """Whether the last layer and this law are one op: not in a subclass, nor where `checked`."""
        return "doors" in vars(type(self)) and not self.checked

    def of_linear(
        self, x: Tensor, hidden: Tensor, layer: nn.Linear, mask: Tensor | None = None
    ) -> Tensor:
        """`forward` of outputs = layer(hidden), which are not written down.

        Hooks of the layer are not called.
        """
        return self.doors[1](hidden, layer.weight, layer.bias, x, mask=mask)

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
        return self._step_of_linear(grad, hidden, layer, x, mask, learn, None, False)[:2]

    def _step_of_linear(
        self,
        grad: Tensor,
        hidden: Tensor,
        layer: nn.Linear,
        x: Tensor,
        mask: Tensor | None,
        learn: bool,
        scale: Tensor | None,
        learn_scale: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `step_of_linear` gives, and the gradient of the scale."""
        inputs = hidden, layer.weight, layer.bias, x, scale, mask, self.law
        found = ops.linear_log_likelihood_bwd(grad, *inputs, True, learn, learn_scale)
        log_prob, grad_hidden, grad_weight, grad_bias, grad_scale = found
        if learn:
            layer.weight.grad = grad_weight
            if layer.bias is not None:
                layer.bias.grad = grad_bias
        return log_prob, grad_hidden, grad_scale


class LocationScale(Fused):
    """Independent entries around the decoder's output, with a scale s, missing entries left out.

    A subclass gives `doors` and `sample`. uint8 are pixels and count as x / 255.

    Args:
        num_features: D.
        scale: "scalar": one s for all features, learned; "feature": one per feature, learned; "fixed":
            `initial_scale`, not learned.
        initial_scale: where s starts.
        checked: refuse NaN where a mask says observed, see `gaussian_log_likelihood`.
        device, dtype: of `log_scale`.

    Attributes:
        log_scale: parameter (a buffer if fixed), [] or [D].
    """

    log_scale: Tensor
    location_scale = True
    pixels = True
    step_tensors = 2.0
    of_each_column: ClassVar[dict[str, Any]] = {"scale": "feature"}

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
        """The scale s, [] or [D]."""
        return self.log_scale.exp()

    def forward(self, x: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-likelihood [B] (or [S, B]) of x [B, D] given outputs [B, D] (or [S, B, D]), in nats."""
        self._check_width(x)
        return self.doors[0](x, outputs, self.scale, mask, checked=self.checked)

    def mean(self, outputs: Tensor) -> Tensor:
        """The expected x [..., D], given the decoder's output: that output."""
        return outputs

    def outputs_of(self, expected: Tensor) -> Tensor:
        """The outputs [..., D] of which these numbers are the mean: the numbers."""
        return expected

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable x [..., D], given the decoder's output: that output."""
        return outputs

    def widened(self, factor: float) -> Self:
        """A view of this law with a scale `factor` times as large, see `Likelihood.widened`."""
        view: Self = with_wider_scale(self, factor)
        return view

    def arguments(self) -> dict[str, Any]:
        """See `Likelihood.arguments`: where the scale starts is a value, not part of the law."""
        found: dict[str, Any] = {} if self.kind == "scalar" else {"scale": self.kind}
        return found | ({"checked": True} if self.checked else {})

    def of_linear(
        self, x: Tensor, hidden: Tensor, layer: nn.Linear, mask: Tensor | None = None
    ) -> Tensor:
        """`forward` of outputs = layer(hidden), see `Fused.of_linear`."""
        self._check_width(x)
        return self.doors[1](
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
            grad, hidden, layer, x, mask, learn, scale, learn_scale
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
