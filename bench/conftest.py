"""How a duel is run and reported.

`duel` times our implementation with pytest-benchmark and, before each of its rounds, every peer
once with the same inputs: interleaved, fresh inputs for each round, medians, one thread. With
`--write-results` the tables go to `bench/results/<machine>.md` and `.json`.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rvi_fast

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-results", action="store_true", help="write bench/results/<machine>.*")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def copy_bandwidth() -> float:
    """Bytes per second of a copy far larger than the caches, read and write counted."""
    source, target = torch.ones(1 << 25), torch.empty(1 << 25)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(times)


@pytest.fixture(scope="session")
def matmul_rate() -> float:
    """FLOP per second of a float32 matrix product."""
    a, b = torch.ones(1024, 1024), torch.ones(1024, 1024)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / statistics.median(times)


@pytest.fixture
def duel(benchmark: Any, copy_bandwidth: float, matmul_rate: float) -> Callable[..., None]:
    """Times `ours` against `peers`.

    Args of the returned function:
        question: title of the table, one per question.
        fresh: makes the inputs of a round.
        ours, peers: functions of those inputs; peers by name.
        goals: peer -> ratio to reach, where there is a goal.
        rounds: rounds measured; `warmup` more come first.
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
        bytes: int = 0,
        flops: int = 0,
    ) -> None:
        times: dict[str, list[float]] = {name: [] for name in peers}
        calls = 0

        def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
            nonlocal calls
            inputs = fresh()
            calls += 1
            for name, peer in peers.items():
                start = time.perf_counter()
                peer(*inputs)
                if calls > warmup:
                    times[name].append(time.perf_counter() - start)
            return inputs, {}

        for _ in range(warmup):
            ours(*setup()[0])
        benchmark.pedantic(ours, setup=setup, rounds=rounds)
        median = benchmark.stats.stats.median
        benchmark.group = question
        benchmark.extra_info.update(
            {
                "question": question,
                "implementation": rvi_fast.info()["devices"]["cpu"]["implementation"],
                "rvi_fast_us": median * 1e6,
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

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    duels = [b.extra_info for b in getattr(session, "benchmarks", []) if b.extra_info]
    if not duels:
        return
    text = _table(duels)
    terminalreporter.write_line("\n" + text)
    if config.getoption("--write-results"):
        RESULTS.mkdir(exist_ok=True)
        stem = re.sub(r"[^a-z0-9]+", "-", _processor().lower()).strip("-")
        versions = rvi_fast.info()["versions"]
        heading = (
            f"# {_processor()}\n\n`make bench`, one thread, medians of interleaved rounds; "
            f"rvi_fast {versions['rvi_fast']}, torch {versions['torch']}, "
            f"Python {versions['python']}.\n\n"
        )
        (RESULTS / f"{stem}.md").write_text(heading + text, encoding="utf-8")
        report = {"machine": _processor(), "versions": versions, "duels": duels}
        (RESULTS / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


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
            lines += [
                "",
                f"{entry['GB/s']:.1f} GB/s ({entry['share_of_copy']:.0%} of a copy), "
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
