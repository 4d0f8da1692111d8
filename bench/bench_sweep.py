"""Models side by side by `fit_many`, against the same ones by `fit` in turn, and against one alone."""

from __future__ import annotations

import copy

import numpy as np
import torch

import rvi_fast

N, D, EPOCHS, JOBS = 10_000, 784, 60, 2
MODELS = {"cpu": 4, "cuda": 16}
# peer -> its time over ours: processes of two cores, and steps that fill a GPU together
GOALS = {"cpu": {"one after another": 1 / 0.6}, "cuda": {"one of them": 1 / 3}}


def bench_sweep(duel, device):
    pixels = np.random.default_rng(0).integers(0, 256, (N, D), dtype=np.uint8)
    x, number = torch.from_numpy(pixels).to(device), MODELS[device]
    first = [
        rvi_fast.models.rvi(N, D, generator=torch.Generator(device).manual_seed(seed))
        for seed in range(number)
    ]
    options = {"epochs": EPOCHS, "eval_every": 0, "progress": False}
    trained = {}

    def together():
        models = copy.deepcopy(first)
        runs = [{"model": model, "seed": seed} for seed, model in enumerate(models)]
        rvi_fast.fit_many(runs, x=x, jobs=JOBS, **options)
        trained["together"] = models

    def in_turn():
        models = copy.deepcopy(first)
        for seed, model in enumerate(models):
            rvi_fast.fit(model, x, seed=seed, **options)
        trained["in turn"] = models

    def alone():
        rvi_fast.fit(copy.deepcopy(first[0]), x, **options)

    duel(
        f"{number} models of one shape, {EPOCHS} epochs each, N = {N}",
        lambda: (),
        together,
        {"one after another": in_turn, "one of them": alone},
        goals=GOALS[device],
        rounds=2,
        warmup=0,
        calls=1,
    )
    for model, other in zip(trained["together"], trained["in turn"], strict=True):
        for own, expected in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(own, expected)
