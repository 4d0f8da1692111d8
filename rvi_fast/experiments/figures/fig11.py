"""Figure 11: boxes of pixels that are missing together."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import MODELS, figure
from ..scales import Scale


@figure("fig11", "Missing boxes", ("test_observed", "test_missing"), over="boxes")
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, missing=0.0, boxes=boxes, seed=seed)
        for data in scale.images
        for model in MODELS
        for boxes in scale.boxes
        for seed in range(scale.seeds)
    ]
