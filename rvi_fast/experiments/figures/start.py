"""Convergence from the solution of a linear model; not a figure of the paper."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import figure
from ..scales import Scale

# of rows: a tenth of it, the default, leaves rows where the linear model has put them for longer
ROWS_LR = 0.01


@figure(
    "start",
    "Convergence from drawn values and from a linear model",
    ("elastic",),
    curves=("model", "linear_factors", "posterior_lr"),
    panels=("data", "missing"),
    labels={"linear_factors": "linear factors"},
)
def runs(scale: Scale) -> list[Experiment]:
    starts = ((False, None), (False, ROWS_LR), (True, ROWS_LR))
    found = []
    for data in scale.images:
        half = scale.experiment(data=data).latent_dim // 2
        found += [
            scale.experiment(
                data=data,
                model=model,
                missing=missing,
                seed=seed,
                linear_factors=half if linear else 0,
                posterior_lr=rows_lr,
            )
            for missing in scale.curve_missing
            for model in ("rvi", "vad")
            for linear, rows_lr in starts
            for seed in range(scale.seeds)
        ]
    return found
