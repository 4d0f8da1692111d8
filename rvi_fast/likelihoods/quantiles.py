"""Draws as functions of standard normal noise: the same noise gives the same draw, on every device.

Torch's own samplers of gamma and Poisson numbers take from a generator as many as they happen to need,
so that what a row draws would depend on the rows before it. Here a uniform number goes through the
inverse of a distribution function, which is found by halving an interval that is sure to hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import wide

# halvings of an interval of logarithms, 1,000 wide at most: to 1e-9 of the number
_HALVINGS = 40
# logarithms of numbers that float64 holds; nothing smaller matters to whom it is a rate
_LEAST = -700.0


def uniform(noise: Tensor) -> Tensor:
    """Standard normal numbers -> numbers in (0, 1), float64."""
    return torch.special.ndtr(wide(noise)).clamp(1e-300, 1 - 1e-16)


def gamma_quantile(shape: Tensor, noise: Tensor) -> Tensor:
    """Gamma numbers of a shape and scale 1 [...], float64, from standard normal noise [...].

    The interval comes from F(x) <= x^a / Gamma(a + 1) and from P(X >= a + sqrt(2 a c) + c) <= exp(-c).
    """
    shape, below = torch.broadcast_tensors(wide(shape), uniform(noise))
    least = ((below.log() + torch.lgamma(shape + 1)) / shape).clamp_min(_LEAST)
    rest = -torch.log1p(-below)
    most = torch.maximum((shape + (2 * shape * rest).sqrt() + rest).log(), least)
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        reached = torch.special.gammainc(shape, middle.exp()) >= below
        least, most = torch.where(reached, least, middle), torch.where(reached, middle, most)
    return most.exp()


def poisson_quantile(rate: Tensor, noise: Tensor) -> Tensor:
    """Poisson counts of a rate [...], float64, from standard normal noise [...].

    The interval comes from P(X >= rate + t) <= exp(-t^2 / (2 (rate + t / 3))).
    """
    rate, below = torch.broadcast_tensors(wide(rate), uniform(noise))
    rest = -torch.log1p(-below)
    above = rest / 3 + (rest**2 / 9 + 2 * rest * rate).sqrt()
    # the smallest count whose distribution function reaches `below` lies above `least`
    least, most = torch.full_like(rate, -1.0), (rate + above).ceil() + 1
    for _ in range(max(1, int(most.max() + 2).bit_length()) if most.numel() else 0):
        middle = ((least + most) / 2).floor()
        reached = torch.special.gammaincc((middle + 1).clamp_min(1.0), rate) >= below
        reached &= middle >= 0
        least, most = torch.where(reached, least, middle), torch.where(reached, middle, most)
    return most
