"""The posterior op, forward and backward through autograd, against plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peers import EagerPosterior
from torch import Tensor, nn

import rvi_fast

T, GROUPS = 64, (25, 50, 100)


def step(module: nn.Module) -> Callable[..., None]:
    def run(index: Tensor, grad_z: Tensor, grad_kl: Tensor) -> None:
        z, kl = module(index)
        torch.autograd.backward((z, kl), (grad_z, grad_kl))
        for parameter in module.parameters():
            parameter.grad = None

    return run


@pytest.mark.parametrize("batch", [256, 4096, 65_536])
def bench_relay_sample(duel, device, batch):
    if device == "cpu" and batch > 4096:
        pytest.skip(f"no CUDA device (--device cuda) for a batch of {batch} rows")

    torch.manual_seed(0)
    N = 10_000 if batch < 10_000 else 1_000_000
    posterior = rvi_fast.RelayPosterior(N, T, groups=GROUPS, sparse=True)
    forms = {
        form: EagerPosterior(N, T, GROUPS, 0.5, form, sparse=True) for form in ("gather", "masked")
    }
    index = torch.randperm(N)[:batch]
    for peer in forms.values():
        peer.copy_from(posterior)
        torch.testing.assert_close(peer(index)[1], posterior(index).kl)
    peers = {f"eager {form}": step(peer) for form, peer in forms.items()}
    peers |= {f"compile {form}": step(torch.compile(peer)) for form, peer in forms.items()}

    def fresh() -> tuple[Tensor, Tensor, Tensor]:
        return torch.randperm(N)[:batch], torch.randn(batch, T), torch.randn(batch)

    goals = {256: (6, 10, 5), 4096: (4, 20, 4)}.get(batch, (None,) * 3)
    width, latent = posterior.layout.width, 4 * batch * T
    duel(
        f"posterior, forward and backward, B = {batch}, N = {N}",
        fresh,
        step(posterior),
        peers,
        goals={
            "eager masked": goals[0],
            "eager gather": goals[1],
            "compile masked": goals[2],
            "compile gather": goals[2],
        },
        rounds=60 if batch == 256 else 20,
        batch=batch,
        bytes=batch * width * 4 * 3 + 2 * latent,
        flops=batch * sum(GROUPS) * T * 2 * 2,
    )
