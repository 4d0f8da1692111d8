"""Training in several processes, one of which gets SIGKILL again and again: nothing may be lost.

    python bench/kills.py --kills 50 --results bench/results/FILE.md

A run of 2 or 4 processes, on the CPU, with rows in memory, in blocks in memory, or in files, and with
moments of both dtypes, is started; one of its processes, drawn from the seed, is killed from outside at
a moment drawn from the seed, and 1, 2 or 4 processes, drawn again, go on with what lies on disk, until a
run has come to its end; then another begins. Half of the starts write checkpoints in a thread. A moment
is a number of calls of Python functions and of functions in C that the process makes after it was
started; for every second kill only calls made in what writes and reads files of a run count. The process
says so and the kill comes some microseconds later, wherever it is then.

A run that came to its end is compared

* bit for bit with a run without kills, of which the same numbers of processes have trained the same
  epochs, each ended by the number of its epochs: all parameters, the history, metrics.jsonl;
* with the run of the first number of processes in one piece: the largest difference is told, which is
  that of float32 sums of other shares, and none where the numbers never differ.

Raises where bits differ, a process does not end, none can go on, or a checkpoint has gone.
"""

import argparse
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections import Counter
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import torch

import rvi_fast
from rvi_fast.training import distributed
from rvi_fast.training.callbacks import Callback
from rvi_fast.training.runs.checkpoints import latest_epoch
from rvi_fast.training.runs.metrics import read_metrics

N, D, BATCH, BLOCK = 96, 6, 8, 4
# what writes and reads files of a run, by the ends of its paths
FILES = re.compile(r"rvi_fast/(files|training/runs/\w+|training/loop/(archive|background))\.py$")
SIZES = (1, 2, 4)
# seconds that a process waits for another one, and the parent for all of them
TIMEOUT, PATIENCE = 30.0, 240.0
HEAD = (
    "# kill -9 at random moments\n\n"
    "`{command}`: runs of {rows} rows of {columns} columns, {epochs} epochs of {steps} steps, a\n"
    "checkpoint after each; {kills} kills of one of their processes (CPU) at a random moment,\n"
    "after which 1, 2 or 4 went on; half of the starts with checkpoint_async. Nothing was lost.\n"
    "Equal: bit for bit a run without kills, each checkpoint of which was waited for, and of which the\n"
    "same numbers of processes trained the same epochs. Difference: the largest of a parameter to\n"
    "the run of the first number in one piece. Half done: how many kills left a checkpoint that had no\n"
    "name yet, a part of a file, tables that others were about to leave beside those they had made.\n\n"
    "| begun by | rows in | moments | kills | runs | equal | difference "
    "| half done: checkpoint | file | tables |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


class Case(NamedTuple):
    """How a run is begun."""

    size: int
    rows_in: str
    moments: str

    def options(self, folder, aside):
        """Of `fit`, but for the number of epochs; `aside`: checkpoints are written in a thread."""
        dtype = torch.bfloat16 if self.moments == "bfloat16" else None
        blocks = None if self.rows_in == "memory" else BLOCK
        return {
            "batch_size": BATCH,
            "posterior_lr": 0.02,
            "progress": False,
            "run_dir": folder / "run",
            "resume": True,
            "checkpoint_every": 0.0,
            "checkpoint_async": aside,
            "block_rows": blocks,
            "moment_dtype": dtype,
        }

    def model(self, folder, shard):
        storage = folder / "tables" if self.rows_in == "files" else "device"
        sizes = {"latent_dim": 4, "hidden": (7,), "groups": (3, 5)}
        torch.manual_seed(3)
        return rvi_fast.models.rvi(N, D, storage=storage, shard=shard, **sizes)


CASES = [
    Case(size, rows_in, moments)
    for rows_in, moments in (
        ("memory", "float32"),
        ("memory", "bfloat16"),
        ("blocks", "bfloat16"),
        ("files", "float32"),
        ("files", "bfloat16"),
    )
    for size in (2, 4)
]


def table():
    """A fourth of it is missing."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, D, generator=generator)
    return torch.where(torch.rand(N, D, generator=generator) < 0.25, torch.nan, x)


# in a process of a run


class Calls:
    """Counts calls of functions in all threads, and tells when `moment` has come.

    Args:
        moment: number of a counter, and what it has to reach: 0 counts all calls, 1 those of `FILES`.
        tell: a pipe to who wants to know, or None.
    """

    def __init__(self, moment, tell):
        self.counts, self.moment, self.tell = [0, 0], moment, tell
        self._of_files = {}

    def __call__(self, frame, event, argument):
        code, counts = frame.f_code, self.counts
        if code not in self._of_files:
            self._of_files[code] = FILES.search(code.co_filename) is not None
        counts[0] += 1
        counts[1] += self._of_files[code]
        which, due = self.moment
        if self.tell is not None and counts[which] >= due:
            tell, self.tell = self.tell, None
            tell.send(due)


class Begun(Exception):
    """A run has begun, and is to end there."""


class EndsAtOnce(Callback):
    """Ends a run before its first step, when it has begun."""

    def begin(self, model, history):
        raise Begun


def _enter(rank, size, port, case, folder, epochs, aside, moment, tell):
    """Trains and writes the state of the model; calls are counted where there is a `moment`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    calls = Calls(moment, tell)
    if moment is not None:
        threading.setprofile(calls)
        sys.setprofile(calls)
    try:
        if size > 1:
            distributed.init(timeout=TIMEOUT, device="cpu")
        model = case.model(folder, distributed.rows_of_rank(N) if size > 1 else None)
        options = case.options(folder, aside)
        options |= {"epochs": max(epochs, 1), "callbacks": () if epochs else (EndsAtOnce(),)}
        try:
            history = rvi_fast.fit(model, table(), **options)
        except (Begun, distributed.RankError):
            if epochs:
                raise
            os._exit(0)
        sys.setprofile(None)
        state = {**model.state_dict(), "history": dict(history), "calls": calls.counts}
        torch.save(state, folder / f"{rank}.pt")
        if size > 1:
            distributed.leave()
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)


