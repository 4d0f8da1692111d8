"""Figure 3: what missing entries do to the reconstruction of test rows."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import MODELS, figure
from ..scales import Scale


@figure("fig3", "Test error by missing rate", ("test_observed",), over="missing")
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, missing=missing, seed=seed)
        for data in (*scale.images, *scale.tables)
        for model in MODELS
        for missing in scale.missing
        for seed in range(scale.seeds)
    ]
