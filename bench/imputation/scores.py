"""How far an imputation is from what was hidden, and how imputers compare over tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# 90 % of a distribution lie between the ends of so many draws
LEAST_DRAWS = 19


def rmse(x: np.ndarray, filled: np.ndarray, hidden: np.ndarray) -> float:
    """Root mean square error over the hidden entries of x [N, D], all columns together."""
    return float(np.sqrt(np.mean(np.square(filled - x)[hidden])))


def crps(truth: np.ndarray, draws: np.ndarray) -> float:
    """Mean continuous ranked probability score of draws [S, n] of n numbers; less is better.

    mean_s |d_s - y| - sum_{s, t} |d_s - d_t| / (2 S (S - 1)), which is unbiased for any number S > 1
    of independent draws; in the units of the truth [n].
    """
    count = len(draws)
    ordered = np.sort(draws, axis=0)
    # of sorted draws, sum over pairs of differences: each is added so often and subtracted so often
    weights = 2 * np.arange(1, count + 1) - count - 1
    pairs = np.tensordot(weights, ordered, 1)
    return float(np.mean(np.abs(draws - truth).mean(0) - pairs / (count * (count - 1))))


def central(draws: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends [n] of the central intervals of draws [S, n] that hold `level`.

    Quantiles at p (S + 1) of the S ordered draws, so that numbers which are distributed as the draws lie
    between them with probability `level` for any S.

    Raises:
        ValueError: fewer than 19 draws, which cannot bound 90 %.
    """
    if len(draws) < LEAST_DRAWS:
        raise ValueError(f"draws: expected at least {LEAST_DRAWS}, got {len(draws)}")
    ends = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(draws, ends, axis=0, method="weibull")
    return low, high


def ranks(errors: Mapping[str, float]) -> dict[str, float]:
    """Rank of each imputer by its error on one table, 1 the least; equal ones share the mean rank."""
    values = list(errors.values())
    return {
        name: 1 + sum(v < error for v in values) + (sum(v == error for v in values) - 1) / 2
        for name, error in errors.items()
    }


def compare(errors: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean rank and mean ratio to the best, over tables, of the imputers that have all of them.

    Args:
        errors: of each imputer, table -> error. Tables are those that any of them has.

    Returns:
        imputer -> (mean rank, mean over tables of its error / the least error), for those without a
        gap: they alone are ranked, and the least is the least of them.
    """
    tables = sorted({table for of in errors.values() for table in of})
    whole = {name: of for name, of in errors.items() if set(of) == set(tables)}
    rank: dict[str, list[float]] = {name: [] for name in whole}
    ratio: dict[str, list[float]] = {name: [] for name in whole}
    for table in tables:
        of_table = {name: of[table] for name, of in whole.items()}
        best = min(of_table.values(), default=1.0)
        for name, place in ranks(of_table).items():
            rank[name].append(place)
            ratio[name].append(of_table[name] / best)
    return {name: (float(np.mean(rank[name])), float(np.mean(ratio[name]))) for name in whole}
