"""What a GPU can do, and every launch of a captured training step with its time.

`python bench/gpu_launches.py times DIR` prints as it goes and writes DIR/launches.json after each
figure; `few` only launches every kernel at the standard sizes, for compute-sanitizer. With
`--device cpu` both run where there is no GPU, to see that they run.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rvi_fast
from rvi_fast import ops
from rvi_fast._info import run_every_op
from rvi_fast.layout import RowLayout
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.training import distributed
from rvi_fast.training.distributed.launch import begin_total
from rvi_fast.training.inputs.prepare import Inputs
from rvi_fast.training.loop.ahead import STEPS
from rvi_fast.training.loop.capture import BatchStep, CapturedStep
from rvi_fast.training.loop.fused_step import fused_step
from rvi_fast.training.loop.step import BoundStep, make_step

T, D, GROUPS = 64, 784, (25, 50, 100)
LAYOUT = RowLayout.resolve(T, GROUPS)
CONSTANTS = (list(LAYOUT.groups), list(LAYOUT.kept), LAYOUT.form)
PRECISIONS = ("highest", "high", "medium")
BATCHES = (256, 4096, 65_536)


class Report:
    """Figures by name, on disk after each."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, {}

    def add(self, name: str, value: Any, remark: str = "") -> None:
        self.found[name] = value
        shown = f"{value:.2f}" if isinstance(value, float) else value
        print(f"{name:<66} {shown} {remark}", flush=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def microseconds(
    function: Callable[[], Any], device: torch.device, rounds: int = 15, calls: int = 5
) -> float:
    """Median over rounds of the mean time of a call."""
    times = []
    for _ in range(rounds + 2):
        wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        wait(device)
        times.append((time.perf_counter() - start) / calls * 1e6)
    return sorted(times[2:])[rounds // 2]


def ceilings(report: Report, device: torch.device, scale: int) -> float:
    """Bytes per second of a copy, products per second, and what a launch costs."""
    source = torch.rand((1 << 28) // scale, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / microseconds(lambda: target.copy_(source), device) / 1e3
    report.add("copy, GB/s", copy)
    size = 8192 // scale
    for dtype, precision in (
        (torch.float32, "highest"),
        (torch.float32, "high"),
        (torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
        rate = 2 * size**3 / microseconds(lambda a=a, b=b: a @ b, device, 9, 2) / 1e6
        report.add(f"matrix product, {dtype}, {precision}, TFLOP/s", rate)
    torch.set_float32_matmul_precision("highest")
    if device.type == "cuda":
        small = torch.zeros(256, device=device)
        graph = torch.cuda.CUDAGraph()
        small.add_(1)
        with torch.cuda.graph(graph):
            for _ in range(50):
                small.add_(1)
        report.add(
            "a tiny kernel in a chain of a graph, us", microseconds(graph.replay, device) / 50
        )
        launch = microseconds(lambda: small.add_(1), device, calls=200)
        report.add("a tiny kernel, launched, us", launch)
    return copy


def step_of(
    num_data: int, batch: int, pixels: bool, device: torch.device, grouped: bool
) -> tuple[BoundStep, rvi_fast.optim.RowAdam]:
    """A step of the standard model as `fit` makes it, alone or in a group of processes."""
    model = rvi_fast.models.rvi(num_data, D, latent_dim=T, groups=GROUPS).to(device)
    x = torch.randint(0, 256, (num_data, D), dtype=torch.uint8, device=device)
    observed = torch.rand(num_data, D, device=device) < 0.5
    inputs = Inputs(x, observed)
    if not pixels:
        inputs = Inputs(torch.where(observed, x / 255, torch.nan), None)
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior)
    others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    shared = shared_adam([{"params": others, "lr": 1e-3}])
    if grouped:
        shared.reduce = begin_total
    step = make_step(model, rows, shared)
    return fused_step(step, inputs, batch) or BatchStep(step, inputs, device, torch.float32), rows


def captured_steps(
    report: Report, device: torch.device, num_data: int, batch: int, *, grouped: bool = False
) -> None:
    """Launched one by one, as `fit` does it, the graph alone, and each of its launches."""
    kinds = [*((True, each) for each in PRECISIONS), (False, "highest")]
    for pixels, precision in kinds[:1] if grouped else kinds:
        torch.set_float32_matmul_precision(precision)
        step, rows = step_of(num_data, batch, pixels, device, grouped)
        kind = "uint8" if pixels else "float32"
        name = f"step, N = {num_data}, B = {batch}, {kind}, {precision}"
        name += ", in a group of one" if grouped else ""
        report.add(
            f"{name}: launched one by one, us",
            microseconds(on_rows(step, num_data, batch, device), device, 9),
        )
        if device.type != "cuda":
            continue
        captured = CapturedStep(step, rows, 100_000)
        replayed = on_rows(captured, num_data, batch, device)
        for _ in range(2 * STEPS):  # all batches that a graph finds on the device are of real rows
            replayed()
        us = microseconds(replayed, device, 15, 20)
        report.add(f"{name}: as fit does it, us", us, f"{us * 1e3 / batch:.2f} ns a row")
        graph = next(graph for graph in captured._graphs.values() if graph is not None).graph
        replay = partial(replay_alone, rows, graph)
        report.add(f"{name}: the graph alone, us", microseconds(replay, device, 15, 20))
        if precision == "highest" and pixels:
            report.add(f"{name}: launches, us each", launches(replay, device))
        captured.close()
    torch.set_float32_matmul_precision("highest")


def in_a_group(report: Report, device: torch.device) -> None:
    """The step of a process that sums what it shares with others, of whom there are none."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= alone | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    distributed.init(device=device)
    captured_steps(report, device, 10_000, 256, grouped=True)
    distributed.leave()


def on_rows(
    step: Callable[[Tensor, int], Any], num_data: int, batch: int, device: torch.device
) -> Callable[[], Any]:
    """Calls a step, with other rows each time: the same ones would stay in the caches."""
    orders = cycle([torch.randperm(num_data, device=device)[:batch] for _ in range(20)])
    return lambda: step(next(orders), batch)


def replay_alone(rows: rvi_fast.optim.RowAdam, graph: torch.cuda.CUDAGraph) -> None:
    """What `fit` does beside: nothing but the count of steps."""
    rows.before_replay()
    graph.replay()


def launches(function: Callable[[], Any], device: torch.device) -> list[tuple[str, float]]:
    """Name and time of every kernel of a call, in order."""
    from torch.profiler import ProfilerActivity, profile

    function()
    wait(device)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        for _ in range(5):
            function()
        wait(device)
    events = [e for e in profiled.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    last = events[-(len(events) // 5) :]
    return [(e.name[:90], round(e.time_range.end - e.time_range.start, 2)) for e in last]


def posterior_alone(report: Report, device: torch.device, num_data: int) -> None:
    """The posterior op, forward and backward, on random rows of a large table."""
    kernels = ops.implementation(device.type)
    rows = torch.randn(num_data, LAYOUT.width, device=device) * 0.01
    relays = torch.randn(LAYOUT.num_relays, T, device=device)
    seed = torch.tensor([7], device=device)
    for batch, precision in product(BATCHES, PRECISIONS):
        if batch > num_data:
            continue
        torch.set_float32_matmul_precision(precision)
        grads = torch.randn(1, batch, T, device=device), torch.randn(batch, device=device)
        saved: list[Any] = []

        def forward(index: Tensor, _: int, saved: list[Any] = saved) -> None:
            saved[:] = kernels.relay_sample_fwd(rows, relays, index, seed, None, *CONSTANTS, 1)

        def backward(index: Tensor, _: int, saved: Any = saved, grads: Any = grads) -> None:
            inputs = (*grads, rows, relays, index, seed, None, *saved[2:])
            kernels.relay_sample_bwd(*inputs, *CONSTANTS, True, True)

        there = microseconds(on_rows(forward, num_data, batch, device), device)
        back = microseconds(on_rows(backward, num_data, batch, device), device)
        name = f"relay_sample, B = {batch}, {precision}"
        report.add(f"{name}: forward, us", there)
        both = f"{(there + back) * 1e3 / batch:.2f} ns a row both"
        report.add(f"{name}: backward, us", back, both)
    torch.set_float32_matmul_precision("highest")


def rows_alone(report: Report, device: torch.device, num_data: int, copy: float) -> None:
    """The rows' optimiser on random rows of a large table."""
    posterior = rvi_fast.RelayPosterior(num_data, T, groups=GROUPS, device=device, sparse=True)
    rows = rvi_fast.optim.RowAdam(posterior)
    rows.reserve(10_000)
    for batch in BATCHES:
        if batch > num_data:
            continue
        grad = torch.randn(batch, LAYOUT.width, device=device)

        def step(index: Tensor, _: int, grad: Tensor = grad) -> None:
            rows.step_batch(index, grad)

        for name, function, moved in (
            ("catch-up", lambda index, _: rows.before_read(index), 24),
            ("step", step, 28),
        ):
            us = microseconds(on_rows(function, num_data, batch, device), device)
            share = f"{moved * batch * LAYOUT.width / us / 1e3 / copy:.0%} of a copy"
            report.add(f"row_adam {name}, B = {batch}, us", us, share)


def few(device: torch.device) -> None:
    """Every op, two epochs of the standard model, and walks that go beyond the last feature."""
    failed = [line for line in run_every_op(device.type) if line[1] != "ok"]
    assert not failed, failed
    x = torch.randint(0, 256, (300, D), dtype=torch.uint8)
    model, options = rvi_fast.models.rvi(300, D), {"capture": False, "progress": False}
    options |= {"mask": torch.rand(300, D) < 0.5, "device": device}
    rvi_fast.fit(model, x, epochs=2, batch_size=256, eval_every=0, **options)
    # 25 tiles of features in pieces of seven, under a mask of bits
    x = torch.randint(0, 256, (4096, D), dtype=torch.uint8, device=device)
    hidden, weight = (
        torch.randn(rows, 64, device=device, requires_grad=True) for rows in (len(x), D)
    )
    bits = rvi_fast.pack_mask(torch.rand(len(x), D, device=device) < 0.5)
    given = hidden, weight, None, x, torch.ones((), device=device), bits
    rvi_fast.linear_gaussian_log_likelihood(*given).sum().backward()
    wait(device)
    print("every kernel has run")


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("times", "few"))
    parser.add_argument("out", type=Path, nargs="?", default=Path("."))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    arguments = parser.parse_args()
    device = arguments.device
    if device.type == "cuda" and not torch.cuda.is_available():
        print("left out: no CUDA device")
        return
    if arguments.what == "few":
        few(device)
        return
    # what takes a GPU a moment takes a CPU minutes
    scale = 1 if device.type == "cuda" else 64
    report = Report(arguments.out / "launches.json")
    copy = ceilings(report, device, scale)
    captured_steps(report, device, 10_000, 256)
    if device.type == "cuda":
        captured_steps(report, device, 10_000, 4096)
        captured_steps(report, device, 100_000, 65_536)
    in_a_group(report, device)
    posterior_alone(report, device, 1_000_000 // scale)
    rows_alone(report, device, 1_000_000 // scale, copy)


if __name__ == "__main__":
    main()
