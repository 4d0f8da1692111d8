"""What checkpoints take from the steps, written by the thread that trains and by another one.

    OMP_NUM_THREADS=1 python bench/checkpoint_async.py --results bench/results/FILE.md

With tables in memory, then in files: three runs of the same model go on in turn, an epoch each. One
leaves no checkpoints, one waits for a checkpoint after each epoch, one has it written in a thread
(`fit(checkpoint_async=True)`), which ends before the next run has its turn. CPU time is that of the
thread that trains; what its steps wait for is in the wall times alone, and these are of a machine that
may have other things to do: they are medians over epochs that lie side by side.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import torch
from bench_large_n import BATCH, GROUPS, D, T

import rvi_fast
from rvi_fast.progress import progress_bar
from rvi_fast.training.loop.interrupts import Request
from rvi_fast.training.opening import opened
from rvi_fast.training.settings import Settings

KINDS = ("none", "waited for", "in a thread")
HEAD = """# Checkpoints beside training

`OMP_NUM_THREADS=1 python bench/checkpoint_async.py {words}`:
{rows} rows of {columns} pixels, the standard model, epochs of {steps} steps of {batch} rows,
a checkpoint after each of the {epochs} that count; one thread of a CPU of {cores} cores. Load average
{load:.1f}: wall times are those of a busy machine, whose other core has other work to do. CPU: of the
thread that trains, all that a checkpoint costs it in the epoch that follows. Held up: wall time
till the next step. In all: wall time of an epoch over that of the one beside it that has no
checkpoint. Shares are those of training with a checkpoint every 30 s, as it is if not told
otherwise. The time of tables in files has that of their journal in it.

| rows in | checkpoints | MB | CPU, ms a step | CPU, s each | share | held up, s | in all, s | share |
|---|---|---|---|---|---|---|---|---|
"""
# seconds between two checkpoints
EVERY = 30.0


class Turns:
    """A run that makes an epoch at a time.

    Attributes:
        ends, steps: wall and CPU seconds of the end of each epoch with the first step of the next, and
            of the other steps of that.
    """

    def __init__(self, stack, kind, x, epochs, *, in_files):
        torch.manual_seed(0)
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        storage = self.folder / "tables" if in_files else "device"
        model = rvi_fast.models.rvi(len(x), D, latent_dim=T, groups=GROUPS, storage=storage)
        settings = Settings(
            epochs=epochs,
            batch_size=BATCH,
            eval_every=0,
            run_dir=None if kind == "none" else self.folder,
            checkpoint_every=0.0,
            checkpoint_async=kind == "in a thread",
        )
        self.run = stack.enter_context(opened(model, x, None, settings))
        bar = stack.enter_context(progress_bar(1, initial=0, unit="step", shown=False))
        self._steps = self.run.advance(Request(), bar)
        self.ends, self.steps = [], []

    def epoch(self):
        """The end of the epoch before, with its checkpoint, and the steps of this one."""
        self.ends.append(self._timed(1))
        self.steps.append(self._timed(self.run.steps_per_epoch - 1))
        written = getattr(self.run.archive, "background", None)
        if getattr(written, "_writing", None) is not None:
            written._writing.result()

    def _timed(self, count):
        wall, own = time.perf_counter(), time.thread_time()
        for _ in islice(self._steps, count):
            """A step has been made."""
        return time.perf_counter() - wall, time.thread_time() - own


def measured(rows, epochs, *, in_files):
    """Lines of the table, and steps of an epoch."""
    x = torch.randint(0, 256, (rows, D), dtype=torch.uint8)
    with ExitStack() as stack:
        # two epochs before those that count touch memory for the first time
        turns = {kind: Turns(stack, kind, x, epochs + 4, in_files=in_files) for kind in KINDS}
        for _ in range(epochs + 2):
            for turn in turns.values():
                turn.epoch()
        base, place = turns["none"], "files" if in_files else "memory"
        lines = [
            f"| {place} | {' | '.join(_cells(k, turn, base))} |\n" for k, turn in turns.items()
        ]
    return "".join(lines), base.run.steps_per_epoch


def _cells(kind, turn, base):
    """Medians over epochs that lie side by side."""
    pairs = [*zip(turn.ends[2:], turn.steps[2:], base.ends[2:], base.steps[2:], strict=True)]

    def typical(value):
        return statistics.median(value(*pair) for pair in pairs)

    own = typical(lambda end, steps, *_: end[1] + steps[1]) / base.run.steps_per_epoch
    if turn is base:
        return [kind, "", f"{1e3 * own:.2f}", "", "", "", "", ""]
    size = sum(path.stat().st_size for path in turn.folder.glob("checkpoints/*/*.safetensors"))
    used = typical(lambda end, steps, a, b: end[1] + steps[1] - a[1] - b[1])
    held = typical(lambda end, steps, a, b: end[0] - a[0])
    whole = typical(lambda end, steps, a, b: end[0] + steps[0] - a[0] - b[0])
    cells = [kind, f"{size / 2e6:.1f}", f"{1e3 * own:.2f}", f"{used:.3f}", f"{used / EVERY:.2%}"]
    return [*cells, f"{held:.2f}", f"{whole:.2f}", f"{whole / EVERY:.1%}"]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=7, help="that count, of each run")
    parser.add_argument("--results", type=Path, help="where the table is written to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    lines = ""
    for in_files in (False, True):
        own, steps = measured(options.rows, options.epochs, in_files=in_files)
        print(own, end="", flush=True)
        lines += own
    if options.results is not None:
        words = " ".join(sys.argv[1:] if arguments is None else arguments)
        own = {
            "words": words,
            "rows": f"{options.rows:,}",
            "columns": D,
            "steps": steps,
            "batch": BATCH,
        }
        own |= {
            "cores": len(os.sched_getaffinity(0)),
            "epochs": options.epochs,
            "load": load,
        }
        options.results.write_text(HEAD.format(**own) + lines)


if __name__ == "__main__":
    main()
