"""Laws of one entry of x, given an output of the decoder: what the two likelihood ops sum up."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .._op_checks.log_likelihood import SCALED


class ExponentialPower:
    """log p = -rate |u|^(1 / rate) - log s - constant with u = (x - o) / s: the output o is the centre.

    A subclass gives `rate`, `constant`, `power(u)`, which is |u|^(1 / rate), and `slope(u)`, the
    derivative of rate power(u).

    `scaled`, whether there is a scale, and the methods below are those of every law. They take x [B, D],
    o [S, B, D] and s, which broadcasts to x and is None for a law that has none, in one dtype, and bool
    [B, D], what is observed: x may be NaN elsewhere.
    """

    scaled = True
    rate: float
    constant: float

    def power(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def slope(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def entries(self, x: Tensor, output: Tensor, scale: Any, observed: Tensor) -> Tensor:
        """log p of each entry in nats, differentiable by autograd; finite where missing."""
        residual = torch.where(observed, x - output, 0.0) / scale
        constant = scale.log() + self.constant
        return -self.rate * self.power(residual) - constant

    def gradients(
        self, grad: Tensor, x: Tensor, output: Tensor, scale: Any, observed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """grad [S, B, 1] times the derivatives by o and by s, or None without one; 0 where missing.

        g slope(u) / s and g (power(u) - 1) / s.
        """
        # an infinite or missing 1/s times nothing is still nothing
        inverse = torch.where(observed, scale.reciprocal(), 0.0)
        scaled = torch.where(observed, x - output, 0.0) * inverse
        by_scale = grad * torch.where(observed, (self.power(scaled) - 1.0) * inverse, 0.0)
        return grad * self.slope(scaled) * inverse, by_scale

    def grad_x(self, grad: Tensor, output: Tensor, grad_output: Tensor) -> Tensor:
        """grad [S, B, 1] times the derivative by x, given that by o; anything where missing."""
        return -grad_output


class GaussianEntries(ExponentialPower):
    """log p = -1/2 u^2 - log s - 1/2 log 2 pi: the output is the mean."""

    rate = 0.5
    constant = 0.5 * math.log(2.0 * math.pi)

    def power(self, u: Tensor) -> Tensor:
        return u.square()

    def slope(self, u: Tensor) -> Tensor:
        return u


class LaplaceEntries(ExponentialPower):
    """log p = -|u| - log s - log 2: the output is the median. At the kink of |u| the slope is 0."""

    rate = 1.0
    constant = math.log(2.0)

    def power(self, u: Tensor) -> Tensor:
        return u.abs()

    def slope(self, u: Tensor) -> Tensor:
        return u.sign()


class BernoulliEntries:
    """log p = x o - log(1 + exp(o)): the output o is the logit. No scale."""

    scaled = False

    def entries(self, x: Tensor, output: Tensor, scale: None, observed: Tensor) -> Tensor:
        """See `ExponentialPower.entries`."""
        x, output = torch.where(observed, x, 0.0), torch.where(observed, output, 0.0)
        return x * output + logsigmoid(-output)

    def gradients(
        self, grad: Tensor, x: Tensor, output: Tensor, scale: None, observed: Tensor
    ) -> tuple[Tensor, None]:
        """See `ExponentialPower.gradients`: g (x - 1 / (1 + exp(-o)))."""
        return grad * torch.where(observed, x - output.sigmoid(), 0.0), None

    def grad_x(self, grad: Tensor, output: Tensor, grad_output: Tensor) -> Tensor:
        """See `ExponentialPower.grad_x`."""
        return grad * output


LAWS: dict[str, Any] = {
    "gaussian": GaussianEntries(),
    "bernoulli": BernoulliEntries(),
    "laplace": LaplaceEntries(),
}
SCALED.update((name, law.scaled) for name, law in LAWS.items())
