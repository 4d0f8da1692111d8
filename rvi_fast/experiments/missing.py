"""Figures 3, 4 and 11: what missing entries do to reconstruction and imputation."""

from __future__ import annotations

from .experiment import Experiment
from .figure import MODELS, Figure
from .scales import Scale


def _rates(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, missing=missing, seed=seed)
        for data in (*scale.images, *scale.tables)
        for model in MODELS
        for missing in scale.missing
        for seed in range(scale.seeds)
    ]


def _hidden(scale: Scale) -> list[Experiment]:
    return [experiment for experiment in _rates(scale) if experiment.missing > 0]


def _boxes(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, missing=0.0, boxes=boxes, seed=seed)
        for data in scale.images
        for model in MODELS
        for boxes in scale.boxes
        for seed in range(scale.seeds)
    ]


FIGURES = {
    "fig3": Figure("Test error by missing rate", _rates, ("test_observed",), over="missing"),
    "fig4": Figure("Imputation by missing rate", _hidden, ("test_missing",), over="missing"),
    "fig11": Figure("Missing boxes", _boxes, ("test_observed", "test_missing"), over="boxes"),
}