# around it

_context = multiprocessing.get_context("forkserver")


def start(case, size, folder, epochs, victim=None, moment=None, *, aside=False):
    """Processes that go on with a run; whether one was killed in its moment. They have ended."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob("*.txt"), *folder.glob("*.pt")):
        path.unlink()
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        port = sock.getsockname()[1]
    heard, tell = _context.Pipe(duplex=False)
    common, processes = (size, port, case, folder, epochs, aside), []
    for rank in range(size):
        own = (moment, tell) if rank == victim else (None if victim is not None else moment, None)
        processes.append(_context.Process(target=_enter, args=(rank, *common, *own)))
    for process in processes:
        process.start()
    tell.close()
    killed = False
    if victim is not None:
        wait([heard, processes[victim].sentinel], PATIENCE)
        if heard.poll():
            try:
                heard.recv()
                os.kill(processes[victim].pid, signal.SIGKILL)
                killed = True
            except EOFError:
                """It has come to its end before."""
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    if None in codes:
        raise RuntimeError(f"{case}: processes that do not end: {codes}")
    if not killed and any(codes):
        raise RuntimeError(f"{case}, {size} processes: {_said(folder)}")
    return killed


def _said(folder):
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))


def ended(folder, size):
    """State of all rows and history of a run that has ended; and the calls of its first process."""
    # written by the processes above
    parts = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
    calls = [part.pop("calls") for part in parts]
    state = parts[0]
    for name, value in state.items():
        if name == "posterior.rows":
            state[name] = torch.cat([part[name] for part in parts])
        elif name == "history":
            assert all(part[name] == value for part in parts)
        else:
            assert all(torch.equal(part[name], value) for part in parts), name
    losses = [record["loss"] for record in read_metrics(folder / "run")]
    assert losses == state["history"]["loss"], f"metrics.jsonl: {losses}"
    return state, calls[0]


def without_kills(case, stages, folder, moment=None):
    """The run of which so many processes each trained up to so many epochs."""
    for size, epochs in stages:
        start(case, size, folder, epochs, moment=moment)
    return ended(folder, stages[-1][0])


def different(state, other):
    """Names of what is not the same bit for bit."""
    assert state.keys() == other.keys()
    equal = {name: torch.equal(state[name], other[name]) for name in state if name != "history"}
    equal["history"] = state["history"] == other["history"]
    return [name for name, same in equal.items() if not same]


def distance(state, other):
    """The largest difference of an entry of a parameter."""
    return max(float((state[n] - other[n]).abs().max()) for n in state if n != "history")


def left_over(folder):
    """What of a killed run is half done."""
    names = [path.name for path in (folder / "run" / "checkpoints").glob("*")]
    tables = {path.name for path in (folder / "tables").glob("rows-*")}
    sizes = {
        size
        for size in SIZES
        for rank in range(size)
        if (own := distributed.rows_of_rank(N, rank=rank, size=size))
        and f"rows-{own.start}-{own.stop}" in tables
    }
    if (folder / "tables" / "rows.bin").exists():
        sizes.add(1)
    return {
        "checkpoint": any(name.startswith(".writing") for name in names),
        "file": any(True for _ in folder.rglob(".*.partial")),
        "tables": len(sizes) > 1,
    }


class Killed:
    """Runs of one case that are killed until they have been so often enough.

    Attributes:
        kills, runs: how often, and runs that came to their end.
        half: how often something lay there half done, by what.
        distance: the largest from the run in one piece.
    """

    def __init__(self, case, folder, chance, epochs):
        self.case, self.folder, self.chance, self.epochs = case, folder, chance, epochs
        self.kills = self.runs = 0
        self.half, self.distance = Counter(), 0.0
        stages = [(case.size, epochs)]
        self.whole, self.calls = without_kills(case, stages, folder / "whole", (0, 0))

    def go(self, kills):
        """Kills so often, and lets the last run come to its end."""
        while self.kills < kills:
            self._run(kills)

    def _run(self, kills):
        """A run to its end, and what it is compared with."""
        folder = self.folder / f"killed-{self.runs}"
        stages, size = [], self.case.size
        while True:
            victim, moment = None, None
            if self.kills < kills:
                victim, which = self.chance.randrange(size), self.kills % 2
                moment = which, self.chance.randrange(self.calls[which])
            aside = self.chance.random() < 0.5
            killed = start(self.case, size, folder, self.epochs, victim, moment, aside=aside)
            epoch = latest_epoch(folder / "run")
            before = stages[-1][1] if stages else -1
            reached = -1 if epoch is None else epoch
            if reached < before:
                raise RuntimeError(f"{self.case}: epoch {before} had a checkpoint, has {epoch} now")
            if reached > before:
                stages.append((size, reached))
            if not killed:
                break
            self.kills += 1
            found = [name for name, there in left_over(folder).items() if there]
            self.half.update(found)
            what, reached = ("call", "call in files")[which], moment[1]
            what = f"{what} (async)" if aside else what
            where = (
                f"in {what} {reached} of {self.calls[which]}, with the checkpoint of epoch {epoch}"
            )
            print(f"  process {victim} of {size} {where}, half done: {found}", flush=True)
            # what has left no checkpoint begins again as the run in one piece did
            size = self.chance.choice(SIZES) if stages else self.case.size
        self._compare(stages, folder, size)

    def _compare(self, stages, folder, size):
        state, _ = ended(folder, size)
        again, _ = without_kills(self.case, stages, self.folder / f"again-{self.runs}")
        if wrong := different(state, again):
            raise RuntimeError(f"{self.case}, {stages}: other bits in {', '.join(wrong)}")
        alike = {size for size, _ in stages} == {self.case.size}
        if alike and (wrong := different(state, self.whole)):
            raise RuntimeError(f"{self.case}, in one piece: other bits in {', '.join(wrong)}")
        self.distance = max(self.distance, distance(state, self.whole))
        self.runs += 1
        for path in self.folder.glob(f"*-{self.runs - 1}"):
            shutil.rmtree(path)

    def line(self):
        """Of the table."""
        case, half = self.case, self.half
        cells = [case.size, case.rows_in, case.moments, self.kills, self.runs, self.runs]
        cells += [f"{self.distance:.0e}" if self.distance else "0"]
        cells += [half[name] for name in ("checkpoint", "file", "tables")]
        return f"| {' | '.join(map(str, cells))} |\n"


def main(arguments=None):
    """Kills, compares, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of all cases together")
    parser.add_argument("--epochs", type=int, default=8, help="of a run")
    parser.add_argument("--seed", type=int, default=0, help="of moments and processes")
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of them; all if not given")
    parser.add_argument("--results", type=Path, help="where the table is written to")
    options = parser.parse_args(arguments)
    numbers = range(len(CASES)) if options.cases is None else options.cases
    lines = []
    for place, number in enumerate(numbers, start=1):
        kills = options.kills * place // len(numbers) - sum(line.kills for line in lines)
        with tempfile.TemporaryDirectory() as name:
            chance = random.Random(f"{options.seed} {number}")
            killed = Killed(CASES[number], Path(name), chance, options.epochs)
            killed.go(kills)
        lines.append(killed)
        print(killed.line(), end="", flush=True)
    if options.results is not None:
        words = " ".join(map(str, sys.argv[1:] if arguments is None else arguments))
        sizes = {"rows": N, "columns": D, "epochs": options.epochs, "steps": -(-N // BATCH)}
        head = HEAD.format(command=f"python bench/kills.py {words}", kills=options.kills, **sizes)
        options.results.write_text(head + "".join(line.line() for line in lines))


if __name__ == "__main__":
    # those that are killed leave semaphores of tqdm to the tracker of multiprocessing, which warns
    os.environ["PYTHONWARNINGS"] = "ignore"
    # a process is a fork of one that has imported everything, dynamo above all
    _context.set_forkserver_preload(
        ["torch", "torch._dynamo", "torch.distributed.checkpoint", "rvi_fast", "kills"]
    )
    # under the name by which a process finds what it is to run
    import kills

    kills.main()
