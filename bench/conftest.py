"""How a duel is run and reported.

`duel` times our implementation with pytest-benchmark and, before each of its rounds, every peer
with the same inputs: interleaved, fresh inputs for each call, medians. The CPU runs one thread and
one call a round. With `--device cuda` everything lies there, and a round is `CALLS` calls before it
waits for the device, as in a training loop. With `--write-results` the tables go to
`bench/results/<machine>.md` and `.json` (or another folder, `--results`) as each duel ends, where
they replace those of the same questions. With `--compile-only` each side runs once and nothing is
timed: what is compiled then lies in the caches, and processes side by side (`-n 8`) can do it.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import rvi_fast

RESULTS = Path(__file__).parent / "results"
# calls on a GPU between two waits for it
CALLS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-results", action="store_true", help="write <machine>.md and .json")
    parser.addoption("--results", type=Path, default=RESULTS, help="where to (bench/results)")
    parser.addoption("--compile-only", action="store_true", help="run all once and time nothing")
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="where to run")


@contextmanager
def default_device(name: str) -> Iterator[None]:
    """Within it tensors are made there unless told otherwise."""
    before = torch.get_default_device().type
    # a default device is a mode, which takes microseconds of each call of torch: none on the CPU
    torch.set_default_device(None if name == "cpu" else name)
    try:
        yield
    finally:
        torch.set_default_device(None if before == "cpu" else before)


@pytest.fixture(scope="session", autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where tensors are made unless told otherwise; one thread."""
    threads, name = torch.get_num_threads(), request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.set_num_threads(1)
    with default_device(name):
        yield name
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def timed(request: pytest.FixtureRequest) -> bool:
    """Whether anything is timed."""
    options = request.config.option
    return not (options.compile_only or options.benchmark_disable)


def wait(device: str) -> None:
    """Until everything that was launched is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str, rounds: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(rounds):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.fixture(scope="session")
def copy_bandwidth(device: str, timed: bool) -> float:
    """Bytes per second of a copy far larger than the caches, read and write counted."""
    if not timed:
        return 1.0
    source, target = torch.ones(1 << 25), torch.empty(1 << 25)
    if device == "cuda":
        source, target = torch.ones(1 << 29), torch.empty(1 << 29)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device, 7)


@pytest.fixture(scope="session")
def matmul_rate(device: str, timed: bool) -> float:
    """FLOP per second of a float32 matrix product, at torch's own precision setting."""
    if not timed:
        return 1.0
    size = 8192 if device == "cuda" else 1024
    a, b = torch.ones(size, size), torch.ones(size, size)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b), device, 9)


