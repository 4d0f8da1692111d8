"""Moments of Adam as they are kept: no denormals, and bfloat16 rounded at random.

Moments of float32 rows may be bfloat16: they are computed in the dtype of the rows, and rounded up or
down at random when they are written, so that their mean is right. With the nearest number instead,
a second moment would never fall: 0.999 v is less than half a unit in the last place from v. The
bits are Philox words with the counter (element // 4, steps taken, key of the row): a row is written once
for each number of steps taken at most, and gets the same bits in every batch and on every backend. Its
key is its number in the whole table, wherever in memory it lies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .noise import MASK32, philox

# the key of the bits that moments are rounded with
MOMENT_SEED = int.from_bytes(b"moments", "big")


def flushed(moment: Tensor, dtype: torch.dtype) -> Tensor:
    # denormals make CPU arithmetic many times slower and move nothing
    return torch.where(moment.abs() < torch.finfo(dtype).tiny, 0.0, moment)


def moment_words(keys: Tensor, count: Tensor, width: int) -> Tensor:
    """32 random bits for each element of rows of these keys [B] written at step `count`: int64 [B, W].

    The upper 16 are for the first moment, the lower 16 for the second.
    """
    row = keys.to(torch.int64)[:, None]
    quad = torch.arange(-(-width // 4), device=keys.device)
    seed = torch.tensor(MOMENT_SEED, device=keys.device)
    words = philox(
        (quad, count & MASK32, row & MASK32, (row >> 32) & MASK32),
        (seed & MASK32, seed >> 32),
    )
    return torch.stack(words, -1).flatten(-2)[..., :width]


def to_bfloat16(values: Tensor, bits: Tensor) -> Tensor:
    """Rounds away from zero with the probability of what is cut off, so that the mean is the value.

    Numbers that bfloat16 holds stay as they are, finite ones finite, NaN NaN.

    Args:
        values: float32 or float64; not below 2^-126 unless 0.
        bits: random integers in [0, 2^16), of the same shape.
    """
    integer, cut = {torch.float32: (torch.int32, 16), torch.float64: (torch.int64, 45)}[
        values.dtype
    ]
    # 16 random bits below those that stay: the sum carries into them as often as it should
    magnitude = values.abs().view(integer) + (bits << (cut - 16)).to(integer)
    rounded = (magnitude >> cut << cut).view(values.dtype)
    largest = torch.finfo(torch.bfloat16).max
    finite = rounded.clamp(max=largest).copysign(values)
    return torch.where(values.isfinite(), finite, values).to(torch.bfloat16)
