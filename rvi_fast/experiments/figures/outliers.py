"""Imputation of a table that a few outliers decide the error of; not a figure of the paper."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ... import data
from ...data.recipe import Units
from ..experiment import Experiment, found, parts, trained
from ..figure import figure
from ..scales import Scale
from ..work import Work

# share of the hidden entries that the trimmed error leaves out: those that a method errs most about
TRIM = 0.001
_MODELS: dict[str, dict[str, Any]] = {
    "VAE": {"model": "vae"},
    "VAD": {"model": "vad"},
    "RVI": {"model": "rvi"},
    "VAD, log std -1": {"model": "vad", "initial_log_std": -1.0},
    "RVI, log std -1": {"model": "rvi", "initial_log_std": -1.0},
}
# those that are shown in robust units too
_ROBUST = ("all zeros", "conditional Gaussian", "VAD", "RVI")
_OTHERS: dict[str, Callable[..., np.ndarray]] = {
    "all zeros": lambda holed, train: np.nan_to_num(holed),
    "conditional Gaussian": data.conditional_gaussian,
}


@dataclass(frozen=True)
class Outliers(Experiment):
    """An experiment of one imputer of a table.

    Args:
        method: its name. `model` says nothing here.
        units: in which it sees the table: "plain", mean and standard deviation of the observed training
            entries; or "robust", median and quartiles for columns with far entries, and entries further
            out than training has seen count as if they lay there, see `data.Standardizer`.
    """

    NAMED: ClassVar[frozenset[str]] = Experiment.NAMED | {"method", "units"}

    method: str = "RVI"
    units: str = "plain"

    def result(self, directory: Path, data_dir: str | Path | None = None) -> Work[dict[str, Any]]:
        """Learns from the training rows and fills in the test rows, see `work`."""
        return work(self, directory, data_dir=data_dir)


def work(
    experiment: Outliers, directory: Path, *, data_dir: str | Path | None = None
) -> Work[dict[str, Any]]:
    """Learns from the training rows and fills in the test rows.

    Returns:
        "test_missing": elastic error over the hidden entries of the test rows, in plain units whatever
            those of the method; "test_trimmed": the same without the worst `TRIM` of them;
            "wide_missing", "wide_trimmed": both of posteriors under a larger scale of the likelihood,
            which entries held out of the observed ones have chosen; None for methods without one.
    """
    train, test = parts(experiment, data_dir)
    units = Units(None)
    if experiment.units == "robust":
        with warnings.catch_warnings():  # that there are outliers is what this is about
            warnings.simplefilter("ignore", data.FarEntriesWarning)
            units = Units.fit(train.x, train.mask)
    own_train, own_test = (part._replace(x=_to(units, part.x)) for part in (train, test))
    result: dict[str, Any] = dict.fromkeys(QUANTITIES)

    def score(prefix: str, filled: np.ndarray) -> None:
        values = filled if units.scale is None else units.to_data(filled)
        hidden = test.known & ~test.mask
        for name, trim in (("missing", 0.0), ("trimmed", TRIM)):
            result[f"{prefix}_{name}"] = data.elastic(test.x, values, hidden, trim=trim)

    if experiment.method in _OTHERS:
        holed = [np.where(part.mask, part.x, np.nan) for part in (own_test, own_train)]
        score("test", _OTHERS[experiment.method](holed[0], train=holed[1]))
        return result
    model, _ = yield from trained(experiment, own_train, directory)
    factors: dict[str, float | Literal["held-out"]] = {"test": 1.0}
    if not model.amortized:
        factors["wide"] = "held-out"
    for prefix, factor in factors.items():
        posterior = found(experiment, model, own_test, scale_factor=factor)
        score(prefix, model.reconstruct(posterior=posterior).cpu().numpy())
    return result


def _to(units: Units, x: np.ndarray) -> np.ndarray:
    return x if units.scale is None else units.to_model(x)


QUANTITIES = ("test_missing", "test_trimmed", "wide_missing", "wide_trimmed")


@figure(
    "outliers",
    "Imputation of a table with outliers",
    QUANTITIES,
    over="missing",
    curves=("method",),
    panels=("data", "units"),
    labels={
        "test_trimmed": f"imputed (test), without the worst {TRIM:.1%}",
        "wide_missing": "imputed (test), held-out scale",
        "wide_trimmed": f"imputed (test), held-out scale, without the worst {TRIM:.1%}",
        "units": "units",
    },
)
def runs(scale: Scale) -> list[Experiment]:
    return [
        Outliers(
            **{
                **vars(scale.experiment(data=data, missing=missing, seed=seed)),
                **_MODELS.get(method, {}),
                "method": method,
                "units": units,
            }
        )
        for data in scale.tables[:1]
        for units, methods in (("plain", (*_OTHERS, *_MODELS)), ("robust", _ROBUST))
        for method in methods
        for missing in scale.missing
        if missing > 0
        for seed in range(scale.seeds)
    ]
