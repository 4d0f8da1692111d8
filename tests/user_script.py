"""A user's script, which type checkers have to understand: see tests/test_types.py."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn

import rvi_fast
from rvi_fast.training import callbacks, load_checkpoint


class Log(callbacks.Callback):
    def __init__(self) -> None:
        self.best = float("inf")

    def __call__(self, model: rvi_fast.models.LatentModel, history: rvi_fast.History) -> bool:
        self.best = min(self.best, history["held_out"][-1])
        return history.epochs >= 8


def main(run_dir: Path) -> Tensor:
    x = torch.randn(200, 2) @ torch.randn(2, 6)
    x[torch.rand(200, 6) < 0.3] = torch.nan
    model = rvi_fast.models.rvi(200, 6, latent_dim=4, groups=(8, 16), form="linear")
    stop = callbacks.EarlyStopping(5, quantity="held_out", restore_best=True)
    log, schedule = Log(), callbacks.LearningRate.cosine(10, warmup=1)
    history = rvi_fast.fit(
        model, x, epochs=10, optimizer="dense", held_out=0.1, progress=False, run_dir=run_dir,
        callbacks=[log, stop, schedule, lambda model, history: history.epochs > 9],
    )  # fmt: skip
    losses: list[float] = history["loss"]
    filled: Tensor = rvi_fast.impute(model, x)
    draws = assert_type(rvi_fast.impute(model, x, num_draws=3), Tensor)
    bounds = rvi_fast.impute(model, x, interval=0.5, num_draws=20)
    new = rvi_fast.infer(model, x[:5], steps=3, scale_factor="held-out")
    objective = model(torch.arange(5), x[:5], kl_weight=0.5)
    assert_type(objective, rvi_fast.models.Objective)
    gradient = torch.autograd.grad(objective.loss, list(model.decoder.parameters()))[0]
    posterior = rvi_fast.RelayPosterior(100, 8, groups=(4, 6))
    z, kl = assert_type(posterior(torch.tensor([3, 1, 4]), num_samples=2), rvi_fast.RelaySample)
    decoder = nn.Sequential(nn.Linear(8, 6))
    likelihood = rvi_fast.GaussianLikelihood(6)
    log_prob = assert_type(likelihood(x[:3].nan_to_num(), decoder(z)), Tensor)
    rows = rvi_fast.optim.RowAdam(posterior, lr=1e-2, mode="lazy")
    torch.autograd.backward(kl.mean() - log_prob.mean())
    rows.step()
    metadata = load_checkpoint(run_dir).metadata
    print(len(losses), log.best, draws.shape, bounds.shape, gradient.shape, sorted(metadata))
    print(rvi_fast.load(run_dir).num_data, new.mean().shape, rvi_fast.elastic(x, filled))
    return filled
