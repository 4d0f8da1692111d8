"""The decoder's last layer and the masked likelihood, forward and backward, against plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers import eager_log_likelihood
from torch import Tensor
from torch.nn.functional import linear

import rvi_fast

D, H = 784, 64


def eager(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    return eager_log_likelihood(x, linear(hidden, weight, bias), scale)


def layer_by_layer(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, scale: Tensor
) -> Tensor:
    return rvi_fast.gaussian_log_likelihood(x, linear(hidden, weight, bias), scale)


def step(log_likelihood: Callable[..., Tensor]) -> Callable[..., None]:
    def run(*inputs: Tensor) -> None:
        *parameters, x, grad = inputs
        hidden, weight, bias, scale = (tensor.requires_grad_() for tensor in parameters)
        log_likelihood(hidden, weight, bias, x, scale).backward(grad)
        for parameter in parameters:
            parameter.grad = None

    return run


def known_gradient(hidden: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, x: Tensor, grad):
    """What a training step calls whose loss is a mean: value and gradients at once."""
    with torch.no_grad():
        torch.ops.rvi_fast.linear_log_likelihood_bwd(
            grad[None], hidden[None], weight, bias, x, scale, None, "gaussian", True, True, True
        )


@pytest.mark.parametrize("batch", [256, 4096, 65_536])
def bench_linear_gaussian_log_likelihood(duel, device, batch):
    if device == "cpu" and batch > 4096:
        pytest.skip(f"no CUDA device (--device cuda) for a batch of {batch} rows")

    def fresh() -> tuple[Tensor, ...]:
        x = torch.rand(batch, D)
        x[torch.rand(batch, D) < 0.5] = torch.nan
        layer = torch.randn(D, H) / H**0.5, torch.randn(D), torch.tensor(0.3)
        return torch.randn(batch, H), *layer, x, torch.full((batch,), -1 / batch)

    hidden, weight, bias, scale, x, _ = fresh()
    torch.testing.assert_close(
        rvi_fast.linear_gaussian_log_likelihood(hidden, weight, bias, x, scale),
        eager(hidden, weight, bias, x, scale),
        rtol=1e-5,
        atol=1e-3,
    )
    duel(
        f"linear layer and masked likelihood, value and gradients, B = {batch}, H = {H}, D = {D}",
        fresh,
        known_gradient,
        {
            "rvi_fast through autograd": step(rvi_fast.linear_gaussian_log_likelihood),
            "torch's layer, rvi_fast's likelihood": step(layer_by_layer),
            "eager": step(eager),
            "compile": step(torch.compile(eager)),
        },
        goals={"torch's layer, rvi_fast's likelihood": 1.3},
        rounds=60 if batch == 256 else 20,
        batch=batch,
        bytes=4 * (batch * (D + 2 * H) + 2 * D * H),
        flops=batch * D * (6 * H + 12),
    )


def known_gradient_of_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, grad: Tensor
) -> None:
    with torch.no_grad():
        torch.ops.rvi_fast.linear_log_likelihood_bwd(
            grad[None], hidden[None], weight, bias, x, None, None, "bernoulli", True, True, False
        )


def eager_of_logits(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    logits, observed = linear(hidden, weight, bias), ~x.isnan()
    entries = x.nan_to_num() * logits - torch.nn.functional.softplus(logits)
    return torch.where(observed, entries, 0.0).sum(-1)


@pytest.mark.parametrize("batch", [256, 4096])
def bench_linear_bernoulli_log_likelihood(duel, batch):
    def fresh() -> tuple[Tensor, ...]:
        x = (torch.rand(batch, D) < 0.3).float()
        x[torch.rand(batch, D) < 0.5] = torch.nan
        layer = torch.randn(D, H) / H**0.5, torch.randn(D)
        return torch.randn(batch, H), *layer, x, torch.full((batch,), -1 / batch)

    hidden, weight, bias, x, _ = fresh()
    torch.testing.assert_close(
        rvi_fast.linear_bernoulli_log_likelihood(hidden, weight, bias, x),
        eager_of_logits(hidden, weight, bias, x),
        rtol=1e-5,
        atol=1e-3,
    )

    def eager_step(hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, grad: Tensor) -> None:
        parameters = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
        eager_of_logits(*parameters, x).backward(grad)
        for parameter in parameters:
            parameter.grad = None

    duel(
        f"linear layer and masked zeros and ones, value and gradients, B = {batch}, H = {H}, D = {D}",
        fresh,
        known_gradient_of_logits,
        {"eager": eager_step},
        goals={},
        rounds=60 if batch == 256 else 20,
        batch=batch,
        bytes=4 * (batch * (D + 2 * H) + 2 * D * H),
        flops=batch * D * (6 * H + 20),
    )
