"""Whole training runs beside what `scale.py` predicts of them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from bench_large_n import BATCH, GROUPS, D, T, mapped_table, peak_rss
from scale import predict
from scale_hardware import RESULTS, Hardware
from scale_measured import undisturbed
from scale_processes import in_ranks, joined
from torch import Tensor, device

import rvi_fast
from rvi_fast.memory import room
from rvi_fast.training import distributed
from rvi_fast.training.loop import archive, capture

SIZES, LARGE = (100_000, 1_000_000), (5_000_000,)
# processes, and where rows lie
RUNS = ((1, "device"), (1, "tables"), (2, "device"), (4, "device"))
# steps, some seconds, over which what they take is averaged
PIECE = 400
# of the memory that is free
SPARED = 0.9
# of one process in memory up to here a checkpoint is timed too
SAVED_ROWS = 100_000


def seconds_of(times: list[float], steps: int) -> float:
    """Of a step with its share of what an epoch does at its end, while nothing disturbs it.

    Args:
        times: when steps ended, of whole epochs, the first of which does not count.
        steps: of an epoch.
    """
    pieces, ends = list[float](), list[float]()
    for epoch in np.array(times).reshape(-1, steps)[1:]:
        cuts = np.linspace(0, steps - 1, 1 + max(1, steps // PIECE)).astype(int)
        pieces += list(np.diff(epoch[cuts]) / np.diff(cuts))
    for after in range(steps, len(times), steps):
        ends.append(times[after] - times[after - 1])
    return ((steps - 1) * undisturbed(pieces) + undisturbed(ends)) / steps


def trained(num_data: int, storage: str, folder: Path, batch_size: int = BATCH) -> dict[str, float]:
    """In one of W processes: whole epochs of `fit`, of which all but the first are timed."""
    with joined() as size:
        x = np.load(folder / "x.npy", mmap_mode="r")
        shard = distributed.rows_of_rank(num_data) if size > 1 else None
        where = {"device": "device", "tables": str(folder / "tables")}[storage]
        model = rvi_fast.models.rvi(
            num_data, D, latent_dim=T, groups=GROUPS, storage=where, shard=shard
        )
        steps = -(-num_data // batch_size)
        epochs = 2 + 10 * PIECE // steps
        step, times, saves = capture.BatchStep.__call__, list[float](), list[float]()
        save = archive.Archive.save

        def timed(*arguments: Any) -> Tensor:
            result = step(*arguments)
            times.append(time.perf_counter())
            return result

        def timed_save(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = save(*arguments, **options)
            saves.append(time.perf_counter() - start)
            return result

        options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "eval_every": 0}
        with (
            mock.patch.object(capture.BatchStep, "__call__", lambda *a: timed(*a)),
            mock.patch.object(archive.Archive, "save", timed_save),
        ):
            rvi_fast.fit(model, x, progress=False, **options)
            peak = peak_rss()
            mean = (times[-1] - times[steps - 1]) / (len(times) - steps)
            if num_data <= SAVED_ROWS and size == 1 and storage == "device":
                options |= {"epochs": 5, "run_dir": folder / "run", "checkpoint_every": 0}
                rvi_fast.fit(model, x, progress=False, **options)
    on_disk = sum(path.stat().st_size for path in (folder / "tables").glob("*.bin"))
    found = {"milliseconds": 1e3 * seconds_of(times, steps), "mean": 1e3 * mean}
    found |= {"memory": peak, "disk": on_disk}
    return found | ({"checkpoint": undisturbed(saves)} if saves else {})


def check(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Runs beside predictions; those for which there is no room are left out, and say so."""
    hardware, rows = Hardware.load(), list[dict[str, Any]]()
    for num_data in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            mapped_table(folder, num_data)
            for processes, storage in RUNS:
                predicted = predict(num_data, D, hardware, processes=processes, storage=storage)
                row: dict[str, Any] = {
                    "num_data": num_data,
                    "processes": processes,
                    "storage": storage,
                }
                rows.append(row)
                needs = predicted.memory * processes
                free = room.free_memory(device("cpu"))
                if free is not None and needs > SPARED * free:
                    row["error"] = f"needs {needs / 1e9:.0f} GB of memory"
                elif predicted.disk > shutil.disk_usage(folder).free:
                    row["error"] = f"needs {predicted.disk / 1e9:.0f} GB of disk"
                else:
                    found = in_ranks(processes, __file__, num_data, storage, folder)
                    row["measured"] = found[0]
                    row["predicted"] = dataclasses.asdict(predicted)
                shutil.rmtree(folder / "tables", ignore_errors=True)
                shutil.rmtree(folder / "run", ignore_errors=True)
                print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table: predicted, measured, and their ratio."""
    place = "memory" if row["storage"] == "device" else "files"
    start = f"| {row['num_data']:,} | {row['processes']} | {place} |"
    if "error" in row:
        return f"{start} {row['error']} | | | | | | |"
    cells = []
    for name, unit in (("milliseconds", 1), ("memory", 1e9), ("checkpoint", 1)):
        if name not in row["measured"]:
            cells += ["", ""]
            continue
        predicted, measured = row["predicted"][name] / unit, row["measured"][name] / unit
        cells += [f"{predicted:.2f} / {measured:.2f}", f"{predicted / measured:.2f}"]
        if name == "milliseconds":
            cells.append(f"{row['measured']['mean']:.2f}")
    return f"{start} {' | '.join(cells)} |"


HEAD = """# Predicted and measured

