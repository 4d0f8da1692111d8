"""Does a step of `fit` cost more as N grows? Time and peak memory over N, in a process for each.

On the CPU data are a mapped uint8 table, as `fit` takes it; on a GPU they lie on the device, and the
steps are captured. A size whose tables do not fit says so. With `--write-results` times, memory and,
on the CPU, a picture go to `bench/results/large_n.*`. Pyro (`pip install pyro-ppl`) is a further peer
where it is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import rvi_fast

T, D, GROUPS, BATCH = 64, 784, (25, 50, 100), 256
SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
CUDA_SIZES = (10_000, 1_000_000, 15_000_000, 30_000_000)
STEPS = 1_000
EVERY = 50  # steps between two waits for a GPU
LIMITS = {"cpu": 2.0, "cuda": 1.05}  # a step at the largest N, in steps at the smallest
RESIDENT = 4e9  # bytes of a process whose tables are in files


def mapped_table(folder: Path, num_data: int) -> np.ndarray:
    """Pixels in blobs, a tenth of them zero, written in chunks."""
    path, random = folder / "x.npy", np.random.default_rng(0)
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(num_data, D))
    chunk = random.integers(0, 256, (10_000, D), dtype=np.uint8)
    for start in range(0, num_data, len(chunk)):
        x[start : start + len(chunk)] = np.roll(chunk, start // len(chunk), 1)[: num_data - start]
    x.flush()
    return np.load(path, mmap_mode="r")


class Enough(Exception):
    """The steps that are measured have been made."""


class Clock:
    """When each step, or on a GPU every so manieth, ended; enough of them raise `Enough`."""

    def __init__(self, warmup: int, steps: int, every: int = 1) -> None:
        self.times: list[float] = []
        self.warmup, self.steps, self.every = warmup // every, steps // every, every
        self.calls = 0

    def around(self, step: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            if len(self.times) > self.warmup + self.steps:
                raise Enough
            result = step(*arguments)
            self.calls += 1
            if self.calls % self.every == 0:
                if result.is_cuda:
                    torch.cuda.synchronize()
                self.times.append(time.perf_counter())
            return result

        return timed

    def milliseconds(self) -> dict[str, float]:
        """Mean with all that happens between steps (reading ahead, moving blocks), and median."""
        times = self.times[self.warmup :]
        gaps = [(after - before) / self.every for before, after in pairwise(times)]
        return {"mean_ms": 1e3 * sum(gaps) / len(gaps), "median_ms": 1e3 * statistics.median(gaps)}


def fitted(x: Any, storage: str, device: str, steps: int) -> dict[str, float]:
    """An epoch of `fit`, broken off after some steps."""
    from rvi_fast.training.loop import capture

    with torch.device(device):
        model = rvi_fast.models.rvi(len(x), D, latent_dim=T, groups=GROUPS, storage=storage)
    captured = device == "cuda"
    step = capture.CapturedStep if captured else capture.BatchStep
    clock = Clock(min(100, steps // 4), steps, EVERY if captured else 1)
    timed = clock.around(step.__call__)
    with mock.patch.object(step, "__call__", timed), contextlib.suppress(Enough):
        rvi_fast.fit(
            model, x, epochs=1000, batch_size=BATCH, eval_every=0, device=device, progress=False
        )
    return clock.milliseconds()


def pixels_on(device: str, num_data: int) -> torch.Tensor:
    """What `mapped_table` holds, in the memory of a GPU."""
    return torch.randint(0, 256, (num_data, D), dtype=torch.uint8, device=device)


def plain(x: Any, optimizer: str, device: str, steps: int) -> dict[str, float]:
    """The same in plain torch, or without relays in Pyro."""
    from bench_training_step import plain as training_step
    from peers import pyro_step

    torch.set_default_device(device)
    run = pyro_step(len(x), T, D) if optimizer == "Pyro" else training_step(len(x), optimizer)
    clock = Clock(3, steps)
    order = np.random.default_rng(0).permutation(len(x))

    def step(rows: np.ndarray) -> torch.Tensor:
        index = torch.from_numpy(rows).to(device)
        taken = x[index] if isinstance(x, torch.Tensor) else torch.from_numpy(x[rows])
        batch = taken.to(device).float() / 255
        run(index, batch)
        return batch

    timed = clock.around(step)
    try:
        while True:
            for start in range(0, len(order), BATCH):
                timed(order[start : start + BATCH])
    except Enough:
        return clock.milliseconds()


def measure(system: str, num_data: int, folder: str, device: str, steps: int) -> dict[str, float]:
    """In a process of its own: peak memory is that of this system at this N."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    there = device == "cuda"
    x = pixels_on(device, num_data) if there else np.load(Path(folder) / "x.npy", mmap_mode="r")
    if system in ("device", "host", "files"):
        storage = str(Path(folder) / "tables") if system == "files" else system
        result = fitted(x, storage, device, steps)
    else:
        result = plain(x, system, device, steps)
    result["peak_rss"] = peak_rss()
    if device == "cuda":
        result["peak_device"] = torch.cuda.max_memory_allocated()
        result["estimate"] = rvi_fast.estimate_memory(num_data, D, data_dtype=torch.uint8).device
    tables = Path(folder) / "tables"
    result["on_disk"] = sum(path.stat().st_size for path in tables.glob("*.bin"))
    return result


