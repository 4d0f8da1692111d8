"""Numbers with heavy tails: Student's t."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .. import _checks
from .base import Elementwise, wide
from .parameters import learned, with_wider_scale
from .quantiles import gamma_quantile

# degrees of freedom: a Gaussian to the last digits of float32, and log Gamma still exact
_MOST_DF = 1e6


class StudentT(Elementwise, law="student_t"):
    """Independent t distributions around the decoder's output: a few far entries do not pull at it.

        u      = (x - o) / s
        log p  = log Gamma((v + 1) / 2) - log Gamma(v / 2) - 1/2 log(v pi) - log s
                 - (v + 1) / 2 log(1 + u^2 / v)

    summed over the observed entries. The degrees of freedom v are above 2, so that mean and variance
    exist: v = 2 + log(1 + exp(`raw_df`)), at most 1e6, which is a Gaussian. uint8 are pixels, x / 255.

    Shapes and errors are those of `Likelihood.forward`; gradient to outputs, scale and degrees of
    freedom, twice differentiable, 0 where missing. Gives NaN where an observed x is NaN.

    Args:
        num_features: D, the width of the decoder's output too.
        scale: "scalar": one s for all features, learned; "feature": one per feature, learned; "fixed":
            `initial_scale`, not learned.
        df: the same of the degrees of freedom.
        initial_scale: where s starts.
        initial_df: where v starts, above 2 and up to 1e6.

    Attributes:
        log_scale: [] or [D], parameter, or a buffer where it is fixed.
        raw_df: likewise.

    Source:
        `torch.distributions.StudentT(v, outputs, s)`.

    Example:
        >>> import torch
        >>> law, far = StudentT(2), torch.tensor([[0.0, 9.0]])
        >>> bool(law(far, torch.zeros(1, 2)) > -13), bool((-0.5 * far**2).sum() < -40)
        (True, True)
    """

    log_scale: Tensor
    raw_df: Tensor
    location_scale = True
    pixels = True
    step_tensors = 10.0
    of_each_column: ClassVar[dict[str, Any]] = {"scale": "feature", "df": "feature"}

    def __init__(
        self,
        num_features: int,
        *,
        scale: str = "scalar",
        df: str = "scalar",
        initial_scale: float = 1.0,
        initial_df: float = 8.0,
    ) -> None:
        super().__init__(num_features)
        self.kind, self.df_kind = scale, df
        excess = _checks.check_positive_float("initial_df", initial_df) - 2
        if not 0 < excess <= _MOST_DF:
            raise ValueError(
                f"initial_df: expected a number above 2, up to 1e6, got {initial_df!r}"
            )
        logarithm = math.log(_checks.check_positive_float("initial_scale", initial_scale))
        learned(self, "scale", "log_scale", scale, logarithm)
        # the inverse of log(1 + exp(.))
        learned(self, "df", "raw_df", df, excess + math.log(-math.expm1(-excess)))

    @property
    def scale(self) -> Tensor:
        """The scale s, [] or [D]."""
        return self.log_scale.exp()

    @property
    def df(self) -> Tensor:
        """The degrees of freedom v, [] or [D]."""
        return (2 + softplus(self.raw_df)).clamp_max(_MOST_DF)

    @property
    def num_noise(self) -> int:
        """Two for each feature."""
        return 2 * self.num_features

    def arguments(self) -> dict[str, Any]:
        """What it is made of, for a config, see `Likelihood.arguments`."""
        kinds = {"scale": self.kind, "df": self.df_kind}
        return {name: kind for name, kind in kinds.items() if kind != "scalar"}

    def log_density(self, x: Tensor, outputs: Tensor) -> Tensor:
        """log p of each entry, see `Elementwise`."""
        df = wide(self.df)
        # large arguments cancel
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()
        constant = (constant - self.log_scale).to(outputs.dtype)
        df = df.to(outputs.dtype)
        apart = (x - outputs) / self.scale.to(outputs.dtype)
        return constant - (df + 1) / 2 * torch.log1p(apart * apart / df)

    def mean(self, outputs: Tensor) -> Tensor:
        """The expected x [..., D]: the decoder's output."""
        return outputs

    def outputs_of(self, expected: Tensor) -> Tensor:
        """The outputs [..., D] of which these numbers are the centre: the numbers."""
        return expected

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable x [..., D]: the decoder's output."""
        return outputs

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws x [..., D], a normal number over the root of a gamma one, see `Likelihood.sample`."""
        normal, other = self._noise(outputs, noise, generator).chunk(2, -1)
        half = wide(self.df) / 2
        spread = (half / gamma_quantile(half, other)).sqrt().to(outputs.dtype)
        return outputs + self.scale.to(outputs.dtype) * normal * spread

    def widened(self, factor: float) -> StudentT:
        """A view of this law with a scale `factor` times as large, see `Likelihood.widened`."""
        return with_wider_scale(self, factor)
