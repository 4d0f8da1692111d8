"""Many runs side by side, each in a directory of its own that outlives a kill.

    out/3f0c2b9d41e6a87c/ config.json    what was asked for
                          result.json    what came out; written last, its presence marks the run done;
                                         "made" says by which version, in how many seconds, and
                                         whether an earlier start had been interrupted (seconds
                                         are then those since the last start)

The directory is named by a hash of the configuration, see `directory_of`. A run that is done is not
started again; one that was interrupted is called again with its directory, where it finds its own
checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import _checks
from .._version import __version__
from ..files import read_bytes, write_text
from ..training.runs.directory import RunDirectory

# a frozen dataclass and the directory of its run -> what JSON can hold
Run = Callable[[Any, Path], dict[str, Any]]

_SPAWN = multiprocessing.get_context("spawn")


class SweepError(RuntimeError):
    """Some runs of a sweep failed; the message says which and why, all others are done."""


def sweep(
    configurations: Sequence[Any],
    run: Run,
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Runs every configuration once, `jobs` at a time.

    Args:
        configurations: frozen dataclasses of what JSON can hold; equal ones are one run.
        run: called in another process, where torch has one thread, with a configuration and its
            directory; a function of a module, or a `functools.partial` of one. It is called again
            with the same directory after an interruption. What it leaves in `checkpoints/` is
            removed when the run is done.
        out: directory of all runs; only one sweep can use it at a time.
        jobs: processes side by side.
        progress: show a bar over all runs.

    Returns:
        The results in the order of `configurations`.

    Raises:
        SweepError: at the end, if any run failed. Starting again repeats those only.
        RunDirectoryInUse: another sweep uses `out`.
    """
    _checks.check_positive_int("jobs", jobs)
    with RunDirectory(out) as held:
        root = Path(held)
        directories = {config: directory_of(root, config) for config in configurations}
        waiting = [c for c, directory in directories.items() if _result(directory) is None]
        for config in directories.keys() - set(waiting):
            # a kill may have come between the result and their removal
            _drop_checkpoints(directories[config])
        errors: dict[Any, str] = {}
        done = len(directories) - len(waiting)
        with (
            tqdm(total=len(directories), initial=done, unit="run", disable=not progress) as bar,
            contextlib.ExitStack() as stack,
        ):
            workers = [stack.enter_context(_Worker(run)) for _ in range(min(jobs, len(waiting)))]
            waiting.reverse()
            while waiting or any(worker.busy for worker in workers):
                for worker in workers:
                    if waiting and not worker.busy:
                        config = waiting.pop()
                        worker.start(config, directories[config])
                ready = wait([worker.connection for worker in workers if worker.busy])
                for worker in workers:
                    if worker.connection in ready:
                        config = worker.config
                        error = worker.finish()
                        if error is not None:
                            errors[config] = error
                        bar.update()
        if errors:
            lines = "".join(f"\n{directories[c]}: {error}" for c, error in errors.items())
            raise SweepError(f"{len(errors)} of {len(directories)} runs failed:{lines}")
        results = {config: _result(directory) for config, directory in directories.items()}
        return [results[config] or {} for config in configurations]


def directory_of(out: Path, config: Any) -> Path:
    """Where the run of a configuration lies.

    The name is a hash of the fields that its class lists in `NAMED`, and of all others that differ from
    their defaults: a field that comes later leaves the runs that are done with the names they have. A
    class without `NAMED` is named by what differs from its defaults alone.
    """
    named: frozenset[str] = getattr(config, "NAMED", frozenset())
    defaults = {entry.name: entry.default for entry in fields(config)}
    own = {
        name: value
        for name, value in asdict(config).items()
        if name in named or value != defaults[name]
    }
    text = json.dumps(own, sort_keys=True, allow_nan=False)
    return out / hashlib.sha256(text.encode()).hexdigest()[:16]


def read_result(directory: Path) -> dict[str, Any] | None:
    """What a run came to, with "made"; None if it is not done."""
    try:
        result = json.loads(read_bytes(directory / "result.json"))
    except (FileNotFoundError, ValueError):  # damaged later on: the run is done again
        return None
    return result if isinstance(result, dict) else None


def _result(directory: Path) -> dict[str, Any] | None:
    """What the run function returned: the same wherever and however fast it ran."""
    result = read_result(directory)
    return result and {name: value for name, value in result.items() if name != "made"}


def _drop_checkpoints(directory: Path) -> None:
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)


class _Worker:
    """A process that does one run after the other; one that dies is replaced."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config: Any = None
        self.busy = False
        self._spawn()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.busy:
            self.process.kill()
        self.connection.close()  # an idle worker reads the end, and ends
        self.process.join()

    def start(self, config: Any, directory: Path) -> None:
        self.config, self.busy = config, True
        if not self.process.is_alive():
            self._spawn()
        self.connection.send((config, directory))

    def finish(self) -> str | None:
        """What went wrong in the run that has ended, if anything did."""
        self.busy = False
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            self.connection.close()
            return f"the process died, exit code {self.process.exitcode}"

    def _spawn(self) -> None:
        self.connection, other = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(self.run, other), daemon=True)
        self.process.start()
        other.close()  # or the death of the process would not end the pipe


def _serve(run: Run, connection: Connection) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            config, directory = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            connection.send(_run_one(run, config, directory))
        except KeyboardInterrupt:
            return


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a run without its sweep would hold its directory against the next one


def _run_one(run: Run, config: Any, directory: Path) -> str | None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        started, resumed = time.monotonic(), (directory / "config.json").exists()
        write_text(directory / "config.json", json.dumps(asdict(config), indent=2) + "\n")
        result = run(config, directory)
        seconds = round(time.monotonic() - started, 3)
        made = {"seconds": seconds, "version": __version__, "resumed": resumed}
        write_text(
            directory / "result.json", json.dumps(result | {"made": made}, allow_nan=False) + "\n"
        )
        _drop_checkpoints(directory)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return f"{type(error).__name__}: {error} ({where})"
    return None
