"""Imputation of test rows beside other imputers; not a figure of the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ... import data
from ...data.pixels import fractions, is_pixels
from ..experiment import Experiment, found, parts, trained
from ..figure import figure
from ..scales import Scale
from ..work import Work

WIDE = (256, 256)
# how a posterior of test rows is found: model, decoder (None: that of the scale), scale factor
_OURS: dict[str, tuple[str, tuple[int, ...] | None, float | Literal["held-out"]]] = {
    "VAE": ("vae", None, 1.0),
    "VAD": ("vad", None, 1.0),
    "RVI": ("rvi", None, 1.0),
    "RVI, held-out scale": ("rvi", None, "held-out"),
    "VAD, 256-256, held-out scale": ("vad", WIDE, "held-out"),
    "RVI, 256-256, held-out scale": ("rvi", WIDE, "held-out"),
}
_OTHERS: dict[str, Callable[..., np.ndarray]] = {
    "column mean": data.column_mean,
    "KNN": data.knn,
    "conditional Gaussian": data.conditional_gaussian,
}


@dataclass(frozen=True)
class Imputation(Experiment):
    """An experiment of one imputer.

    Args:
        method: its name. `model` says nothing here.
    """

    NAMED: ClassVar[frozenset[str]] = Experiment.NAMED | {"method"}

    method: str = "RVI"

    def result(self, directory: Path, data_dir: str | Path | None = None) -> Work[dict[str, Any]]:
        """Learns from the training rows and fills in the test rows, see `work`."""
        return work(self, directory, data_dir=data_dir)


def work(
    experiment: Imputation, directory: Path, *, data_dir: str | Path | None = None
) -> Work[dict[str, Any]]:
    """Learns from the training rows and fills in the test rows.

    Returns:
        "test_missing": elastic error over the hidden entries of the test rows; pixels are clipped to
            [0, 1].
    """
    train, test = parts(experiment, data_dir)
    if experiment.method in _OTHERS:
        holed = []
        for part in (test, train):
            holed.append(np.where(part.mask, fractions(part.x, np.float32), np.float32("nan")))
        filled = _OTHERS[experiment.method](holed[0], train=holed[1])
    else:
        model, _ = yield from trained(experiment, train, directory)
        posterior = found(experiment, model, test, scale_factor=_OURS[experiment.method][2])
        filled = model.reconstruct(posterior=posterior).cpu().numpy()
    if is_pixels(test.x):  # every method is told that these are pixels
        filled = np.clip(filled, 0.0, 1.0)
    return {"test_missing": test.scores("test", filled)["test_missing"]}


@figure(
    "imputation",
    "Imputation of test rows beside other imputers",
    ("test_missing",),
    over="missing",
    curves=("method",),
)
def runs(scale: Scale) -> list[Experiment]:
    found: list[Experiment] = []
    for name in scale.images:
        for method in (*_OTHERS, *_OURS):
            model, hidden, _ = _OURS.get(method, ("rvi", None, 1.0))
            chosen = {"model": model, "method": method, **({"hidden": hidden} if hidden else {})}
            for missing in scale.missing:
                for seed in range(scale.seeds):
                    own = scale.experiment(data=name, missing=missing, seed=seed)
                    found.append(Imputation(**{**vars(own), **chosen}))
    return [experiment for experiment in found if experiment.missing > 0]
