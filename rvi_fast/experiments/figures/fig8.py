"""Figure 8: relays that are combined linearly, and clusters."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import figure
from ..scales import Scale


@figure("fig8", "Clusters against linear relays", ("elastic",), curves=("form",))
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, form=form, seed=seed)
        for data in scale.images
        for form in ("linear", "cluster")
        for seed in range(scale.seeds)
    ]
