"""Laws by which entries go missing. Masks are bool, True = observed."""

from __future__ import annotations

import math

import numpy as np

_CHUNK = 1 << 20  # draws held at a time


def mcar(shape: int | tuple[int, ...], rate: float, *, seed: int = 0) -> np.ndarray:
    """Draws a mask under which entries are missing completely at random.

    Each entry is missing with probability `rate`, independently of every other entry and of the
    data: observed = (u >= rate), u uniform on [0, 1) from numpy's Philox generator in C order.

    Args:
        shape: shape of the mask.
        rate: probability that an entry is missing, 0 <= rate < 1.
        seed: the same seed gives the same mask.

    Returns:
        bool array of `shape`, True = observed.

    Raises:
        ValueError: `rate` is outside [0, 1).

    >>> mcar((2, 4), 0.5, seed=1)
    array([[False, False, False,  True],
           [False, False, False, False]])
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate: expected 0 <= rate < 1, got {rate!r}")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    generator = np.random.Generator(np.random.Philox(seed))
    observed = np.empty(math.prod(shape), np.bool_)
    for start in range(0, observed.size, _CHUNK):
        part = observed[start : start + _CHUNK]
        np.greater_equal(generator.random(part.size), rate, out=part)
    return observed.reshape(shape)
