"""Where the time of a call goes on the CPU: our C++, torch's matrix products, all that is around them.

    OMP_NUM_THREADS=1 python bench/limits.py

Medians in microseconds: warm, one call after another, and cold, with 64 MB read between two calls, as
the other side of a duel leaves the caches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from bench_training_step import batches, ours, plain
from peers import EagerPosterior
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import rvi_fast
from rvi_fast import _C
from rvi_fast.cpp.extension import cpu_path

N, B, T, GROUPS = 10_000, 256, 64, (25, 50, 100)
ROUNDS, SWEPT = 200, 16 << 20
Call = Callable[[], Any]


class Inside:
    """Seconds spent in the functions of the C++ part."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in dir(_C):
            function = getattr(_C, name)
            if callable(function) and not isinstance(function, type) and name[0] != "_":
                setattr(_C, name, self._timed(function))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return run


def medians(call: Call, inside: Inside, between: Call) -> tuple[float, float]:
    """Of a call, and of the C++ functions in it."""
    whole, native = [], []
    for _ in range(ROUNDS):
        between()
        inside.seconds, start = 0.0, time.perf_counter()
        call()
        whole.append(time.perf_counter() - start)
        native.append(inside.seconds)
    return statistics.median(whole) * 1e6, statistics.median(native) * 1e6


def products(call: Call) -> float:
    """Of a call, what torch's matrix products take."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(ROUNDS):
            call()
    names = ("aten::mm", "aten::addmm")
    return sum(e.self_cpu_time_total for e in profiled.key_averages() if e.key in names) / ROUNDS


def row_numbers() -> Iterator[Tensor]:
    return cycle([torch.randperm(N)[:B].sort().values for _ in range(64)])


def posterior_step(posterior: torch.nn.Module) -> Call:
    grads, numbers = (torch.randn(B, T), torch.randn(B)), row_numbers()

    def call() -> None:
        torch.autograd.backward(tuple(posterior(next(numbers))), grads)
        for parameter in posterior.parameters():
            parameter.grad = None

    return call


def row_step() -> Call:
    posterior = rvi_fast.RelayPosterior(N, T, groups=GROUPS, sparse=True)
    optimizer = rvi_fast.optim.RowAdam(posterior)
    shape, numbers = posterior.rows.shape, row_numbers()
    values = torch.randn(B, posterior.layout.width)

    def call() -> None:
        index = next(numbers)
        optimizer.before_read(index)
        posterior.rows.grad = torch.sparse_coo_tensor(
            index[None], values, shape, is_coalesced=True, check_invariants=False
        )
        optimizer.step()

    return call


def whole_adam() -> Call:
    table = torch.zeros(N, sum(GROUPS) + 2 * T, requires_grad=True)
    table.grad = torch.zeros_like(table)
    return torch.optim.Adam([table], fused=True).step


def loop(run: Callable[..., None]) -> Call:
    inputs = batches(N, B)
    fresh = cycle([inputs() for _ in range(16)])
    return lambda: run(*next(fresh))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    posterior = rvi_fast.RelayPosterior(N, T, groups=GROUPS, sparse=True)
    masked = EagerPosterior(N, T, GROUPS, 0.5, "masked", sparse=True)
    masked.copy_from(posterior)
    calls = {
        "posterior, forward and backward": posterior_step(posterior),
        "the same in torch, masked": posterior_step(masked),
        "RowAdam, catch-up and step": row_step(),
        "Adam(fused=True), whole table": whole_adam(),
        "a step of `fit`": loop(ours(N, B)),
        "a step of one's own loop": loop(ours(N, B, by_hand=False)),
        "the same in torch, Adam(fused=True)": loop(plain(N, "fused")),
    }
    inside, swept = Inside(), torch.zeros(SWEPT)
    print(f"one thread, {cpu_path()}\n")
    print("| | warm | in C++ | matrix products | rest | cold | in C++ |")
    print("|---|---|---|---|---|---|---|")
    for name, call in calls.items():
        for _ in range(20):
            call()
        warm, native = medians(call, inside, lambda: None)
        cold, native_cold = medians(call, inside, swept.sum)
        mm = products(call)
        rest = warm - native - mm
        print(
            f"| {name} | {warm:.0f} | {native:.0f} | {mm:.0f} | {rest:.0f} "
            f"| {cold:.0f} | {native_cold:.0f} |"
        )


if __name__ == "__main__":
    main()
