"""Figure 2: how fast posteriors are learned at one learning rate."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import MODELS, figure
from ..scales import Scale


@figure("fig2", "Convergence at learning rate 0.001", ("elastic",), panels=("data", "missing"))
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, missing=missing, seed=seed)
        for data in scale.images
        for missing in scale.curve_missing
        for model in (*MODELS, "vad-authors")
        for seed in range(scale.seeds)
    ]
