"""Figures 1, 2, 6, 8 and 10: how fast and how far the posteriors are learned."""

from __future__ import annotations

from .experiment import Experiment
from .figure import MODELS, Figure
from .scales import Scale


def _grid(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, lr=lr, hidden=hidden, missing=missing, seed=seed)
        for data in scale.images
        for model in MODELS
        for lr in scale.lrs
        for hidden in scale.decoders
        for missing in scale.grid_missing
        for seed in range(scale.seeds)
    ]


def _at_one_rate(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, model=model, missing=missing, seed=seed)
        for data in scale.images
        for missing in scale.curve_missing
        for model in MODELS
        for seed in range(scale.seeds)
    ]


def _posterior_rates(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, posterior_lr=rate, seed=seed)
        for data in scale.images[:1]
        for rate in scale.posterior_lrs
        for seed in range(scale.seeds)
    ]


def _forms(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, form=form, seed=seed)
        for data in scale.images
        for form in ("linear", "cluster")
        for seed in range(scale.seeds)
    ]


def _ratios(scale: Scale) -> list[Experiment]:
    return [
        scale.experiment(data=data, top=ratio, seed=seed)
        for data in scale.images[:1]
        for ratio in scale.ratios
        for seed in range(scale.seeds)
    ]


FIGURES = {
    "fig1": Figure("Convergence over the whole grid", _grid, ("elastic",)),
    "fig2": Figure(
        "Convergence at learning rate 0.001", _at_one_rate, ("elastic",), panels=("data", "missing")
    ),
    "fig6": Figure(
        "Learning rate of the posterior",
        _posterior_rates,
        ("train_observed", "test_observed"),
        over="posterior_lr",
        log=True,
    ),
    "fig8": Figure("Clusters against linear relays", _forms, ("elastic",), curves=("form",)),
    "fig10": Figure("Coefficients kept", _ratios, ("elastic",), curves=("top",)),
}
