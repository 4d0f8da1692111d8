"""What `scale.py` predicts from: the parts of training on this machine, none of them a whole run.

Each is measured in processes of its own, of one thread, which also share the cores as training does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_large_n import BATCH, GROUPS, D, T, mapped_table, peak_rss
from scale import FLOPS, LOSSES
from scale_hardware import Hardware
from torch import Tensor

import rvi_fast
from rvi_fast.layout import RowLayout
from rvi_fast.memory import room
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.posteriors.tables import MappedTables
from rvi_fast.training import distributed
from rvi_fast.training.loop import capture
from rvi_fast.training.loop.step import DirectStep, make_step
from rvi_fast.training.runs.journal import Journal
from rvi_fast.training.runs.tensors import header_of, write_tensors

# rows of the tables that parts are measured on: larger than caches, and of no run that is checked
ROWS = 150_000
BATCHES = (64, 256)


def typical(times: list[float]) -> float:
    """The mean without the slowest fiftieth, which something else on the machine has held up."""
    times = sorted(times)
    return statistics.fmean(times[: max(1, len(times) - len(times) // 50)])


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


class Drawn:
    """Random rows of a table that a step reads at a fixed address: no data are gathered."""

    def __init__(self) -> None:
        self.x = torch.randint(0, 256, (max(BATCHES), D), dtype=torch.uint8)

    def load(self, index: Tensor) -> None:
        """They are there."""

    def loaded(self, index: Tensor) -> tuple[Tensor, None]:
        return self.x[: len(index)], None


def steps_by_parts(num_rows: int) -> tuple[dict[str, float], Callable[[int], float]]:
    """Seconds of the parts of steps, and a function from a batch to seconds of a step.

    The second epoch is timed, in which rows have moments and lag behind, as in most of training.
    """
    model = rvi_fast.models.rvi(num_rows, D, latent_dim=T, groups=GROUPS)
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior)
    others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    shared = shared_adam([{"params": others, "lr": 1e-3}])
    step = make_step(model, rows, shared)
    assert isinstance(step, DirectStep)
    run = capture.BatchStep(step, Drawn(), torch.device("cpu"), torch.float32)
    start = time.perf_counter()
    order = torch.randperm(num_rows)
    drawn = time.perf_counter() - start
    for index in order.split(BATCH):
        run(index, BATCH)
    start = time.perf_counter()
    rows.flush()
    torch.aminmax(rows.table())
    held = sum(table.nbytes for table in rows.raw_tables().values())
    parts = {"epoch_byte": (time.perf_counter() - start) / held, "order_row": drawn / num_rows}
    batches = iter([])

    def seconds(batch: int, many: int = 150) -> float:
        nonlocal batches
        found = []
        for _ in range(many):
            index = next(batches, None)
            if index is None or len(index) != batch:
                batches = iter(torch.randperm(num_rows).split(batch))
                index = next(batches)
            start = time.perf_counter()
            run(index, batch)
            found.append(time.perf_counter() - start)
        return typical(found)

    decoder, adam = Timed(step.decoder), Timed(shared.step)
    step.decoder, shared.step = decoder, adam  # type: ignore[method-assign]
    for batch in BATCHES:
        decoder.times.clear()
        adam.times.clear()
        parts[f"step {batch}"] = seconds(batch)
        parts[f"decoder {batch}"] = typical(decoder.times)
        parts["shared"] = typical(adam.times)
    return parts, seconds


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

    def seconds(self) -> float:
        gaps = np.diff(self.times[20:])
        # all but the one between two epochs
        return float(np.sort(gaps)[:-1].mean())


def without_steps(x: Any, batch: int, *, loads: bool) -> float:
    """Seconds between the steps of `fit`, which do nothing, or only wait for their data."""
    model = rvi_fast.models.rvi(len(x), D, latent_dim=2, groups=(), hidden=(2,))
    looked = Looked(loads)
    with mock.patch.object(capture.BatchStep, "__call__", lambda *a: looked(*a)):
        rvi_fast.fit(model, x, epochs=2, batch_size=batch, eval_every=0, progress=False)
    return looked.seconds()


# files


def files(folder: Path, num_rows: int) -> dict[str, float]:
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
    times = {"in": 0.0, "out": 0.0}
    for start in range(0, num_rows, block):
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
        times["in"] += entered - began
        times["out"] += time.perf_counter() - worked
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
        "move_in": times["in"] / size,
        "move_out": times["out"] / size,
        "journal_byte": kept / (size / 2),
        "save_byte": saved / size,
        **disk(folder / "saved"),
    }


def disk(path: Path) -> dict[str, float]:
    """Bytes per second of a file, written and read past what the system keeps."""
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
    return {"disk_write": len(content) / written, "disk_read": len(content) / read}


# processes


def in_ranks(size: int, *arguments: Any, program: str = __file__) -> list[Any]:
    """What `python PROGRAM ARGUMENTS` prints last, in each of so many processes."""
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        port = sock.getsockname()[1]
    shared = {"WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    running = []
    for rank in range(size):
        own = {k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        environment = {**os.environ, **one, **(own if size > 1 else {})}
        command = [sys.executable, program, *map(str, arguments)]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{arguments} in {size} processes: {said}")
    return [json.loads(output.splitlines()[-1]) for output in said]


@contextlib.contextmanager
def joined() -> Iterator[int]:
    """Within it this process is one of a group, if it was started as one; gives their number."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not distributed.launch.launched():
        yield 1
        return
    distributed.init(device="cpu", timeout=300)
    yield torch.distributed.get_world_size()
    distributed.leave()


