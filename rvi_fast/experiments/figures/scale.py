"""Convergence under both rules of the likelihood's scale; not a figure of the paper."""

from __future__ import annotations

from dataclasses import replace

from ..experiment import Experiment
from ..figure import figure
from ..scales import Scale


@figure(
    "scale",
    "Convergence at learning rate 0.001, by how the scale is learned",
    ("elastic",),
    curves=("model", "scale_update"),
    panels=("data", "missing"),
    labels={"scale_update": "scale"},
)
def runs(scale: Scale) -> list[Experiment]:
    return [
        replace(
            scale.experiment(data=data, model=model, missing=missing, seed=seed),
            scale_update=rule,
        )
        for data in scale.images
        for missing in scale.curve_missing
        for model in ("rvi", "vad")
        for rule in ("adam", "closed-form")
        for seed in range(scale.seeds)
    ]
