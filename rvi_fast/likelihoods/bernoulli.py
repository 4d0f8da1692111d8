"""Yes or no: data of zeros and ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..functional import bernoulli_log_likelihood, linear_bernoulli_log_likelihood
from .base import Elementwise, wide
from .fused import Fused


class Bernoulli(Fused, Elementwise, law="bernoulli"):
    """Independent zeros and ones, of which the decoder's outputs are the logits.

        log p(x_b) = sum_{d observed} (x_bd o_bd - log(1 + exp(o_bd)))

    x holds 0 and 1, NaN = missing. uint8 are pixels and count as x / 255 here as everywhere: a binarised
    image in uint8 holds 0 and 255; pass one of 0 and 1 as floating point.

    Shapes, gradient and errors are those of `Likelihood.forward`: to the outputs, twice
    differentiable, 0 where missing. Gives NaN where an observed x is NaN.

    Args:
        num_features: D, the width of the decoder's output too.

    Source:
        `torch.distributions.Bernoulli(logits=outputs)`.

    Example:
        >>> import torch
        >>> law = Bernoulli(3)
        >>> law(torch.tensor([[1.0, 0.0, torch.nan]]), torch.zeros(1, 3))
        tensor([-1.3863])
        >>> law.mean(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.1192, 0.5000, 0.8808])
    """

    doors = bernoulli_log_likelihood, linear_bernoulli_log_likelihood
    pixels = True
    estimated = "mode"

    @property
    def step_tensors(self) -> float:  # type: ignore[override]
        """Those of the op, or those of `log_density` where a subclass is not the op."""
        return 2.0 if self.fused else 8.0

    @property
    def classes(self) -> list[int]:
        """Two in each column, see `Likelihood.classes`."""
        return [2] * self.num_features

    def forward(self, x: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-likelihood of the observed entries of each row, see `Likelihood.forward`."""
        if not self.fused:
            return super().forward(x, outputs, mask)
        self._check_entries(x, outputs)
        return bernoulli_log_likelihood(x, outputs, mask)

    def log_density(self, x: Tensor, outputs: Tensor) -> Tensor:
        """log p of each entry, see `Elementwise`."""
        return x * outputs + logsigmoid(-outputs)

    def mean(self, outputs: Tensor) -> Tensor:
        """The probability of 1, [..., D]."""
        return outputs.sigmoid()

    def outputs_of(self, expected: Tensor) -> Tensor:
        """The logits [..., D] of probabilities of 1, see `Likelihood.outputs_of`."""
        return expected.logit()

    def mode(self, outputs: Tensor) -> Tensor:
        """1 where it is more probable than 0, [..., D]."""
        return (outputs > 0).to(outputs.dtype)

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws zeros and ones [..., D], see `Likelihood.sample`."""
        below = torch.special.ndtr(wide(self._noise(outputs, noise, generator)))
        return (below < wide(outputs).sigmoid()).to(outputs.dtype)

    def totals(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Ones, and entries, of each column, see `Likelihood.totals`."""
        values, observed = self._observed(x, mask)
        return torch.stack((values.sum(0), observed.sum(0)))

    def initial_outputs(self, totals: Tensor) -> Tensor:
        """The logit of each column's share of ones, see `Likelihood.initial_outputs`."""
        ones, entries = totals
        return ((ones + 0.5) / (entries - ones + 0.5)).log()

    def legal(self, values: Tensor) -> Tensor:
        """Whether entries are zeros and ones."""
        return (values == 0) | (values == 1)

    def support(self, column: int) -> str:
        """What the entries of each column may be, see `Likelihood.support`."""
        return "0 or 1"
