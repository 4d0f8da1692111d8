"""Latent dimensions: how many of them a table needs; not a figure of the paper."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import figure
from ..scales import Scale


@figure(
    "latent",
    "Latent dimensions",
    ("train_observed", "test_observed", "test_missing"),
    over="latent_dim",
    log=True,
)
def runs(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, latent_dim=count, seed=seed)
        for data in scale.images[:1]
        for count in scale.latent_dims
        for seed in range(scale.seeds)
    ]
