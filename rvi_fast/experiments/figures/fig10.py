"""Figure 10: how many coefficients of each group are kept."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import figure
from ..scales import Scale


@figure("fig10", "Coefficients kept", ("elastic",), curves=("top",))
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, top=ratio, seed=seed)
        for data in scale.images[:1]
        for ratio in scale.ratios
        for seed in range(scale.seeds)
    ]
