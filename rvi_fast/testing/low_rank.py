"""A table of low rank and noise, of any size: what a training at size is tried on."""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank_table(
    num_data: int,
    num_features: int = 100,
    *,
    rank: int = 8,
    noise: float = 0.2,
    missing: float = 0.3,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draws x = Z W / sqrt(rank) + noise E, all of Z, W and E standard normal, and what is observed.

    Columns have variance 1 + noise^2 on average, so that their means are wrong by about 1. Who knows W
    is wrong by noise sqrt(1 + rank / ((1 - missing) num_features)) or little more.

    Args:
        num_data: N.
        num_features: D.
        rank: of the table without noise.
        noise: standard deviation of the noise.
        missing: share of the entries that is missing, completely at random.
        seed: of all draws, the mask's too.

    Returns:
        x [N, D] float32, whole, and the mask, bool [N, D], true = observed.

    Example:
        >>> x, mask = low_rank_table(1000, 20, rank=2)
        >>> x.shape, round(float(mask.float().mean()), 1)
        (torch.Size([1000, 20]), 0.7)
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rank, num_features, generator=generator)
    x = torch.randn(num_data, rank, generator=generator) @ weight / rank**0.5
    x += noise * torch.randn(num_data, num_features, generator=generator)
    return x, torch.rand(num_data, num_features, generator=generator) >= missing
