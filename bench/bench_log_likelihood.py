"""The masked likelihood, forward and backward, against plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers import eager_log_likelihood
from torch import Tensor

import rvi_fast

D = 784


def step(log_likelihood: Callable[..., Tensor]) -> Callable[..., None]:
    def run(x: Tensor, mean: Tensor, scale: Tensor, grad: Tensor) -> None:
        mean, scale = mean.requires_grad_(), scale.requires_grad_()
        log_likelihood(x, mean, scale).backward(grad)
        mean.grad = scale.grad = None

    return run


@pytest.mark.parametrize("batch", [256, 4096, 65_536])
def bench_gaussian_log_likelihood(duel, device, batch):
    if device == "cpu" and batch > 4096:
        pytest.skip(f"no CUDA device (--device cuda) for a batch of {batch} rows")

    def fresh() -> tuple[Tensor, ...]:
        x = torch.rand(batch, D)
        x[torch.rand(batch, D) < 0.5] = torch.nan
        return x, torch.rand(batch, D), torch.tensor(0.3), torch.randn(batch)

    x, mean, scale, _ = fresh()
    torch.testing.assert_close(
        rvi_fast.gaussian_log_likelihood(x, mean, scale), eager_log_likelihood(x, mean, scale)
    )
    duel(
        f"masked Gaussian log-likelihood, forward and backward, B = {batch}, D = {D}",
        fresh,
        step(rvi_fast.gaussian_log_likelihood),
        {
            "eager": step(eager_log_likelihood),
            "compile": step(torch.compile(eager_log_likelihood)),
        },
        goals={"eager": 5, **({"compile": 1.3} if batch == 4096 else {})},
        rounds=60 if batch == 256 else 20,
        batch=batch,
        bytes=batch * D * 4 * 5,
        flops=batch * D * 12,
    )
