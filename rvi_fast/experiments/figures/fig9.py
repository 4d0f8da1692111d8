"""Figure 9: what each group of relay vectors adds to a reconstruction, by choice of groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..experiment import Experiment
from ..figure import Results, figure
from ..pictures import save_image_rows, square
from ..scales import Scale

CAPTION = (
    "Training images, a column each, reconstructed from more and more of their posterior mean."
)


def images(stem: Path, results: Results, directories: Sequence[Path]) -> None:
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


@figure(
    "fig9",
    "Choices of relay groups",
    ("stages",),
    over="stage",
    curves=("groups",),
    extra=images,
    caption=CAPTION,
)
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, missing=0.0, groups=sizes, progression=True, seed=seed)
        for data in scale.images
        for sizes in ((25,), (25, 50), (25, 50, 100))
        for seed in range(scale.seeds)
    ]
