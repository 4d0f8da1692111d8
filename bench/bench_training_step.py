"""A whole training step, as `fit` runs it, against what one would write in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from peers import EagerPosterior, decoder, eager_log_likelihood
from torch import Tensor, nn

import rvi_fast
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.training.inputs.prepare import Inputs
from rvi_fast.training.loop.capture import BatchStep, CapturedStep
from rvi_fast.training.loop.fused_step import fused_step
from rvi_fast.training.loop.step import Step, make_step

T, D, GROUPS = 64, 784, (25, 50, 100)


class Batch:
    """Data that are the batch at hand, where a graph finds them."""

    def __init__(self, batch: int) -> None:
        self.x = torch.empty(batch, D)

    def load(self, index: Tensor) -> None:
        pass

    def loaded(self, index: Tensor) -> tuple[Tensor, None]:
        return self.x, None


def ours(num_data: int, batch: int, *, by_hand: bool = True) -> Callable[..., None]:
    """As `fit` runs it, or the loop that a user of the modules writes."""
    model = rvi_fast.models.rvi(num_data, D, latent_dim=T, groups=GROUPS)
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior)
    others = [p for n, p in model.named_parameters() if n != "posterior.rows"]
    if by_hand:
        data = Batch(batch)
        device, dtype = data.x.device, data.x.dtype
        step = make_step(model, rows, shared_adam([{"params": others, "lr": 1e-3}]))
        if device.type == "cuda":
            return captured(step, num_data, batch)
        run_batch = BatchStep(step, data, device, dtype)

        def run_fit(index: Tensor, x: Tensor) -> None:
            data.x.copy_(x)
            run_batch(index, batch)

        return run_fit
    shared = torch.optim.Adam(others, fused=True)

    def run(index: Tensor, x: Tensor) -> None:
        loss = model(index, x).loss
        rows.zero_grad()
        shared.zero_grad()
        loss.backward()
        rows.step()
        shared.step()

    return run


def captured(step: Step, num_data: int, batch: int) -> Callable[..., None]:
    """As `fit` runs it on a GPU: a step reads its rows of the data by their numbers."""
    x = torch.rand(num_data, D)
    x[torch.rand(num_data, D) < 0.5] = torch.nan
    inputs = Inputs(x, None)
    run_batch = fused_step(step, inputs, batch) or BatchStep(step, inputs, x.device, x.dtype)
    replayed = CapturedStep(run_batch, step.rows, 10_000)
    return lambda index, _: replayed(index, batch)


class PlainModel(nn.Module):
    """RVI in plain torch, masked dense form."""

    def __init__(self, num_data: int, *, sparse: bool) -> None:
        super().__init__()
        self.posterior = EagerPosterior(num_data, T, GROUPS, 0.5, "masked", sparse=sparse)
        self.decoder = decoder(T, D)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, index: Tensor, x: Tensor) -> Tensor:
        z, kl = self.posterior(index)
        return (kl - eager_log_likelihood(x, self.decoder(z), self.log_scale.exp())).mean()


def plain(num_data: int, optimizer: str, *, compiled: str = "") -> Callable[..., None]:
    sparse = optimizer == "SparseAdam"
    model = PlainModel(num_data, sparse=sparse)
    tables = [model.posterior.coefficients, model.posterior.deviation, model.posterior.log_std]
    others = [p for p in model.parameters() if all(p is not table for table in tables)]
    if sparse:
        optimizers = [torch.optim.SparseAdam(tables), torch.optim.Adam(others)]
    else:
        optimizers = [torch.optim.Adam(model.parameters(), fused=optimizer == "fused")]
    forward = torch.compile(model, mode=compiled) if compiled else model

    def run(index: Tensor, x: Tensor) -> None:
        loss = forward(index, x)
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()

    return run


def cases() -> list[tuple[int, int]]:
    """(N, B)."""
    return [(10_000, 256), (10_000, 4096), (100_000, 65_536), (1_000_000, 256)]


def batches(num_data: int, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Row numbers, and data of which half are missing."""

    def fresh() -> tuple[Tensor, Tensor]:
        x = torch.rand(batch, D)
        x[torch.rand(batch, D) < 0.5] = torch.nan
        return torch.randperm(num_data)[:batch], x

    return fresh


def peers_of(num_data: int, batch: int, device: str) -> dict[str, Callable[..., None]]:
    """What plain torch offers; with a million rows what is not hopeless."""
    fused, sparse = plain(num_data, "fused"), plain(num_data, "SparseAdam")
    if num_data >= 1_000_000:
        return {"torch, Adam(fused=True)": fused, "torch, SparseAdam": sparse}
    # on a GPU with CUDA graphs as well; trying out its own products takes it minutes
    compiled = "reduce-overhead" if device == "cuda" else "default"
    return {
        "torch, Adam": plain(num_data, "default"),
        "torch, Adam(fused=True)": fused,
        f"torch.compile({compiled}), Adam(fused=True)": plain(num_data, "fused", compiled=compiled),
        "torch, SparseAdam": sparse,
    }


def with_fewer_rows(batch: int, *, by_hand: bool) -> Callable[..., None]:
    """Our own step at N = 10,000."""
    small = ours(10_000, batch, by_hand=by_hand)
    own = cycle([torch.randperm(10_000)[:batch] for _ in range(64)])
    return lambda _, x: small(next(own), x)


@pytest.mark.parametrize(("num_data", "batch"), cases())
@pytest.mark.parametrize("loop", ["training step", "training step, a loop of one's own"])
def bench_training_step(duel, device, loop, num_data, batch):
    if device == "cpu" and batch > 256:
        pytest.skip(f"no CUDA device (--device cuda) for a batch of {batch} rows")
    by_hand = loop == "training step"
    peers = peers_of(num_data, batch, device)
    if device == "cuda":
        by_size = {256: (40, 40, 5), 4096: (None, None, 5), 65_536: (7, 7, 4)}[batch]
        ratios = by_size if num_data < 1_000_000 else (60, 2.5)
    elif by_hand:
        ratios = (9, 4.5, 4.5, 4.5) if num_data < 1_000_000 else (100, 2.5)
    else:
        ratios = (10, 3.3, 3.3, 3) if num_data < 1_000_000 else (180, 3)
    goals = dict(zip(peers, ratios, strict=False))
    if num_data >= 1_000_000:
        peers["rvi_fast, N = 10,000"] = with_fewer_rows(batch, by_hand=by_hand)
        goals["rvi_fast, N = 10,000"] = 1 / 1.5 if by_hand else 1 / 1.1
    duel(
        f"{loop}, B = {batch}, N = {num_data}, decoder 64-[64, 64]-784",
        batches(num_data, batch),
        ours(num_data, batch, by_hand=by_hand),
        peers,
        goals=goals,
        rounds=12 if num_data == 1_000_000 else 40,
        batch=batch,
        # rows with their moments, and the data
        bytes=batch * (7280 + 4 * D),
        flops=batch * (67_000 + 350_000),
    )