@pytest.fixture
def duel(
    request: pytest.FixtureRequest,
    device: str,
    timed: bool,
    copy_bandwidth: float,
    matmul_rate: float,
) -> Callable[..., None]:
    """Times `ours` against `peers`.

    Args of the returned function:
        question: title of the table, one per question.
        fresh: makes the inputs of a round.
        ours, peers: functions of those inputs; peers by name.
        goals: peer -> ratio to reach, where there is a goal.
        rounds: rounds measured; `warmup` more come first.
        calls: calls in a round.
        batch: rows in a call, for the time per row.
        bytes, flops: of one call of `ours`, for GB/s and GFLOP/s beside the measured ceilings.
    """

    def run(
        question: str,
        fresh: Callable[[], tuple[Any, ...]],
        ours: Callable[..., Any],
        peers: dict[str, Callable[..., Any]],
        *,
        goals: dict[str, float],
        rounds: int = 60,
        warmup: int = 6,
        calls: int = CALLS if device == "cuda" else 1,
        batch: int = 0,
        bytes: int = 0,
        flops: int = 0,
    ) -> None:
        if not timed:
            for function in (ours, *peers.values()):
                for _ in range(2):  # the second call of a size captures it
                    inputs = fresh()
                    with default_device("cpu"):
                        function(*inputs)
            wait(device)
            return
        benchmark = request.getfixturevalue("benchmark")
        times: dict[str, list[float]] = {name: [] for name in peers}
        done = 0

        def called(function: Callable[..., Any], inputs: list[tuple[Any, ...]]) -> None:
            # what is timed names its devices: the mode would be a third of a step that Python bounds
            with default_device("cpu"):
                for arguments in inputs:
                    function(*arguments)
                wait(device)

        def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
            nonlocal done
            inputs = [fresh() for _ in range(calls)]
            wait(device)
            done += 1
            for name, peer in peers.items():
                start = time.perf_counter()
                called(peer, inputs)
                if done > warmup:
                    times[name].append((time.perf_counter() - start) / calls)
            return (ours, inputs), {}

        for _ in range(warmup):
            called(*setup()[0])
        benchmark.pedantic(called, setup=setup, rounds=rounds)
        median = benchmark.stats.stats.median / calls
        benchmark.group = question
        benchmark.extra_info.update(
            {
                "question": question,
                "implementation": rvi_fast.ops.implementation(device).__name__.rpartition(".")[2],
                "rvi_fast_us": median * 1e6,
                "ns_per_row": median / batch * 1e9 if batch else None,
                "peers": {
                    name: {
                        "us": statistics.median(values) * 1e6,
                        "ratio": statistics.median(values) / median,
                        "goal": goals.get(name),
                    }
                    for name, values in times.items()
                },
                "GB/s": bytes / median / 1e9,
                "share_of_copy": bytes / median / copy_bandwidth,
                "GFLOP/s": flops / median / 1e9,
                "share_of_matmul": flops / median / matmul_rate,
            }
        )
        if request.config.getoption("--write-results"):
            _write(benchmark.extra_info, device, request.config.getoption("--results"))

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    duels = [b.extra_info for b in getattr(session, "benchmarks", []) if b.extra_info]
    if not duels:
        return
    terminalreporter.write_line("\n" + _table(duels))


def _write(duel: dict[str, Any], device: str, folder: Path) -> None:
    """At once: what is done survives a run that is cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if device == "cuda" else _processor()
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.json"
    held = json.loads(path.read_text(encoding="utf-8"))["duels"] if path.exists() else []
    latest = list(
        ({entry["question"]: entry for entry in held} | {duel["question"]: duel}).values()
    )
    versions = rvi_fast.info()["versions"]
    heading = (
        f"# {machine}\n\n`make {'gpu' if device == 'cuda' else 'bench'}`, one thread, medians of "
        f"interleaved rounds; rvi_fast {versions['rvi_fast']}, torch {versions['torch']}, Python "
        f"{versions['python']}.\n\n"
    )
    path.with_suffix(".md").write_text(heading + _table(latest), encoding="utf-8")
    report = {"machine": machine, "versions": versions, "duels": latest}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _table(duels: list[dict[str, Any]]) -> str:
    lines = []
    for entry in duels:
        lines += [
            f"## {entry['question']}",
            "",
            "| | time | ratio | goal | |",
            "|---|---|---|---|---|",
        ]
        lines.append(
            f"| rvi_fast ({entry['implementation']}) | {_time(entry['rvi_fast_us'])} | | | |"
        )
        for name, peer in entry["peers"].items():
            goal = peer["goal"]
            verdict = "" if goal is None else "met" if peer["ratio"] >= goal else "not met"
            wanted = "" if goal is None else f"{goal:g}x"
            lines.append(
                f"| {name} | {_time(peer['us'])} | {peer['ratio']:.2f}x | {wanted} | {verdict} |"
            )
        if entry["GB/s"]:
            row = entry.get("ns_per_row")
            per_row = f"{row:.3g} ns per row, " if row else ""
            lines += [
                "",
                f"{per_row}{entry['GB/s']:.1f} GB/s ({entry['share_of_copy']:.0%} of a copy), "
                f"{entry['GFLOP/s']:.1f} GFLOP/s ({entry['share_of_matmul']:.0%} of a matrix product)",
            ]
        lines.append("")
    return "\n".join(lines)


def _time(us: float) -> str:
    return f"{us / 1000:.2f} ms" if us >= 1000 else f"{us:.0f} us"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
