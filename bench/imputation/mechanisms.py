"""The three laws by which entries of a complete table are hidden. Masks are bool, True = hidden.

Those of the papers on HyperImpute (Jarrett et al. 2022) and ReMasker (Du et al. 2024), which take
them from Muzellec et al. 2020: `simulate_nan` of HyperImpute with its defaults, `opt="logistic"` and
half the columns as inputs (`p_obs=0.5`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit

from rvi_fast.data import mcar as observed_at_random

# share of the columns that decide what is hidden of the others
INPUTS = 0.5


def mcar(x: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Missing completely at random: each entry of x [N, D] is hidden with probability `rate`.

    Independently of all else, by `rvi_fast.data.mcar`.
    """
    return ~observed_at_random(x.shape, rate, seed=seed)


def mar(x: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Missing at random: what is hidden depends on columns that are whole.

    Half of the D columns, `max(int(D / 2), 1)` drawn at random, are inputs and wholly observed. An
    entry of any other column j is hidden with probability

        p_ij = 1 / (1 + exp(-(sum_k w_kj x_ik + b_j))), k over the inputs,

    independently given the inputs. Columns are scaled to [0, 1] by their least and largest entry;
    w_kj are uniform on [0, 1), divided by the standard deviation over rows of sum_k w_kj x_ik; b_j is
    such that the mean over rows of p_ij is `rate`. So `rate` is the rate of the columns that miss
    entries, half of it that of the table.
    """
    generator = np.random.default_rng((seed, 1))
    inputs, others = _columns(x.shape[1], generator)
    hidden = np.zeros(x.shape, np.bool_)
    hidden[:, others] = _logistic(x[:, inputs], len(others), rate, generator)
    return hidden


def mnar(x: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Missing not at random: what is hidden depends on columns that are hidden in part.

    As `mar`, and then each entry of the inputs is hidden with probability `rate`, independently of
    all else: the probabilities of the other columns depend on values that nobody sees. `rate` is that
    of every column.
    """
    generator = np.random.default_rng((seed, 2))
    inputs, others = _columns(x.shape[1], generator)
    hidden = np.zeros(x.shape, np.bool_)
    hidden[:, others] = _logistic(x[:, inputs], len(others), rate, generator)
    hidden[:, inputs] = generator.random((len(x), len(inputs))) < rate
    return hidden


MECHANISMS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {
    "mcar": mcar,
    "mar": mar,
    "mnar": mnar,
}


def _columns(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the inputs, and of the other columns, of a table of so many columns."""
    if count < 2:
        raise ValueError(f"x: expected at least 2 columns, got {count}")
    order = generator.permutation(count)
    inputs = max(int(INPUTS * count), 1)
    return np.sort(order[:inputs]), np.sort(order[inputs:])


def _logistic(
    inputs: np.ndarray, count: int, rate: float, generator: np.random.Generator
) -> np.ndarray:
    """Hidden entries of `count` columns, bool [N, count], by a logistic model of the inputs [N, K]."""
    low, high = inputs.min(0), inputs.max(0)
    scaled = (inputs - low) / np.where(high > low, high - low, 1.0)
    sums = scaled @ generator.random((inputs.shape[1], count))
    spread = sums.std(0)
    # where all inputs are constant nothing tells rows apart
    sums = np.where(spread > 0, sums / np.where(spread > 0, spread, 1.0), 0.0)
    below, above = np.full(count, -100.0), np.full(count, 100.0)
    for _ in range(80):  # halving: 200 / 2^80 is below the resolution of float64
        middle = (below + above) / 2
        little = expit(sums + middle).mean(0) < rate
        below, above = np.where(little, middle, below), np.where(little, above, middle)
    return generator.random(sums.shape) < expit(sums + (below + above) / 2)
