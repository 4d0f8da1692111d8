"""Straight lines between latent means, decoded; not a figure of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..experiment import Experiment
from ..figure import Results, figure
from ..pictures import save_image_rows, square
from ..scales import Scale


def _lines(stem: Path, results: Results, directories: Sequence[Path]) -> None:
    """One picture for each set and each model, of the first seed: a line to a row."""
    for (experiment, _), directory in zip(results, directories, strict=True):
        if experiment.seed:
            continue
        images = np.load(directory / "interpolation.npy")
        names = [f"line {number}" for number in range(1, len(images) + 1)]
        path = stem.with_name(f"{stem.name}-{experiment.data}-{experiment.model}.png")
        save_image_rows(path, images, names, square(images.shape[-1]))


@figure(
    "interpolation",
    "Straight lines between latent means",
    ("off_data", "off_data_pixels"),
    over="point",
    extra=_lines,
    caption="The first and the last image of a row are training images; between them the line "
    "between their latent means, decoded.",
)
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, missing=0.0, latents=True, seed=seed)
        for data in scale.images
        for model in ("rvi", "vae")
        for seed in range(scale.seeds)
    ]
