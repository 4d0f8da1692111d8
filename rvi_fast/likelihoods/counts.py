"""Counts 0, 1, 2, ...: Poisson and negative binomial."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .. import _checks
from .base import Elementwise, Likelihood, view, wide
from .parameters import learned
from .quantiles import gamma_quantile, poisson_quantile

# of the logarithm of a rate: 1e13, beyond any count
_MOST = 30.0
# of the logarithm of an inverse dispersion: at 5e8 the law is a Poisson, and log Gamma still exact
_MOST_INVERSE = 20.0


class Counts(Elementwise):
    """What laws of counts share: the decoder puts out the logarithm of a rate, for a row of size 1.

        rate_bd = size_b exp(o_bd),   log rate within +-30
        size_b  = 1, or with `size_factor` (1 + sum of the observed counts of row b) / (1 + their number)

    The size is a constant without gradient, and that of a row with nothing observed is 1. Densities are
    counted in float64 where the device has it, since logarithms of large factorials cancel.

    Args:
        num_features: D, the width of the decoder's output too.
        size_factor: rows have sizes of their own, as cells that were sequenced to different depths.
            `impute` and `infer` take a row's size from what was observed of it; `reconstruct` gives
            means for size 1.
    """

    # of rows [B], where this is a view for them
    _log_size: Tensor | None = None

    def __init__(self, num_features: int, *, size_factor: bool = False) -> None:
        super().__init__(num_features)
        self.size_factor = _checks.check_bool("size_factor", size_factor)

    def arguments(self) -> dict[str, Any]:
        """What it is made of, for a config, see `Likelihood.arguments`."""
        return {"size_factor": True} if self.size_factor else {}

    def of_rows(self, x: Tensor, mask: Tensor | None = None) -> Likelihood:
        """A view for rows of the sizes that x [B, D] says, see `Likelihood.of_rows`."""
        if not self.size_factor:
            return self
        other = view(self)
        other._log_size = _log_size_of(*self._observed(x, mask))
        return other

    def log_rate(self, outputs: Tensor) -> Tensor:
        """log rate [..., D], of rows of the sizes of `of_rows`, or of size 1."""
        if self._log_size is not None:
            outputs = outputs + self._log_size[:, None].to(outputs.dtype)
        return outputs.clamp(-_MOST, _MOST)

    def mean(self, outputs: Tensor) -> Tensor:
        """The rate, [..., D]."""
        return self.log_rate(outputs).exp()

    def outputs_of(self, expected: Tensor) -> Tensor:
        """The logarithms [..., D] of rates, of rows of size 1, see `Likelihood.outputs_of`."""
        return expected.log()

    def totals(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sums of the counts, and of the sizes of their rows, see `Likelihood.totals`."""
        values, observed = self._observed(x, mask)
        sizes = observed.to(values.dtype)
        if self.size_factor:
            sizes = sizes * _log_size_of(values, observed).exp()[:, None]
        return torch.stack((values.sum(0), sizes.sum(0)))

    def initial_outputs(self, totals: Tensor) -> Tensor:
        """The logarithm of each column's rate, see `Likelihood.initial_outputs`."""
        counts, sizes = totals
        return ((counts + 0.5) / (sizes + 0.5)).log()

    def legal(self, values: Tensor) -> Tensor:
        """Whole numbers from 0 on."""
        return (values >= 0) & (values == values.floor())

    def support(self, column: int) -> str:
        """What the entries of each column may be, see `Likelihood.support`."""
        return "a count 0, 1, 2, ..."

    def _located(self, outputs: Tensor, values: Tensor, observed: Tensor) -> Tensor:
        if self.size_factor and self._log_size is None:
            outputs = outputs + _log_size_of(values, observed)[:, None]
            return outputs.clamp(-_MOST, _MOST)
        return self.log_rate(outputs)


class Poisson(Counts, law="poisson"):
    """Independent Poisson counts, one rate to a feature.

        log p(x_b) = sum_{d observed} (x_bd log rate_bd - rate_bd - log x_bd!)

    with rates as `Counts` says. x holds counts as floating point, NaN = missing; uint8 would be pixels
    and is refused. Shapes and errors are those of `Likelihood.forward`; gradient to the outputs, twice
    differentiable, 0 where missing and beyond the bounds of the rate.

    Args:
        num_features: D, the width of the decoder's output too.
        size_factor: see `Counts`.

    Source:
        `torch.distributions.Poisson(rate)`.

    Example:
        >>> import torch
        >>> Poisson(2)(torch.tensor([[3.0, torch.nan]]), torch.zeros(1, 2))
        tensor([-2.7918])
    """

    step_tensors = 16.0

    def log_density(self, x: Tensor, outputs: Tensor) -> Tensor:
        """log p of each entry given log rates, see `Elementwise`."""
        x, outputs = wide(x), wide(outputs)
        return x * outputs - outputs.exp() - torch.lgamma(x + 1)

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable count [..., D], the rate rounded down."""
        return self.mean(outputs).floor()

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws counts [..., D], see `Likelihood.sample`."""
        rate = wide(self.log_rate(outputs)).exp()
        return poisson_quantile(rate, self._noise(outputs, noise, generator)).to(outputs.dtype)


