"""Runs one imputer, each task in a process of its own: `python -m imputation.worker IMPUTER LIMIT`.

Reads a line for each task, `SEED FOLDER`, and answers with one when it is done. In the folder lies
`PART.npz` for each part ("in-sample", "new") that is asked for: `fit` [N, D] and, for new rows, `rows`
[M, D], with NaN wherever an entry is hidden; nothing else is known here. Written are
`PART.filled.npz`, with `filled`, where the imputer draws `draws` [S, hidden], and where it gives
intervals `ends` [levels, 2, hidden]; and after it `PART.json`: CPU seconds of fitting and filling in,
and MiB of memory; or `PART.failure`, a line.

The process that reads has imported what the imputer needs and does nothing else: each part is a fork
of it, so that its memory and time are its own, and imports are no part of them.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("in-sample", "new")
DRAWS, LEVELS = 100, (0.5, 0.9)
# entries of draws: beyond these the imputer is scored without
MOST_DRAWN = 200_000_000


def main(name: str, limit: int) -> None:
    """Answers every line of the standard input.

    Args:
        name: of an imputer of `peers.PEERS`.
        limit: CPU seconds that a part may take.
    """
    from imputation.peers import PEERS

    warnings.simplefilter("ignore")
    # what packages print is no answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    make, failure = PEERS[name].make, ""
    try:
        make(0)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    for line in sys.stdin:
        seed, folder = line.rstrip("\n").split(" ", 1)
        for part in PARTS:
            if (Path(folder) / f"{part}.npz").is_file():
                said = failure or _forked(make, int(seed), Path(folder), part, limit)
                if said:
                    (Path(folder) / f"{part}.failure").write_text(said, encoding="utf-8")
        print("done", file=answers, flush=True)


def _forked(make: Callable[[int], Any], seed: int, folder: Path, part: str, limit: int) -> str:
    """Runs a part in a process of its own; "" or what went wrong."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            os.chdir(folder)  # where packages leave their logs
            _run(make, seed, folder, part)
        except BaseException as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            (folder / f"{part}.failure").write_text(reason, encoding="utf-8")
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"over {limit} CPU seconds, or out of memory"
    return f"ended by signal {-code}" if code < 0 else ""


def _run(make: Callable[[int], Any], seed: int, folder: Path, part: str) -> None:
    with np.load(folder / f"{part}.npz") as arrays:
        given = dict(arrays)
    before, start = _restart(), _cpu()
    imputer = make(seed)
    rows = given.get("rows", given["fit"])
    if part == "in-sample" and hasattr(imputer, "fit_transform"):
        filled = imputer.fit_transform(given["fit"])
        fitted = _cpu()
    else:
        imputer.fit(given["fit"])
        fitted = _cpu()
        filled = imputer.transform(rows)
    done, most = _cpu(), _most()
    results = {"filled": np.asarray(filled, np.float64)}
    hidden = np.isnan(rows)
    if hasattr(imputer, "draws") and DRAWS * rows.size < MOST_DRAWN:
        results["draws"] = imputer.draws(rows, DRAWS, seed)[:, hidden].astype(np.float32)
    if hasattr(imputer, "intervals"):
        ends = [imputer.intervals(rows, level) for level in LEVELS]
        results["ends"] = np.array([[end[hidden] for end in of] for of in ends], np.float32)
    np.savez(folder / f"{part}.filled.npz", **results)
    measured = {"fit_s": fitted - start, "transform_s": done - fitted, "memory_mib": most - before}
    (folder / f"{part}.json").write_text(json.dumps(measured), encoding="utf-8")


def _cpu() -> float:
    """CPU seconds of this process, all its threads, and the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _restart() -> float:
    """Forgets the highest memory so far, where the system can, and gives what is held now, in MiB."""
    with suppress(OSError):  # not Linux: the highest of the process's life
        Path("/proc/self/clear_refs").write_text("5")
    return _most()


def _most() -> float:
    """Highest memory, MiB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
