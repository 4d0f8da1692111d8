"""Figure 5: a classifier on the representations."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import MODELS, figure
from ..scales import Scale


@figure("fig5", "Classification of the representations", ("cross_entropy", "accuracy"))
def runs(scale: Scale) -> list[Experiment]:
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
