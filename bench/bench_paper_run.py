"""The paper's main run, whole: 10,000 points, batches of 256, 250 epochs."""

from __future__ import annotations

import torch
from bench_training_step import plain

import rvi_fast

N, D, B = 10_000, 784, 256


def bench_paper_run(duel, device):
    epochs = 250
    x = torch.rand(N, D)
    x[torch.rand(N, D) < 0.5] = torch.nan

    def ours() -> None:
        with torch.device(device):
            model = rvi_fast.models.rvi(N, D)
        rvi_fast.fit(model, x, epochs=epochs, batch_size=B, eval_every=0, progress=False)

    def eager() -> None:
        with torch.device(device):
            step = plain(N, "fused")
        for _ in range(epochs):
            for index in torch.randperm(N, device=device).split(B):
                step(index, x[index])

    duel(
        f"the paper's main run, {epochs} epochs, N = {N}, B = {B}",
        lambda: (),
        ours,
        {"torch, Adam(fused=True)": eager},
        goals={"torch, Adam(fused=True)": 65 / 45},
        rounds=1,
        warmup=0,
        calls=1,
        batch=N * epochs,
    )
