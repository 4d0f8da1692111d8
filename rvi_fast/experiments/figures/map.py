"""A map of the test rows' latent means; not a figure of the paper. The runs are those of the lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..experiment import Experiment
from ..figure import Results, figure
from ..pictures import save_map
from ..recipes import RECIPES
from ..scales import Scale
from . import interpolation


def _maps(stem: Path, results: Results, directories: Sequence[Path]) -> None:
    """One picture for each set, of the first seed, the models side by side."""
    maps: dict[str, dict[str, np.ndarray]] = {}
    for (experiment, _), directory in zip(results, directories, strict=True):
        if not experiment.seed:
            of_set = maps.setdefault(experiment.data, {})
            of_set[RECIPES[experiment.model].label] = np.load(directory / "map.npy")
    for data, panels in maps.items():
        save_map(stem.with_name(f"{stem.name}-{data}.png"), panels)


@figure(
    "map",
    "Map of the representations",
    ("agreement",),
    over="component",
    extra=_maps,
    caption="Test rows, coloured by label.",
)
def runs(scale: Scale) -> list[Experiment]:
    return interpolation.runs(scale)
