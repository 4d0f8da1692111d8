"""RelayImputer beside scikit-learn's imputers on its small tables, 30 % of the entries missing.

    python bench/imputers.py

Prints a table: root mean square error over the missing entries of rows that were not trained on (a
quarter), mean over five seeds, which draw mask, rows and first values. Iris and wine are standardised,
feature by feature; the digits are divided by the standard deviation of all pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from rvi_fast.sklearn import RelayImputer

SEEDS = range(5)
MISSING = 0.3
TABLES = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "digits": datasets.load_digits,
}
IMPUTERS: dict[str, Callable[[int], object]] = {
    "SimpleImputer": lambda seed: SimpleImputer(keep_empty_features=True),
    "KNNImputer": lambda seed: KNNImputer(keep_empty_features=True),
    "IterativeImputer": lambda seed: IterativeImputer(random_state=seed, keep_empty_features=True),
    "RelayImputer": lambda seed: RelayImputer(random_state=seed),
}


def error(table: str, imputer: str, seed: int) -> float:
    """Of one imputer that has learned from three quarters of the rows."""
    x = TABLES[table]().data
    x = x / x.std() if table == "digits" else (x - x.mean(0)) / x.std(0)
    rng = np.random.default_rng(seed)
    missing = rng.random(x.shape) < MISSING
    holed = np.where(missing, np.nan, x)
    test = rng.permutation(len(x)) < len(x) // 4
    filled = IMPUTERS[imputer](seed).fit(holed[~test]).transform(holed[test])
    return float(np.sqrt(np.mean((filled - x[test])[missing[test]] ** 2)))


def main() -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    print("| table |", " | ".join(f"`{name}`" for name in IMPUTERS), "|")
    print("|---" * (len(IMPUTERS) + 1) + "|")
    for table in TABLES:
        means = [np.mean([error(table, name, seed) for seed in SEEDS]) for name in IMPUTERS]
        print(f"| {table} |", " | ".join(f"{mean:.3f}" for mean in means), "|", flush=True)


if __name__ == "__main__":
    main()
