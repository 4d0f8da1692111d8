"""Choosing a setting on entries held out of the observed ones: what is hidden plays no part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

SHARE = 0.1


def hold_out(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hides a tenth of the observed entries of x [N, D].

    Returns:
        x with NaN there too, and where: bool [N, D]. A column keeps all its entries if else it would
        have none.
    """
    held = ~np.isnan(x) & (np.random.default_rng(seed).random(x.shape) < SHARE)
    held &= (~np.isnan(x) & ~held).any(0)
    return np.where(held, np.nan, x), held


def best(
    settings: Iterable[Any], filled: Iterable[np.ndarray], x: np.ndarray, held: np.ndarray
) -> Any:
    """The setting with the least mean squared error over the held-out entries.

    Args:
        settings: what was tried.
        filled: [N, D] under each of them, in that order.
        x: [N, D], the truth.
        held: bool [N, D].
    """
    errors = [float(np.square(made - x)[held].mean()) for made in filled]
    return list(settings)[int(np.argmin(errors))]


class Standard:
    """Means and standard deviations of a table's observed entries; a constant column keeps its unit."""

    def __init__(self, x: np.ndarray) -> None:
        known = ~np.isnan(x)
        count = np.maximum(known.sum(0), 1)
        self.mean = np.where(known, x, 0.0).sum(0) / count
        spread = np.sqrt(np.where(known, (x - self.mean) ** 2, 0.0).sum(0) / count)
        self.spread = np.where(spread > 1e-12 * np.maximum(np.abs(self.mean), 1e-30), spread, 1.0)

    def to(self, x: np.ndarray) -> np.ndarray:
        """[N, D] in the table's units -> standardised."""
        return (x - self.mean) / self.spread

    def back(self, x: np.ndarray) -> np.ndarray:
        """[..., D] standardised -> in the table's units."""
        return x * self.spread + self.mean
