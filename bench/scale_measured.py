"""What `scale.py` predicts from: the parts of training on this machine, none of them a whole run.

Each is measured in processes of its own, of one thread, which also share the cores as training does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_large_n import BATCH, GROUPS, D, T, mapped_table, peak_rss
from scale import FLOPS
from scale_hardware import Hardware
from scale_processes import in_ranks, joined
from torch import Tensor

import rvi_fast
from rvi_fast.layout import RowLayout
from rvi_fast.memory import room
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.posteriors.tables import MappedTables
from rvi_fast.training import distributed
from rvi_fast.training.distributed.ranks import ranks_of
from rvi_fast.training.loop import capture
from rvi_fast.training.loop.step import DirectStep, make_step
from rvi_fast.training.runs.journal import Journal
from rvi_fast.training.runs.tensors import header_of, write_tensors

# rows of the tables that parts are measured on, of each process: larger than caches, and of no run that
# is checked, as rows of a batch and features are none of those
ROWS = 150_000
BATCHES = (64, 384)
# of processes that train together, features and rows of a share
FEATURES, SHARES = (98, 1568), (32, 192)
# parts are measured in turn, so many steps of each at a time, so many times
ROUNDS, STEPS = 12, 64


def undisturbed(times: list[float]) -> float:
    """The lower quartile of means over some tenths of a second.

    What else runs on the host of a virtual machine slows it down for seconds at a time, and this
    machine does not see it.
    """
    return float(np.quantile(times, 0.25))


# parts of a step


class Timed:
    """A callable, and how long its calls took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.times = function, list[float]()

    def __call__(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = self.function(*arguments)
        self.times.append(time.perf_counter() - start)
        return result

    def mean(self) -> float:
        """Of the calls since it was last asked."""
        mean = statistics.fmean(self.times)
        self.times.clear()
        return mean


class Drawn:
    """Random rows of a table that a step reads at a fixed address: no data are gathered."""

    def __init__(self, num_features: int) -> None:
        self.x = torch.randint(0, 256, (max(BATCHES), num_features), dtype=torch.uint8)

    def load(self, index: Tensor) -> None:
        """They are there."""

    def loaded(self, index: Tensor) -> tuple[Tensor, None]:
        return self.x[: len(index)], None


class Steps:
    """Steps as `fit` makes them, without its data; of rows that have moments and lag behind.

    Args:
        num_rows: of this process.
        num_features: D.
        size: number of processes.
    """

    def __init__(self, num_rows: int, num_features: int, size: int = 1) -> None:
        self.num_rows = num_rows
        shard = distributed.rows_of_rank(size * num_rows) if size > 1 else None
        model = rvi_fast.models.rvi(
            size * num_rows, num_features, latent_dim=T, groups=GROUPS, shard=shard
        )
        model.posterior.sparse = True
        self.rows = rvi_fast.optim.RowAdam(model.posterior)
        others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
        self.shared = shared_adam([{"params": others, "lr": 1e-3}])
        self.bytes = 4 * sum(p.numel() for p in others)
        step = make_step(model, self.rows, self.shared)
        assert isinstance(step, DirectStep)
        self.decoder, self.adam = Timed(step.decoder), Timed(self.shared.step)
        step.decoder, self.shared.step = self.decoder, self.adam  # type: ignore[method-assign]
        self.run = capture.BatchStep(step, Drawn(num_features), torch.device("cpu"), torch.float32)
        self.order = Timed(torch.randperm)
        self.make(BATCH, num_rows // BATCH)
        self.end()
        if size > 1:
            ranks_of(model).attach(self.shared)
        self.reduce = self.shared.reduce

    def make(self, batch: int, many: int = STEPS, *, sums: bool = False) -> float:
        """Seconds of a step, the mean of so many, each with a sum over all processes or without."""
        self.shared.reduce = self.reduce if sums else None
        order = self.order(self.num_rows)[: many * batch].split(batch)
        start = time.perf_counter()
        for index in order:
            self.run(index, batch)
        return (time.perf_counter() - start) / many

    def end(self) -> float:
        """Seconds of what an epoch does at its end."""
        start = time.perf_counter()
        self.rows.flush()
        torch.aminmax(self.rows.table())
        return time.perf_counter() - start


def steps_by_parts(num_rows: int) -> dict[str, list[float]]:
    """Seconds of the parts of a step, and of an epoch's end by byte and by row."""
    steps, times = Steps(num_rows, D), defaultdict[str, list[float]](list)
    held = sum(table.nbytes for table in steps.rows.raw_tables().values())
    for part in (steps.decoder, steps.adam, steps.order):
        part.times.clear()
    for _ in range(ROUNDS):
        for batch in BATCHES:
            times[f"step {batch}"].append(steps.make(batch))
            times[f"decoder {batch}"].append(steps.decoder.mean())
            times["shared"].append(steps.adam.mean())
            times["order_row"].append(steps.order.mean() / num_rows)
        times["epoch_byte"].append(steps.end() / held)
    return times


class Looked:
    """When each step of a `fit` began, with something else in the place of the step."""

    def __init__(self, loads: bool) -> None:
        self.loads, self.times = loads, list[float]()

    def __call__(self, run: capture.BatchStep, index: Tensor, full_size: int) -> Tensor:
        if self.loads:
            run.load(index)
            run.inputs.loaded(index)
        self.times.append(time.perf_counter())
        return torch.zeros(3)

    def seconds(self) -> list[float]:
        """The mean, without the gap between two epochs."""
        gaps = np.sort(np.diff(self.times[len(self.times) // 10 :]))
        return [float(gaps[:-1].mean())]


def without_steps(x: Any, batch: int, *, loads: bool) -> list[float]:
    """Seconds between the steps of `fit`, which do nothing, or only wait for their data."""
    model = rvi_fast.models.rvi(len(x), D, latent_dim=2, groups=(), hidden=(2,))
    looked = Looked(loads)
    with mock.patch.object(capture.BatchStep, "__call__", lambda *a: looked(*a)):
        rvi_fast.fit(model, x, epochs=2, batch_size=batch, eval_every=0, progress=False)
    return looked.seconds()


# files


def files(folder: Path, num_rows: int) -> dict[str, list[float]]:
    """Seconds per byte of tables in files, a part of which comes and goes."""
    layout = RowLayout.resolve(T, GROUPS)
    tables = MappedTables(folder / "moved")
    shapes = {"rows": 1, "exp_avg": 1, "exp_avg_sq": 1}
    made = {
        name: tables.make(name, (num_rows, layout.width), torch.float32, torch.device("cpu"))
        for name in shapes
    }
    for name, table in made.items():
        tables.checksums.forget(name)
        table.normal_()
    tables.sync()
    tables.seal()
    size, block = sum(table.nbytes for table in made.values()), num_rows // 8
    times: dict[str, list[float]] = {"move_in": [], "move_out": []}
    for start in range(0, block * 8, block):
        began = time.perf_counter()
        tables.prefetch(start, start + block)
        tables.enter(start, start + block)
        entered = time.perf_counter()
        for table in made.values():
            table[start : start + block].mul_(0.5)
        worked = time.perf_counter()
        torch.aminmax(made["rows"][start : start + block])
        tables.leave(start, start + block)
        tables.release(start, start + block)
        held = size * block / num_rows
        times["move_in"].append((entered - began) / held)
        times["move_out"].append((time.perf_counter() - worked) / held)
    tables.seal()
    tables.sync()
    journal = Journal(tables.directory, made, block)
    journal.begin("measured")
    began = time.perf_counter()
    for number in range(4):
        journal.keep(number)
    kept = time.perf_counter() - began
    began = time.perf_counter()
    write_tensors(folder / "saved", header_of("saved", made), made)
    saved = time.perf_counter() - began
    return {
        **times,
        "journal_byte": [kept / (size / 2)],
        "save_byte": [saved / size],
        **disk(folder / "saved"),
    }


def disk(path: Path) -> dict[str, list[float]]:
    """Seconds per byte of a file, written and read past what the system keeps."""
    content = path.read_bytes()
    start = time.perf_counter()
    with path.with_suffix(".copy").open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
        written = time.perf_counter() - start
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    path.with_suffix(".copy").read_bytes()
    read = time.perf_counter() - start
    return {
        "disk_write byte": [written / len(content)],
        "disk_read byte": [read / len(content)],
    }


# processes


def alone(num_rows: int, folder: Path) -> dict[str, list[float]]:
    """In a process of its own: all parts of a step and of files."""
    found = {"base": [base_memory()], **steps_by_parts(num_rows)}
    mapped_table(folder, num_rows // 3)
    x = np.load(folder / "x.npy", mmap_mode="r")
    for batch in BATCHES:
        found[f"read {batch}"] = without_steps(x, batch, loads=True)
    found["loop"] = without_steps(torch.from_numpy(np.array(x)), BATCHES[0], loads=False)
    return found | files(folder, num_rows // 2)


def together(num_rows: int) -> dict[str, Any]:
    """In one of W processes: seconds of a step in one of them, in all, and in all with a sum over them.

    Sums alone, one after the other, would not tell: processes come to one from steps, not at the same
    time, wait, wake, and find caches cold afterwards.
    """
    found: dict[str, Any] = {"alone": [], "all": [], "sums": defaultdict(list)}
    with joined() as size:
        barrier, leads = torch.distributed.barrier, torch.distributed.get_rank() == 0

        def all_make(steps: Steps, share: int, *, sums: bool) -> float:
            barrier()
            start = time.perf_counter()
            steps.make(share, sums=sums)
            barrier()
            return (time.perf_counter() - start) / STEPS

        sizes = [Steps(num_rows, features, size) for features in FEATURES]
        for _ in range(ROUNDS):
            for steps, share in product(sizes, SHARES):
                barrier()
                found["alone"].append(steps.make(share) if leads else 0.0)
                found["all"].append(all_make(steps, share, sums=False))
                longer = all_make(steps, share, sums=True) - found["all"][-1]
                found["sums"][f"{steps.bytes} {share}"].append(longer)
                steps.end()
    return found


def of_processes(found: dict[str, Any], size: int) -> tuple[float, tuple[float, float]]:
    """What W processes do at once, and what a sum over them takes, at least and by byte."""
    # the same pieces of work, behind each other
    slowed = [both / one for one, both in zip(found["alone"], found["all"], strict=True)]
    sizes = [int(name.split()[0]) for name in found["sums"]]
    taken = [undisturbed(times) for times in found["sums"].values()]
    byte, least = np.polyfit(sizes, taken, 1)
    return min(size, size / statistics.median(slowed)), (float(least), float(byte))


def measure(num_rows: int = ROWS, sizes: tuple[int, ...] = (2, 4)) -> dict[str, Any]:
    """The constants of this machine."""
    load, times, processes = os.getloadavg()[0], defaultdict[str, list[float]](list), {}
    # parts of one process before, between and after those of several: disturbances take seconds
    for size in (*sizes, 1):
        with tempfile.TemporaryDirectory() as name:
            for part, found in in_ranks(1, __file__, "alone", num_rows, name)[0].items():
                times[part] += found
        if size > 1:
            both = in_ranks(size, __file__, "together", num_rows // 5)[0]
            processes[size] = of_processes(both, size)
    found = {part: undisturbed(own) for part, own in times.items()}
    small, large = BATCHES
    slope = {
        k: max(0.0, found[f"{k} {large}"] - found[f"{k} {small}"]) / (large - small)
        for k in ("step", "decoder", "read")
    }
    needed = rvi_fast.estimate_memory(num_rows, D)
    row = (needed.tables + needed.moments) / num_rows
    parameters = needed.shared // 16
    decoder = parameters - RowLayout.resolve(T, GROUPS).num_relays * T
    # where the system begins to hold up who writes: between the two
    ratios = [
        int(Path(f"/proc/sys/vm/{name}").read_text())
        for name in ("dirty_background_ratio", "dirty_ratio")
    ]
    free = room.free_memory(torch.device("cpu")) or 0
    hardware = Hardware(
        step=found[f"step {small}"] - small * slope["step"] - found["shared"] + found["loop"],
        row_byte=max(0.0, slope["step"] - slope["decoder"]) / row,
        flop=slope["decoder"] / (FLOPS * decoder),
        parameter=found["shared"] / parameters,
        read=max(0.0, found[f"read {small}"] - small * slope["read"]),
        read_byte=slope["read"] / D,
        bus_byte=0.0,
        cached=free,
        dirty=free * statistics.fmean(ratios) / 100,
        cores=len(os.sched_getaffinity(0)),
        exchange={size: exchange for size, (_, exchange) in processes.items()},
        capacity={size: capacity for size, (capacity, _) in processes.items()},
        **{k: found[k] for k in ("base", "epoch_byte", "order_row", "move_in", "move_out")},
        **{k: found[k] for k in ("journal_byte", "save_byte")},
        **{k: 1 / found[f"{k} byte"] for k in ("disk_read", "disk_write")},
    )
    return {
        "machine": f"{platform.machine()}, {platform.system()}, torch {torch.__version__}",
        "load": load,
        "rows": num_rows,
        "parts": found,
        "hardware": dataclasses.asdict(hardware),
    }


def base_memory(num_rows: int = 1000) -> float:
    """Bytes of this process once it has trained a small table, without those of the table."""
    x = torch.randint(0, 256, (num_rows, D), dtype=torch.uint8)
    model = rvi_fast.models.rvi(num_rows, D, latent_dim=T, groups=GROUPS)
    rvi_fast.fit(model, x, epochs=1, batch_size=BATCH, eval_every=0, progress=False)
    return peak_rss() - rvi_fast.estimate_memory(num_rows, D, data_dtype=torch.uint8).device


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["alone", size, where]:
            with joined():
                result: Any = alone(int(size), Path(where))
        case ["together", size]:
            result = together(int(size))
    print(json.dumps(result))
