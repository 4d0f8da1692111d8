"""Figure 6: learning rates of the posteriors beside that of the decoder."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import figure
from ..scales import Scale


@figure(
    "fig6",
    "Learning rate of the posterior",
    ("train_observed", "test_observed"),
    over="posterior_lr",
    log=True,
)
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, posterior_lr=rate, seed=seed)
        for data in scale.images[:1]
        for rate in scale.posterior_lrs
        for seed in range(scale.seeds)
    ]
