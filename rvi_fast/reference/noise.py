"""Standard normal noise: Philox 4x32-10 and Box-Muller.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The key is the seed; the counter is
(t // 4, sample, row), so that a number depends on nothing but what it is for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox 4x32: four uint32 words from a counter of four and a key of two.

    Args:
        counter: four int64 tensors of broadcastable shapes holding words in [0, 2^32).
        key: two int64 tensors likewise.

    Returns:
        Four int64 tensors of the broadcast shape, words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap as uint64 ones do, so both halves come out right
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        high0, low0 = (product0 >> 32) & MASK32, product0 & MASK32
        high1, low1 = (product1 >> 32) & MASK32, product1 & MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & MASK32, (k1 + _WEYL[1]) & MASK32
    return c0, c1, c2, c3


def normal_noise(
    seed: Tensor, index: Tensor, num_samples: int, latent_dim: int, dtype: torch.dtype
) -> Tensor:
    """Standard normal noise that depends on (seed, row, sample, latent dimension) alone.

    Uniforms have 24 bits, so that they are the same numbers in float32 and float64:
    u = (word >> 8) / 2^24. Words come in pairs: radius = sqrt(-2 log(u_1 + 2^-24)), angle =
    2 pi u_2, normals radius * cos(angle) and radius * sin(angle). |noise| < 5.77.

    Args:
        seed: int64 [1].
        index: rows [B], int32 or int64.
        num_samples: S.
        latent_dim: T.
        dtype: dtype of the result; Box-Muller is evaluated in it.

    Returns:
        Noise [S, B, T].
    """
    row = index.to(torch.int64)[None, :, None]
    sample = torch.arange(num_samples, device=index.device)[:, None, None]
    quad = torch.arange(-(-latent_dim // 4), device=index.device)[None, None, :]
    seed = seed.reshape(())
    words = philox(
        (quad, sample, row & MASK32, (row >> 32) & MASK32),
        (seed & MASK32, (seed >> 32) & MASK32),
    )
    uniform = torch.stack(words, dim=-1) >> 8
    pairs = (uniform.to(dtype) * 2.0**-24).unflatten(-1, (2, 2))
    radius = torch.sqrt(-2.0 * torch.log(pairs[..., 0] + 2.0**-24))
    angle = 2.0 * math.pi * pairs[..., 1]
    normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return normals.flatten(-3)[..., :latent_dim]
