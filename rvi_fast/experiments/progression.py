"""Figures 7 and 9: what each group of relay vectors adds to a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .experiment import Experiment
from .figure import Figure, Results
from .pictures import save_image_rows
from .scales import Scale

_GROUPS = ((25,), (25, 50), (25, 50, 100))
_CAPTION = (
    "Training images, a column each, reconstructed from more and more of their posterior mean."
)


def _runs(scale: Scale, groups: Sequence[tuple[int, ...]], seeds: int) -> list[Experiment]:
    return [
        scale.experiment(data=data, missing=0.0, groups=sizes, progression=True, seed=seed)
        for data in scale.images
        for sizes in groups
        for seed in range(seeds)
    ]


def _images(stem: Path, results: Results, directories: Sequence[Path]) -> None:
    """One picture for each set and each choice of groups, of the first seed."""
    for (experiment, _), directory in zip(results, directories, strict=True):
        if experiment.seed:
            continue
        images = np.load(directory / "progression.npy")
        shape = square(images.shape[-1])
        count = len(experiment.groups)
        names = ["no relay", *(f"{used} of {count} groups" for used in range(1, count + 1))]
        names += ["with deviation", "original"]
        groups = "-".join(map(str, experiment.groups))
        save_image_rows(
            stem.with_name(f"{stem.name}-{experiment.data}-{groups}.png"), images, names, shape
        )


def square(features: int) -> tuple[int, int]:
    """Height and width of square images."""
    side = int(np.sqrt(features))
    if side * side != features:
        raise ValueError(f"images: expected square ones, got {features} pixels")
    return side, side


FIGURES = {
    "fig7": Figure(
        "Reconstruction by relay group",
        lambda scale: _runs(scale, _GROUPS[-1:], 1),
        ("stages",),
        over="stage",
        curves=("groups",),
        extra=_images,
        caption=_CAPTION,
    ),
    "fig9": Figure(
        "Choices of relay groups",
        lambda scale: _runs(scale, _GROUPS, scale.seeds),
        ("stages",),
        over="stage",
        curves=("groups",),
        extra=_images,
        caption=_CAPTION,
    ),
}
