"""Complete tables, which the benchmark hides entries of.

UCI tables lie in `$RVI_FAST_DATA/tables/uci.npz` (float64 [N, D] by name: targets and class codes are
columns, as in the papers on HyperImpute and ReMasker); those of scikit-learn, without their targets,
and synthetic ones need no files. Tables longer than `MOST_ROWS` are cut to so many rows, drawn once
and for all; those of `SIZED` are not.

Development: the tables and seeds by which defaults and rules are chosen. Confirmation: all tables, the
former with other seeds; published figures are theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn import datasets

MOST_ROWS = 1500
UCI = (
    "airfoil",
    "blood",
    "climate",
    "compression",
    "credit",
    "drug",
    "health",
    "ionosphere",
    "libras",
    "obesity",
    "raisin",
    "review",
    "slump",
    "wine",
    "wine_white",
    "yacht",
)


def low_rank(rows: int, columns: int, rank: int, noise: float = 0.2) -> np.ndarray:
    """Rows z W + noise e, float64 [rows, columns]: z, e standard normal, W N(0, 1 / rank)."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(rank, columns)) / np.sqrt(rank)
    x = generator.normal(size=(rows, rank)) @ weight
    x += noise * generator.standard_normal((rows, columns))
    return x


def _clusters() -> np.ndarray:
    """Five round clusters in ten dimensions."""
    return datasets.make_blobs(600, 10, centers=5, cluster_std=1.0, random_state=0)[0]


def _swiss_roll() -> np.ndarray:
    """A rolled-up sheet, and where on it a row lies."""
    x, place = datasets.make_swiss_roll(600, noise=0.3, random_state=0)
    return np.column_stack([x, place])


def _series() -> np.ndarray:
    """24 steps of two waves of random phase, speed and height."""
    generator = np.random.default_rng(0)
    phase, speed, height = generator.random((3, 400, 2, 1))
    waves = height * np.sin(2 * np.pi * phase + (0.2 + 0.5 * speed) * np.arange(24))
    return waves.sum(1) + 0.1 * generator.normal(size=(400, 24))


def _friedman() -> np.ndarray:
    """Ten independent uniform columns and a curved function of five of them."""
    return np.column_stack(datasets.make_friedman1(600, noise=0.5, random_state=0))


BUILT_IN: dict[str, Callable[[], np.ndarray]] = {
    "iris": lambda: datasets.load_iris().data,
    "cultivars": lambda: datasets.load_wine().data,
    "digits": lambda: datasets.load_digits().data,
    "diabetes": lambda: datasets.load_diabetes().data,
    "breast_cancer": lambda: datasets.load_breast_cancer().data,
    "low_rank": lambda: low_rank(600, 20, 4),
    "clusters": _clusters,
    "swiss_roll": _swiss_roll,
    "series": _series,
    "friedman": _friedman,
}
SIZED: dict[str, Callable[[], np.ndarray]] = {
    "low_rank_100k": lambda: low_rank(100_000, 100, 8),
    "low_rank_1m": lambda: low_rank(1_000_000, 50, 8),
}
TABLES = (*UCI, *BUILT_IN)
DEVELOPMENT = (
    "iris",
    "slump",
    "climate",
    "airfoil",
    "raisin",
    "diabetes",
    "digits",
    "low_rank",
    "clusters",
    "swiss_roll",
    "series",
    "friedman",
)
DEVELOPMENT_SEEDS, CONFIRMATION_SEEDS = (100, 101, 102), (0, 1, 2, 3, 4)


def load(name: str) -> np.ndarray:
    """A complete table, float64 [N, D].

    Args:
        name: of `TABLES` or `SIZED`.

    Raises:
        ValueError: there is no table of that name.
        FileNotFoundError: it is one of UCI's, and their file is not there.
    """
    if name in SIZED:
        return SIZED[name]()
    if name in BUILT_IN:
        x = np.asarray(BUILT_IN[name](), np.float64)
    elif name in UCI:
        x = _uci(name)
    else:
        raise ValueError(f"table: expected one of {', '.join((*TABLES, *SIZED))}, got {name!r}")
    if len(x) > MOST_ROWS:
        x = x[np.sort(np.random.default_rng(0).permutation(len(x))[:MOST_ROWS])]
    return x


def _uci(name: str) -> np.ndarray:
    folder = os.environ.get("RVI_FAST_DATA")
    path = Path(folder or "$RVI_FAST_DATA") / "tables" / "uci.npz"
    if folder is None or not path.is_file():
        raise FileNotFoundError(
            f"{name}: expected {path}, an npz with arrays {', '.join(UCI)}; RVI_FAST_DATA names the "
            f"folder. Tables without a file: {', '.join(BUILT_IN)}"
        )
    with np.load(path, allow_pickle=False) as arrays:
        if name not in arrays:
            raise FileNotFoundError(f"{name}: expected an array of that name in {path}")
        return np.asarray(arrays[name], np.float64)
