"""The update of the shared parameters against torch's Adam on the same tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import decoder
from torch import Tensor, nn

from rvi_fast.ops import ops

K, T, D = 175, 64, 784


def adam(shapes: list[torch.Size], start: Tensor, fused: bool) -> tuple[list[Tensor], Callable]:
    """Parameters of these shapes, and a step for the gradient of all of them in one."""
    sizes = [shape.numel() for shape in shapes]
    parts = zip(start.split(sizes), shapes, strict=True)
    params = [nn.Parameter(part.clone().view(shape)) for part, shape in parts]
    optimizer = torch.optim.Adam(params, fused=fused)

    def run(grads: Tensor) -> None:
        for param, grad in zip(params, grads[0].split(sizes), strict=True):
            param.grad = grad.view_as(param)
        optimizer.step()

    return params, run


def bench_adam_step(duel):
    modules = decoder(T, D)
    shapes = [torch.Size((K, T)), *(p.shape for p in modules.parameters()), torch.Size((D,))]
    params = torch.randn(sum(shape.numel() for shape in shapes))
    (plain, plain_step), (_, fused_step) = (adam(shapes, params, fused) for fused in (False, True))
    moments = torch.zeros_like(params), torch.zeros_like(params)
    step, lr = torch.zeros(1, dtype=torch.int64), torch.tensor(1e-3, dtype=torch.float64)

    def ours(grads: Tensor) -> None:
        ops.adam_step(params, *moments, grads, step, lr, 0.9, 0.999, 1e-8, 0.0)

    def fresh() -> tuple[Tensor]:
        return (torch.randn(1, len(params)),)

    (grads,) = fresh()
    ours(grads)
    plain_step(grads)
    expected = torch.cat([p.detach().flatten() for p in plain])
    torch.testing.assert_close(params, expected, rtol=1e-5, atol=1e-6)
    duel(
        f"shared parameters, one step, {len(shapes)} tensors with {len(params)} numbers",
        fresh,
        ours,
        {"Adam()": plain_step, "Adam(fused=True)": fused_step},
        goals={},
        bytes=len(params) * 4 * 7,
        flops=len(params) * 14,
    )
