"""Figure 5, a classifier on the representations, and pictures of the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .experiment import Experiment
from .figure import MODELS, Figure, Results
from .pictures import save_image_rows, save_map
from .progression import square
from .scales import Scale


def _classifiers(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(
            data=data,
            model=model,
            missing=0.0,
            classifier_epochs=scale.classifier_epochs,
            seed=seed,
        )
        for data in scale.images
        for model in MODELS
        for seed in range(scale.seeds)
    ]


def _explored(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, missing=0.0, latents=True, seed=seed)
        for data in scale.images
        for model in ("rvi", "vae")
        for seed in range(scale.seeds)
    ]


def _dimensions(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, latent_dim=count, seed=seed)
        for data in scale.images[:1]
        for count in scale.latent_dims
        for seed in range(scale.seeds)
    ]


def _lines(stem: Path, results: Results, directories: Sequence[Path]) -> None:
    """One picture for each set and each model, of the first seed: a line to a row."""
    for (experiment, _), directory in zip(results, directories, strict=True):
        if experiment.seed:
            continue
        images = np.load(directory / "interpolation.npy")
        names = [f"line {number}" for number in range(1, len(images) + 1)]
        path = stem.with_name(f"{stem.name}-{experiment.data}-{experiment.model}.png")
        save_image_rows(path, images, names, square(images.shape[-1]))


def _maps(stem: Path, results: Results, directories: Sequence[Path]) -> None:
    """One picture for each set, of the first seed, the models side by side."""
    maps: dict[str, dict[str, np.ndarray]] = {}
    for (experiment, _), directory in zip(results, directories, strict=True):
        if not experiment.seed:
            of_set = maps.setdefault(experiment.data, {})
            of_set[experiment.model.upper()] = np.load(directory / "map.npy")
    for data, panels in maps.items():
        save_map(stem.with_name(f"{stem.name}-{data}.png"), panels)


FIGURES = {
    "fig5": Figure(
        "Classification of the representations", _classifiers, ("cross_entropy", "accuracy")
    ),
    "interpolation": Figure(
        "Straight lines between latent means",
        _explored,
        ("off_data", "off_data_pixels"),
        over="point",
        extra=_lines,
        caption="The first and the last image of a row are training images; between them the line "
        "between their latent means, decoded.",
    ),
    "map": Figure(
        "Map of the representations",
        _explored,
        ("agreement",),
        over="component",
        extra=_maps,
        caption="Test rows, coloured by label.",
    ),
    "latent": Figure(
        "Latent dimensions",
        _dimensions,
        ("train_observed", "test_observed", "test_missing"),
        over="latent_dim",
        log=True,
    ),
}
