"""The likelihood of data given the decoder's output."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import gaussian_log_likelihood, linear_gaussian_log_likelihood
from .fused import LocationScale


class GaussianLikelihood(LocationScale, law="gaussian"):
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

    doors = gaussian_log_likelihood, linear_gaussian_log_likelihood

    def forward(self, x: Tensor, mean: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-likelihood [B] (or [S, B]) of x [B, D] given mean [B, D] (or [S, B, D]), in nats."""
        return super().forward(x, mean, mask)

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


# its short name; pickles and checkpoints know the long one
Gaussian = GaussianLikelihood
