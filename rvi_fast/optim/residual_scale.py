"""The scale of a likelihood from its residuals, where Adam would walk to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# steps, and observed entries, that a scale is averaged over
_STEPS, _ENTRIES = 50.0, 500.0
# by which a variance changes in a step, at most
_MOST = 4.0


class ResidualScale:
    """Moves scales of Gaussians to the root mean square of their residuals, as a running average.

        v  <- v + rho w (r^2 - v),   rho = max(1 / t, min(1 / 50, w0 / 500)),   s = sqrt(v)

    in step t, with r^2 the mean over the n observed entries of the batch, w = n / w0 and w0 their
    number in a batch of the usual size. So each entry weighs the same, and the average is over the last
    50 steps or 500 entries, whichever is more. No learning rate has a part in it. Residuals need not be
    written down: with g the gradient of the negative log-likelihood of the batch to log s,
    w (r^2 / s^2 - 1) = -g / w0. In one step v grows to 4 times, or shrinks to a quarter, at most.

    Args:
        observed: for each parameter log s, [] or [D], observed entries in a row on average.
        batch: rows of a batch, those that the gradient of the loss is divided by.
    """

    def __init__(self, observed: Sequence[Tensor], batch: int) -> None:
        # a column that is never observed has no gradient
        self.observed = [count.clamp_min(1e-12) for count in observed]
        self.least = [(n * batch / _ENTRIES).clamp_max(1.0 / _STEPS) for n in self.observed]

    @torch.no_grad()
    def step(self, values: Sequence[Tensor], grads: Sequence[Tensor], step: Tensor) -> None:
        """Counts `step` [1] up, and moves log s in place.

        Args:
            values: log s, like `observed`.
            grads: gradients of the loss, the negative log-likelihood of a row on average.
            step: int64, steps taken.
        """
        step += 1
        parts = zip(values, grads, self.observed, self.least, strict=True)
        for value, grad, observed, least in parts:
            rate = torch.maximum(1.0 / step.reshape(()).to(value), least)
            growth = 1.0 - rate * grad / observed
            value += 0.5 * growth.clamp(1.0 / _MOST, _MOST).log()