class NegativeBinomial(Counts, law="negative_binomial"):
    """Independent counts that vary more than Poisson counts do: variance rate + rate^2 / r.

        log p(x_b) = sum_{d observed} (log Gamma(x + r) - log Gamma(r) - log x!
                                       + r log(r / (r + rate)) + x log(rate / (r + rate)))

    with rates as `Counts` says and an inverse dispersion r that is learned, within exp(+-20); a large r
    is a Poisson law. x holds counts as floating point, NaN = missing; uint8 would be pixels and is
    refused. Shapes and errors are those of `Likelihood.forward`; gradient to the outputs and r, twice
    differentiable, 0 where missing and beyond the bounds.

    Args:
        num_features: D, the width of the decoder's output too.
        dispersion: "scalar": one r for all features, learned; "feature": one per feature, learned;
            "fixed": `initial_inverse_dispersion`, not learned.
        initial_inverse_dispersion: where r starts.
        size_factor: see `Counts`.

    Attributes:
        log_inverse_dispersion: [] or [D], parameter, or a buffer where it is fixed.

    Source:
        `torch.distributions.NegativeBinomial(r, logits=log rate - log r)`.

    Example:
        >>> import torch
        >>> NegativeBinomial(2)(torch.tensor([[3.0, torch.nan]]), torch.zeros(1, 2)).tolist()
        [-2.772...]
    """

    log_inverse_dispersion: Tensor
    step_tensors = 22.0
    of_each_column: ClassVar[dict[str, Any]] = {"dispersion": "feature"}

    def __init__(
        self,
        num_features: int,
        *,
        dispersion: str = "scalar",
        initial_inverse_dispersion: float = 1.0,
        size_factor: bool = False,
    ) -> None:
        super().__init__(num_features, size_factor=size_factor)
        self.kind = dispersion
        value = _checks.check_positive_float(
            "initial_inverse_dispersion", initial_inverse_dispersion
        )
        learned(self, "dispersion", "log_inverse_dispersion", dispersion, math.log(value))

    @property
    def inverse_dispersion(self) -> Tensor:
        """r, [] or [D]."""
        return self._log_r().exp()

    @property
    def num_noise(self) -> int:
        """Two for each feature."""
        return 2 * self.num_features

    def arguments(self) -> dict[str, Any]:
        """What it is made of, for a config, see `Likelihood.arguments`."""
        kind = {} if self.kind == "scalar" else {"dispersion": self.kind}
        return super().arguments() | kind

    def log_density(self, x: Tensor, outputs: Tensor) -> Tensor:
        """log p of each entry given log rates, see `Elementwise`."""
        x, log_r = wide(x), wide(self._log_r())
        r, apart = log_r.exp(), wide(outputs) - log_r
        factorials = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
        return factorials - r * softplus(apart) - x * softplus(-apart)

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable count [..., D]: rate (r - 1) / r rounded down, 0 for r up to 1."""
        r = wide(self.inverse_dispersion)
        mode = (wide(self.mean(outputs)) * (1 - 1 / r)).floor().clamp_min(0.0)
        return mode.to(outputs.dtype)

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws counts [..., D], Poisson ones of a gamma rate, see `Likelihood.sample`."""
        first, second = self._noise(outputs, noise, generator).chunk(2, -1)
        log_r = wide(self._log_r())
        rate = (wide(self.log_rate(outputs)) - log_r).exp() * gamma_quantile(log_r.exp(), first)
        return poisson_quantile(rate, second).to(outputs.dtype)

    def _log_r(self) -> Tensor:
        return self.log_inverse_dispersion.clamp(-_MOST_INVERSE, _MOST_INVERSE)


def _log_size_of(values: Tensor, observed: Tensor) -> Tensor:
    """log size [B] of rows of counts [B, D], 0 where they are not observed."""
    return ((1 + wide(values.detach()).sum(-1)) / (1 + observed.sum(-1))).log().to(values.dtype)
