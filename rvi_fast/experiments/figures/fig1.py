"""Figure 1: how fast posteriors are learned, over the whole grid of sizes and rates."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import MODELS, figure
from ..scales import Scale


@figure("fig1", "Convergence over the whole grid", ("elastic",))
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, lr=lr, hidden=hidden, missing=missing, seed=seed)
        for data in scale.images
        for model in MODELS
        for lr in scale.lrs
        for hidden in scale.decoders
        for missing in scale.grid_missing
        for seed in range(scale.seeds)
    ]
