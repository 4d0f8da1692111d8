"""Figure 5: a classifier on the representations."""

from __future__ import annotations

from .experiment import Experiment
from .figure import MODELS, Figure
from .scales import Scale


def _classifiers(scale: Scale) -> list[Experiment]:
    return [
        Experiment(
            data=data,
            model=model,
            missing=0.0,
            classifier_epochs=scale.classifier_epochs,
            seed=seed,
            **scale.common,
        )
        for data in scale.images
        for model in MODELS
        for seed in range(scale.seeds)
    ]


FIGURES = {
    "fig5": Figure(
        "Classification of the representations", _classifiers, ("cross_entropy", "accuracy")
    )
}
