"""A directory of Parquet files with holes: trained on, imputed to another one, killed, checked.

    python bench/parquet.py --directory build/parquet --results bench/results/FILE.md

makes 5,000,000 rows of 50 columns in 40 files with a fifth of the cells missing: a table of low rank
and noise, in float32 but for some columns of float64 and whole numbers, with keys and categories beside
them. `rvi-fast train` and `rvi-fast impute` then run as anybody runs them; `impute` gets SIGKILL at two
moments drawn from the seed, and is started again. At the end each file is compared with its input
(schema, keys, every observed cell to the bit, nothing missing) and with the truth, which is drawn once
more from the seed. What is made stays in the directory, 7 GB at full size; only Linux tells memory.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rvi_fast.training import recipe

NOISE, MISSING = 0.3, 0.2
# rows drawn at once, and the unit of columns of whole numbers
CHUNK, UNIT = 1 << 16, 0.01
HEAD = (
    "`{command}`: rows x columns in files; minutes (CPU minutes of processes that were not killed) and "
    "largest resident memory of all processes together, mapped files included, of `train` with the "
    "conversion and of `impute`; how often that was killed; and the root mean square error of the cells "
    "that were missing over the standard deviation of their columns. Whoever knows the parameters of "
    "the table is wrong by the floor.\n\n"
    "| table | files | train, min | GB | impute, min | GB | kills | RMSE | floor |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
)


class Table(NamedTuple):
    """Which table is drawn."""

    rows: int
    columns: int
    files: int
    rank: int
    seed: int

    def sizes(self):
        """Rows of each file."""
        return [len(part) for part in np.array_split(np.arange(self.rows), self.files)]

    def weights(self):
        """[rank, D]: each column has variance 1 without noise."""
        drawn = np.random.default_rng((self.seed, 0)).normal(size=(self.rank, self.columns))
        return drawn / np.linalg.norm(drawn, axis=0)

    def parts(self, file):
        """Truth [n, D] float64 and which cells are observed, some rows of a file at a time."""
        generator, weights = np.random.default_rng((self.seed, 1, file)), self.weights()
        left = self.sizes()[file]
        while left:
            rows = min(left, CHUNK)
            truth = generator.normal(size=(rows, self.rank)) @ weights
            truth += NOISE * generator.normal(size=truth.shape)
            yield truth, generator.random(truth.shape) >= MISSING
            left -= rows

    def kind(self, column):
        """What a column holds: a tenth float64, a tenth whole numbers, the others float32."""
        return {0: "double", 1: "int32"}.get(column % 10, "float")

    def floor(self):
        """The error of who knows weights and noise, over the standard deviation of a column."""
        weights, generator = self.weights(), np.random.default_rng((self.seed, 2))
        squares = []
        for _ in range(200):
            shown = generator.random(self.columns) >= MISSING
            precision = np.eye(self.rank) + weights[:, shown] @ weights[:, shown].T / NOISE**2
            hidden = weights[:, ~shown]
            squares += list((hidden * np.linalg.solve(precision, hidden)).sum(0) + NOISE**2)
        return np.sqrt(np.mean(squares) / (1 + NOISE**2))


def write(table, directory):
    """The files, a row group for each chunk of rows."""
    import pyarrow as pa
    from pyarrow import parquet

    directory.mkdir(parents=True)
    for file in range(table.files):
        writer, first = None, 0
        for truth, shown in table.parts(file):
            keys = np.arange(first, first + len(truth))
            columns = {"key": pa.array([f"{file}-{key}" for key in keys])}
            for place in range(table.columns):
                kind, values = table.kind(place), truth[:, place]
                values = np.rint(values / UNIT) if kind == "int32" else values
                own = pa.array(values, mask=~shown[:, place])
                columns[f"x{place}"] = own.cast(
                    getattr(pa, kind.replace("double", "float64"))()
                    if kind != "float"
                    else pa.float32(),
                    safe=False,
                )
            places = pa.array(np.array(["east", "north", "west"])[keys % 3])
            columns["place"] = places.dictionary_encode()
            made = pa.table(columns)
            if writer is None:
                writer = parquet.ParquetWriter(directory / f"part-{file:03}.parquet", made.schema)
            writer.write_table(made)
            first += len(truth)
        writer.close()


def errors(table, source, out, file):
    """Squared error of each missing cell, summed, and their number; raises where a file is not right."""
    from pyarrow import compute, parquet

    name = f"part-{file:03}.parquet"
    with parquet.ParquetFile(source / name) as before, parquet.ParquetFile(out / name) as after:
        assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True), name
        assert after.metadata.num_rows == before.metadata.num_rows, name
        total, count = 0.0, 0
        groups = zip(table.parts(file), range(before.num_row_groups), strict=True)
        for (truth, shown), group in groups:
            old, new = before.read_row_group(group), after.read_row_group(group)
            for column in old.column_names:
                known = compute.is_valid(old.column(column))
                again = compute.if_else(known, new.column(column), None)
                assert again.equals(old.column(column)), f"{name}: {column}: an observed cell"
                assert new.column(column).null_count == 0, f"{name}: {column}: a gap"
            for place in range(table.columns):
                hidden = ~shown[:, place]
                filled = new.column(f"x{place}").to_numpy()[hidden].astype(np.float64)
                filled *= UNIT if table.kind(place) == "int32" else 1.0
                total += np.sum((filled - truth[hidden, place]) ** 2)
                count += int(hidden.sum())
    return total, count


class Part(NamedTuple):
    """What a command took: seconds, CPU seconds of its processes, GB of all of them together."""

    wall: float
    cpu: float
    memory: float

    def plus(self, other):
        """Of two that came after each other."""
        return Part(self.wall + other.wall, self.cpu + other.cpu, max(self.memory, other.memory))

    def __str__(self):
        return f"{self.wall / 60:.1f} ({self.cpu / 60:.1f}) | {self.memory:.2f}"


def cpu_time():
    """CPU seconds of all processes that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Memory:
    """Largest resident memory of a process and those that it has started, in GB."""

    def __init__(self, process):
        self.peak, self._process = 0.0, process
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        while self._process.poll() is None:
            self.peak = max(self.peak, sum(map(resident, family(self._process.pid))) / 1e9)
            time.sleep(0.05)


