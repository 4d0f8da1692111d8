"""Imputers of other packages, called as their documentation shows, each with its defaults."""

from __future__ import annotations

from typing import Any, Self

import numpy as np


def _frame(x: np.ndarray) -> Any:
    import pandas

    return pandas.DataFrame(x, columns=[f"c{column}" for column in range(x.shape[1])])


class MiceForest:
    """miceforest's ImputationKernel: five tables, five rounds; the mean of the five is filled in."""

    def __init__(self, seed: int) -> None:
        from miceforest import ImputationKernel

        self.made, self.seed = ImputationKernel, seed

    def fit(self, x: np.ndarray) -> Self:
        """Grows the forests, which are kept for `transform`."""
        self.kernel = self.made(_frame(x), num_datasets=5, random_state=self.seed)
        self.kernel.mice(5, num_threads=1)
        return self

    def fit_transform(self, x: np.ndarray) -> np.ndarray:
        """Mean of the five completed tables."""
        return self._mean(self.fit(x).kernel)

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Mean of five completions of other rows."""
        return self._mean(self.kernel.impute_new_data(_frame(x), random_state=self.seed))

    def _mean(self, made: Any) -> np.ndarray:
        return np.mean([made.complete_data(number).to_numpy() for number in range(5)], axis=0)


class GaussianCopula:
    """gcimpute's Gaussian copula, kinds of columns found by itself."""

    def __init__(self, seed: int) -> None:
        from gcimpute.gaussian_copula import GaussianCopula as Model

        self.model = Model(random_state=seed)

    def fit(self, x: np.ndarray) -> Self:
        """Learns marginals and correlation."""
        self.model.fit(x)
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fills in other rows."""
        return np.asarray(self.model.transform(x))

    def draws(self, x: np.ndarray, count: int, seed: int) -> np.ndarray:
        """The package's multiple imputation."""
        drawn = self.model.sample_imputation(x, num=count, seed=seed)
        return np.moveaxis(np.asarray(drawn), -1, 0)


class HyperImpute:
    """A plugin of hyperimpute."""

    def __init__(self, plugin: str, seed: int) -> None:
        from hyperimpute.plugins.imputers import Imputers

        self.model = Imputers().get(plugin, random_state=seed)

    def fit(self, x: np.ndarray) -> Self:
        """Fits the plugin."""
        self.model.fit(_frame(x))
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Fills in rows."""
        return np.asarray(self.model.transform(_frame(x)))


PEERS: dict[str, tuple[Any, str, str]] = {
    "miceforest": (
        MiceForest,
        "LightGBM with mean matching, mean of 5 tables, 5 rounds",
        "miceforest",
    ),
    "gcimpute": (GaussianCopula, "Gaussian copula, defaults", "gcimpute"),
    "hyperimpute": (
        lambda seed: HyperImpute("hyperimpute", seed),
        "AutoML over columns, defaults",
        "hyperimpute",
    ),
}