def in_process(*arguments: Any) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def room(system: str, num_data: int, folder: Path, device: str) -> bool:
    """Whether tables, or those of plain torch with its dense gradient, fit."""
    on_device = device == "cuda"
    estimate = rvi_fast.estimate_memory(
        num_data, D, data_dtype=torch.uint8, data_in_memory=on_device
    )
    needed = estimate.tables + estimate.moments + (estimate.data if on_device else 0)
    if system == "files":
        return needed < shutil.disk_usage(folder).free
    free = rvi_fast.memory.room.free_memory(torch.device(device))
    return free is None or needed * (1 if system == "device" else 4 / 3) < free


def bench_large_n(request: pytest.FixtureRequest, device: str) -> None:
    systems = ["device", "fused", "SparseAdam"]
    if device == "cpu":
        systems.insert(0, "files")
    if importlib.util.find_spec("pyro") is not None:
        systems.append("Pyro")
    points: list[dict[str, Any]] = []

    def add(point: dict[str, Any]) -> None:
        """On disk at once: what is done survives a run that is cut off."""
        points.append(point)
        if request.config.getoption("--write-results"):
            folder = request.config.getoption("--results")
            stem = folder / ("large_n" if device == "cpu" else "large_n_cuda")
            folder.mkdir(parents=True, exist_ok=True)
            stem.with_suffix(".json").write_text(json.dumps(points, indent=1) + "\n")
            stem.with_suffix(".md").write_text(table(points))

    for num_data in CUDA_SIZES if device == "cuda" else SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if device == "cpu" and num_data * D > shutil.disk_usage(folder).free:
                add({"system": "data", "num_data": num_data, "error": "do not fit on disk"})
                continue
            if device == "cpu":
                mapped_table(folder, num_data)
            for system in systems:
                point: dict[str, Any] = {"system": system, "num_data": num_data}
                if not room(system, num_data, folder, device):
                    add(point | {"error": "does not fit on this machine"})
                    continue
                # dense Adam at a large N takes seconds a step
                steps = STEPS if system in ("files", "device") else 10
                add(point | in_process(system, num_data, name, device, steps))
                shutil.rmtree(folder / "tables", ignore_errors=True)
    print("\n" + table(points))
    if request.config.getoption("--write-results") and device == "cpu":
        picture(points, request.config.getoption("--results") / "large_n.png")
    for system in {"files", "device"} & set(systems):
        own = [p for p in points if p["system"] == system and "mean_ms" in p]
        assert own[-1]["mean_ms"] < LIMITS[device] * own[0]["mean_ms"], system
        for point in own:
            assert system != "files" or point["peak_rss"] < RESIDENT
            if device == "cuda":
                assert point["peak_device"] < 1.05 * point["estimate"]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every table."""
    found = {}
    for path in sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def bench_killed_and_resumed(request: pytest.FixtureRequest, device: str, tmp_path: Path) -> None:
    """Two epochs in files, whole and killed with -9 in the second: the same tables, bit for bit."""
    num_data = SIZES[-1]
    needed = rvi_fast.estimate_memory(num_data, D, data_dtype=torch.uint8, data_in_memory=False)
    while 2.2 * (needed.tables + needed.moments) > shutil.disk_usage(tmp_path).free:
        num_data //= 2  # the tables, and the journal beside them
        needed = rvi_fast.estimate_memory(num_data, D, data_dtype=torch.uint8, data_in_memory=False)
    mapped_table(tmp_path, num_data)

    def start(epochs: int) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "train", num_data, tmp_path, device, epochs]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)

    def finish(process: subprocess.Popen[str]) -> dict[str, float]:
        output, _ = process.communicate()
        assert process.returncode == 0
        return json.loads(output.splitlines()[-1])

    result = finish(start(2))
    expected = digests(tmp_path / "tables")
    for name in ("tables", "run"):
        shutil.rmtree(tmp_path / name)
    killed, metrics = start(2), tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n")):
        assert killed.poll() is None, "ended before it was killed"
        time.sleep(0.1)
    time.sleep(20)  # well into the second epoch, whose blocks are partly written
    killed.kill()
    killed.communicate()
    between = digests(tmp_path / "tables")
    resumed = finish(start(2))
    assert between != expected
    assert digests(tmp_path / "tables") == expected
    assert max(result["peak_rss"], resumed["peak_rss"]) < RESIDENT
    report = {"num_data": num_data, "whole": result, "resumed": resumed, "sha256": expected}
    print("\n" + json.dumps(report, indent=1))
    if request.config.getoption("--write-results"):
        path = request.config.getoption("--results") / "large_n_resumed.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(tmp_path)


def train(num_data: int, folder: str, device: str, epochs: int) -> dict[str, float]:
    """Whole epochs with a checkpoint each; goes on where one was left."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = np.load(Path(folder) / "x.npy", mmap_mode="r")
    tables, start = Path(folder) / "tables", time.perf_counter()
    model = rvi_fast.models.rvi(num_data, D, latent_dim=T, groups=GROUPS, storage=str(tables))
    made = time.perf_counter() - start
    rvi_fast.fit(
        model,
        x,
        epochs=epochs,
        batch_size=BATCH,
        eval_every=0,
        device=device,
        progress=False,
        run_dir=Path(folder) / "run",
        resume=True,
        checkpoint_every=0,
    )
    seconds = time.perf_counter() - start - made
    on_disk = sum(path.stat().st_size for path in tables.glob("*.bin"))
    return {
        "seconds_to_make_tables": made,
        "seconds_to_train": seconds,
        "peak_rss": peak_rss(),
        "on_disk": on_disk,
    }


