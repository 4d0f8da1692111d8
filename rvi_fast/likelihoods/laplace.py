"""Numbers with exponential tails: Laplace's law, also called the double exponential."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..functional import laplace_log_likelihood, linear_laplace_log_likelihood
from .fused import LocationScale


class Laplace(LocationScale, law="laplace"):
    """Independent Laplace laws around the decoder's output: absolute errors count, not squares.

        log p(x_b) = sum_{d observed} (-|x_bd - o_bd| / s - log 2 s)

    The output o is mean, mode and median; the scale s is the mean absolute deviation. uint8 are pixels
    and count as x / 255. Shapes and errors are those of `Likelihood.forward`; gradient to outputs and
    scale, 0 where missing, and 0 to an output that equals x, where |x - o| has a kink.

    Args:
        num_features: D, the width of the decoder's output too.
        scale: "scalar": one s for all features, learned; "feature": one per feature, learned; "fixed":
            `initial_scale`, not learned.
        initial_scale: where s starts.
        checked: refuse NaN where a mask says observed, see `laplace_log_likelihood`.

    Attributes:
        log_scale: parameter (a buffer if fixed), [] or [D].

    Source:
        `torch.distributions.Laplace(outputs, s)`.

    Example:
        >>> import torch
        >>> law = Laplace(2, initial_scale=0.5)
        >>> law(torch.tensor([[1.0, torch.nan]]), torch.zeros(1, 2))
        tensor([-2.], grad_fn=...)
    """

    doors = laplace_log_likelihood, linear_laplace_log_likelihood

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws x [..., D] around the decoder's output, see `Likelihood.sample`."""
        noise = self._noise(outputs, noise, generator)
        # an exponential number is -log of a uniform one: twice the tail beyond the noise
        distance = -torch.special.log_ndtr(-noise.abs()) - math.log(2.0)
        return outputs + self.scale * noise.sign() * distance
