"""The row optimiser in its dense mode against torch's Adam on the whole table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rvi_fast

B, T, GROUPS = 256, 64, (25, 50, 100)


def dense_step(optimizer: torch.optim.Optimizer, table: Tensor) -> Callable[..., None]:
    table.grad = torch.zeros_like(table)  # kept, so that only the optimiser is timed

    def run(index: Tensor, values: Tensor, _: Tensor) -> None:
        optimizer.step()

    return run


@pytest.mark.parametrize("num_data", [10_000, 1_000_000])
def bench_row_adam(duel, num_data):
    posterior = rvi_fast.RelayPosterior(num_data, T, groups=GROUPS, sparse=True)
    row_adam = rvi_fast.optim.RowAdam(posterior)
    table = torch.zeros_like(posterior.rows, requires_grad=True)
    resting = torch.zeros_like(posterior.rows, requires_grad=True)
    sparse_adam = torch.optim.SparseAdam([resting])

    def ours(index: Tensor, _: Tensor, grad: Tensor) -> None:
        row_adam.before_read(index)
        posterior.rows.grad = grad
        row_adam.step()

    def lazy(index: Tensor, _: Tensor, grad: Tensor) -> None:
        resting.grad = grad
        sparse_adam.step()

    def fresh() -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(num_data, (B,)).unique()
        values = torch.randn(len(index), posterior.layout.width)
        grad = torch.sparse_coo_tensor(
            index[None], values, posterior.rows.shape, is_coalesced=True, check_invariants=False
        )
        return index, values, grad

    fused = dense_step(torch.optim.Adam([table], fused=True), table)
    large = num_data > 10_000
    duel(
        f"row optimiser, dense Adam semantics, B = {B}, N = {num_data}",
        fresh,
        ours,
        {"Adam(fused=True), whole table": fused, "SparseAdam": lazy},
        goals={"Adam(fused=True), whole table": 8},
        rounds=15 if large else 60,
        bytes=B * posterior.layout.width * 4 * 7,
        flops=B * posterior.layout.width * 14,
    )