def peak_rss() -> int:
    """Bytes of this process, at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def table(points: list[dict[str, Any]]) -> str:
    lines = [
        "| system | N | ms per step, mean | median | peak RSS | files |",
        "|---|---|---|---|---|---|",
    ]
    for point in points:
        start = f"| {point['system']} | {point['num_data']:,} |"
        if "error" in point:
            lines.append(f"{start} {point['error']} | | | |")
            continue
        lines.append(
            f"{start} {point['mean_ms']:.2f} | {point['median_ms']:.2f} | "
            f"{point['peak_rss'] / 1e9:.2f} GB | {point['on_disk'] / 1e9:.1f} GB |"
        )
    return "\n".join(lines) + "\n"


def picture(points: list[dict[str, Any]], path: Path) -> None:
    """Step time over N, both on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for system in dict.fromkeys(point["system"] for point in points):
        own = [p for p in points if p["system"] == system and "mean_ms" in p]
        times = [p["mean_ms"] for p in own]
        axes.loglog([p["num_data"] for p in own], times, "o-", label=system)
    axes.set(xlabel="N", ylabel="ms per step", title=f"B = {BATCH}, T = {T}, D = {D}")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    what, size, place, where, number = sys.argv[1:]
    if what == "train":
        print(json.dumps(train(int(size), place, where, int(number))))
    else:
        print(json.dumps(measure(what, int(size), place, where, int(number))))