def family(process):
    """A process and all that it has started."""
    yield process
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = path.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


def resident(process):
    """Resident bytes of a process, 0 where it has gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(arguments, kill=None):
    """Runs a command of rvi-fast; what it took, and whether `kill` has ended it.

    `kill` is asked again and again whether the moment has come.
    """
    command = [sys.executable, "-m", "rvi_fast", *map(str, arguments)]
    began, used = time.monotonic(), cpu_time()
    with subprocess.Popen(command) as process:
        memory = Memory(process)
        killed = False
        while process.poll() is None and not killed:
            time.sleep(0.02)
            if kill is not None and kill():
                process.send_signal(signal.SIGKILL)
                killed = True
    if process.returncode != (-signal.SIGKILL if killed else 0):
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Part(time.monotonic() - began, cpu_time() - used, memory.peak), killed


def finished(out):
    """When each file was written that `impute` has noted as done."""
    listed = out / "_rvi_fast.jsonl"
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [json.loads(line)["file"] for line in lines[1:] if line.endswith("}")]
    return {name: (out / name).stat().st_mtime_ns for name in names}


def moment(out, generator, files):
    """When to kill: while a file is written, some files after what is there."""
    began, at = [], []
    there = len(list(out.glob("*.parquet")))
    wanted, share = int(generator.integers(0, max(1, (files - there) // 2))), generator.random()

    def come():
        now = time.monotonic()
        done = len(list(out.glob("*.parquet"))) - there
        if not began and list(out.glob(".*.partial")):
            began.append(now)
        if began and done >= wanted and not at:
            # a part of the time that a file takes
            at.append(now + share * (now - began[0]) / max(done, 1))
        return bool(at) and now >= at[0]

    return come


def commands(options, source, out, run_dir):
    """Arguments of `rvi-fast` that train, and that impute."""
    found = recipe(options.rows, epochs=options.epochs)
    rates = {"epochs": found.epochs, "batch-size": found.batch_size, "lr": found.lr}
    rates |= {"posterior-lr": found.posterior_lr, "latent-dim": options.latent_dim}
    rates |= {"groups": options.groups, "hidden": options.hidden}
    named = [word for name, value in rates.items() for word in (f"--{name}", value)]
    trained = ["train", "--data", source, "--run-dir", run_dir, *named, *options.train.split()]
    filling = ["impute", "--run-dir", run_dir, "--data", source, "--out", out]
    filling += [] if options.jobs is None else ["--jobs", options.jobs]
    return trained, [*filling, *options.impute.split()]


def measured(options):
    """A row of the table of results."""
    table = Table(options.rows, options.columns, options.files, options.rank, options.seed)
    directory = options.directory
    source, out = directory / "in", directory / "out"
    if not source.exists():
        write(table, directory / "made")
        (directory / "made").rename(source)
    trained, filling = commands(options, source, out, directory / "run")
    training, _ = run(trained)
    generator, kills = np.random.default_rng((options.seed, 3)), 0
    imputing, killed = Part(0.0, 0.0, 0.0), True
    while killed:
        kept = finished(out)
        kill = moment(out, generator, options.files) if kills < options.kills else None
        part, killed = run(filling, kill)
        imputing, kills = imputing.plus(part), kills + killed
        again = [name for name, written in kept.items() if finished(out).get(name) != written]
        assert not again, f"written again: {again}"
    sums = [errors(table, source, out, file) for file in range(options.files)]
    total, count = map(sum, zip(*sums, strict=True))
    error = np.sqrt(total / count / (1 + NOISE**2))
    size = f"{table.rows:,} x {table.columns}"
    scores = f"{error:.3f} | {table.floor():.3f}"
    return f"| {size} | {table.files} | {training} | {imputing} | {kills} | {scores} |"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {"rows": 5_000_000, "columns": 50, "files": 40, "rank": 6, "seed": 0, "kills": 2}
    numbers |= {"epochs": 8, "latent-dim": 8, "groups": 25, "hidden": 32}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--jobs", type=int, help="processes of impute (default: all processors)")
    moments = "--moments bfloat16"
    parser.add_argument("--train", default=moments, help=f"further options (default: {moments})")
    parser.add_argument("--impute", default="", help="further options of rvi-fast impute")
    parser.add_argument("--directory", type=Path, required=True, help="where all files go")
    parser.add_argument("--results", type=Path, help="add a row to the table in this file")
    options = parser.parse_args(arguments)
    row = measured(options)
    print(row)
    if options.results is not None:
        words = " ".join(sys.argv[1:] if arguments is None else arguments)
        head = HEAD.format(command=f"python bench/parquet.py {words}")
        text = options.results.read_text() if options.results.exists() else head
        options.results.write_text(f"{text}{row}\n")


if __name__ == "__main__":
    main()