`python bench/scale.py measure && {check}`: predicted / measured, and their ratio, of
milliseconds per step with all that an epoch does, peak memory of a process in GB, seconds of a
checkpoint. B = 256, 784 pixels from a mapped file, the standard model; processes of one thread on
{cores} cores, of which two do the work of {capacity:.2f}. The constants are those of parts, measured on
{rows:,} rows, at other batches and, in several processes, with other numbers of features:
`bench/results/scale.json`. Of parts and runs alike a figure is the lower quartile of pieces of some
tenths of a second to seconds: the host of a virtual machine slows it down for seconds at a time.
"mean" is that of whole epochs, disturbed or not. Load average as `measure` began, of what ran before:
{load:.1f}.

| N | processes | rows in | ms per step | | mean | memory | | checkpoint | |
|---|---|---|---|---|---|---|---|---|---|
"""


def main(large: bool) -> None:
    """Writes the table of all runs, or of those of the large size."""
    rows = check(LARGE if large else SIZES)
    hardware, held = Hardware.load(), json.loads(RESULTS.read_text())
    head = HEAD.format(
        cores=hardware.cores,
        capacity=hardware.capacity[2],
        rows=held["rows"],
        load=held["load"],
        check="python bench/scale.py check" + (" --large" if large else ""),
    )
    path = RESULTS.with_name("scale_large.md" if large else "scale.md")
    path.write_text(head + "\n".join(map(line, rows)) + "\n")


FILES = """# Rows in files, in one process and in two

`python bench/scale.py files`: milliseconds per step and peak memory of a process, with {rows:,} rows in
the files of each, 784 uint8 pixels from a mapped file; whole epochs of `fit` after the first, one thread
that trains and one that moves blocks in each process, {cores} cores, load average before it {load:.1f}.

| processes | rows a step, of all | ms per step | GB |
|---|---|---|---|
"""


def files(rows: int = 2_000_000) -> None:
    """Writes what a step takes with `rows` rows in the files of one process, and of each of two."""
    head = FILES.format(rows=rows, cores=os.cpu_count(), load=os.getloadavg()[0])
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for processes, batch in ((1, BATCH), (2, BATCH), (2, 2 * BATCH)):
            mapped_table(folder, rows * processes)
            sizes = rows * processes, "tables", folder, batch
            found = in_ranks(processes, __file__, *sizes)
            shutil.rmtree(folder / "tables")
            step, memory = (max(own[name] for own in found) for name in ("mean", "memory"))
            lines.append(f"| {processes} | {batch} | {step:.2f} | {memory / 1e9:.2f} |")
            print(lines[-1], flush=True)
    RESULTS.with_name("scale_files.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    size, place, where, *batch = sys.argv[1:]
    print(json.dumps(trained(int(size), place, Path(where), *map(int, batch))))