def part(num_rows: int, folder: Path) -> dict[str, float]:
    """In a process of its own, alone: all parts of a step and of files."""
    found, _ = steps_by_parts(num_rows)
    mapped_table(folder, num_rows // 3)
    x = np.load(folder / "x.npy", mmap_mode="r")
    for batch in BATCHES:
        found[f"read {batch}"] = without_steps(x, batch, loads=True)
    found["loop"] = without_steps(torch.from_numpy(np.array(x)), BATCH, loads=False)
    return found | files(folder, num_rows // 2)


def side_by_side(num_rows: int) -> dict[str, Any]:
    """In one of W processes: a step while all of them step, and sums over all by bytes."""
    with joined() as size:
        _, seconds = steps_by_parts(num_rows)
        found: dict[str, Any] = {}
        if size > 1:
            torch.distributed.barrier()
        for batch in sorted({BATCH, BATCH // 2, BATCH // 4} if size == 1 else {BATCH // size}):
            found[str(batch)] = seconds(batch, 300)
        found["reduce"] = []
        for count in (1, 3 * LOSSES * 2, 16_384, 82_000, 262_144):
            if size == 1:
                break
            values, times = torch.zeros(count), []
            for _ in range(60):
                start = time.perf_counter()
                torch.distributed.all_reduce(values)
                times.append(time.perf_counter() - start)
            found["reduce"].append((4 * count, typical(times[10:])))
    return found


def measure(num_rows: int = ROWS, sizes: tuple[int, ...] = (2, 4)) -> dict[str, Any]:
    """The constants of this machine."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        (found,) = in_ranks(1, "part", num_rows, name)
    small, large = BATCHES
    slope = {
        k: max(0.0, found[f"{k} {large}"] - found[f"{k} {small}"]) / (large - small)
        for k in ("step", "decoder", "read")
    }
    needed = rvi_fast.estimate_memory(num_rows, D)
    row = (needed.tables + needed.moments) / num_rows
    parameters = needed.shared // 16
    decoder = parameters - RowLayout.resolve(T, GROUPS).num_relays * T
    (alone,) = in_ranks(1, "side", num_rows // 2)
    capacity, reduce = {}, {}
    for size in sizes:
        together = in_ranks(size, "side", num_rows // 2)
        batch = str(BATCH // size)
        slowed = statistics.fmean(t[batch] for t in together) / alone[batch]
        capacity[size] = min(size, size / slowed)
        reduce[size] = together[0]["reduce"]
    (base,) = in_ranks(1, "base")
    # where the system begins to hold up who writes: between the two
    ratios = [
        int(Path(f"/proc/sys/vm/{name}").read_text())
        for name in ("dirty_background_ratio", "dirty_ratio")
    ]
    free = room.free_memory(torch.device("cpu")) or 0
    hardware = Hardware(
        step=found[f"step {large}"] - large * slope["step"] - found["shared"] + found["loop"],
        row_byte=max(0.0, slope["step"] - slope["decoder"]) / row,
        flop=slope["decoder"] / (FLOPS * decoder),
        parameter=found["shared"] / parameters,
        read=max(0.0, found[f"read {small}"] - small * slope["read"]),
        read_byte=slope["read"] / D,
        bus_byte=0.0,
        cached=free,
        dirty=free * statistics.fmean(ratios) / 100,
        cores=len(os.sched_getaffinity(0)),
        base=base,
        reduce=reduce,
        capacity=capacity,
        **{k: found[k] for k in ("epoch_byte", "order_row", "move_in", "move_out")},
        **{k: found[k] for k in ("journal_byte", "save_byte", "disk_read", "disk_write")},
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
        case ["base"]:
            with joined():
                result: Any = base_memory()
        case ["part", size, where]:
            with joined():
                result = part(int(size), Path(where))
        case ["side", size]:
            result = side_by_side(int(size))
    print(json.dumps(result))
