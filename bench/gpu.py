"""One visit to a GPU, in parts of under eight minutes: `make gpu PYTHON=python3 OUT=DIR PART=tests`.

    tests  every op once, the tests that need a GPU, compute-sanitizer
    ops    each op against its peers
    step   what the machine can do, the launches of a captured step, whole steps and the paper's run
    large  steps over a million rows and tables that fill the GPU

Needs a Python with torch, Triton, pytest and pytest-benchmark; pytest-xdist and pytest-timeout are
used where they are installed. Needs neither the C++ part nor a network nor a data set. Kernels are
compiled by processes side by side before anything is timed. Every command has a limit of its own,
and what it has found lies in `OUT` as soon as it is found: a run that is cut off loses one figure.

Specialisations of our kernels that a part compiles where no cache has them, counted by what the same
launches ask for on tensors without memory, and their seconds at 1.8 each on one core:

    tests  19 by `rvi_fast.info` (34), 234 more by the tests, of which 182 are the ops' contracts (53 by
           8 processes; 421 by one, which is more than the limit: they need pytest-xdist), none after
    ops    13 (3 by 8 processes)
    step   22 by the launches, one after the other (40), 2 more by the duels
    large  12 (22)

The peers' torch.compile comes on top in ops and step.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
OPS = [
    f"bench/bench_{op}.py"
    for op in (
        "relay_sample",
        "log_likelihood",
        "linear_log_likelihood",
        "row_adam",
        "adam_step",
    )
]
STEP, LARGE = "bench/bench_training_step.py", "bench/bench_large_n.py"
TESTS = [
    *(f"tests/test_{part}.py" for part in ("gpu", "gpu_standard", "gpu_distributed", "metrics"))
]
# a few launches of everything at the standard sizes
SMALL = [sys.executable, "bench/gpu_launches.py", "few"]
WORKERS = 8


class Command(NamedTuple):
    """What is run, for how many seconds at most, and what it needs beside Python."""

    seconds: int
    arguments: list[str]
    variables: Mapping[str, str] = MappingProxyType({})
    needs: str = ""


def parts(out: Path) -> dict[str, list[Command]]:
    """The commands of each part."""

    def pytest(*arguments: str) -> list[str]:
        # the C++ part is not built there, and its absence is an error in pyproject.toml
        quiet = ["-W", "ignore::rvi_fast.ops.FallbackWarning", "-p", "no:cacheprovider"]
        return [sys.executable, "-m", "pytest", "-q", *quiet, *arguments]

    def side_by_side(limit: int) -> list[str]:
        options = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") else []
        return options + (
            [f"--timeout={limit}"] if importlib.util.find_spec("pytest_timeout") else []
        )

    def compiled(seconds: int, *files: str) -> Command:
        chosen = pytest("--device", "cuda", "--compile-only", *side_by_side(seconds), *files)
        return Command(seconds, chosen)

    def duels(seconds: int, *files: str) -> Command:
        results = ["--write-results", "--results", str(out / "results")]
        return Command(seconds, pytest("--device", "cuda", *results, *files))

    def sanitized(tool: str) -> Command:
        options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
        # what torch keeps for the next tensor hides what lies beside a tensor
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        sanitizer = "compute-sanitizer"
        return Command(75, [sanitizer, *options, *SMALL], uncached, sanitizer)

    report = f"--junitxml={out / 'tests.xml'}"
    return {
        "tests": [
            Command(60, [sys.executable, "-m", "rvi_fast.info"]),
            Command(270, pytest("-m", "gpu", report, *side_by_side(150), *TESTS)),
            sanitized("memcheck"),
            sanitized("racecheck"),
        ],
        "ops": [
            compiled(100, *OPS, "-k", "not 1000000"),
            *(duels(75, name, "-k", "not 1000000") for name in OPS),
        ],
        "step": [
            Command(150, [sys.executable, "bench/gpu_launches.py", "times", str(out)]),
            compiled(100, STEP, "-k", "10000-256 or 4096"),
            duels(110, STEP, "-k", "10000-256"),
            duels(120, "bench/bench_paper_run.py"),
            duels(60, STEP, "-k", "4096"),
        ],
        "large": [
            duels(100, STEP, "-k", "1000000"),
            duels(60, "bench/bench_row_adam.py", "-k", "1000000"),
            duels(200, LARGE, "-k", "bench_large_n"),
            duels(110, STEP, "-k", "65536"),
        ],
    }


def main() -> int:
    """Runs one part; returns how many of its commands failed."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("tests", "ops", "step", "large"))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "bench")]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "4",
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(ROOT / "build" / "triton")),
        "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build" / "inductor"),
    }
    failed, started = 0, time.monotonic()
    for command in parts(out)[arguments.part]:
        title = " ".join([*(f"{k}={v}" for k, v in command.variables.items()), *command.arguments])
        say = f"\n=== {title} ({time.monotonic() - started:.0f} s, at most {command.seconds} more)"
        print(say, flush=True)
        if arguments.list:
            continue
        if command.needs and shutil.which(command.needs) is None:
            print(f"left out: {command.needs} is not installed", flush=True)
            continue
        try:
            code = subprocess.run(
                command.arguments,
                cwd=ROOT,
                env=environment | command.variables,
                timeout=command.seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
        print(f"--- exit status {code}", flush=True)
        failed += code != 0
    print(f"\n{arguments.part}: {failed} failed, {time.monotonic() - started:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
