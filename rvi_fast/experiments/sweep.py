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
import functools
import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import _checks
from .._version import __version__
from ..files import read_bytes, write_text
from ..training.loop.interrupts import Interrupted, deferred
from ..training.runs.directory import RunDirectory
from ..training.workers import Say, side_by_side

# a frozen dataclass and the directory of its run -> what JSON can hold
Run = Callable[[Any, Path], dict[str, Any]]


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
        KeyboardInterrupt: after Ctrl-C, once the runs at work have left a checkpoint; a second one is
            raised at once.
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
        tasks = [(config, directories[config]) for config in waiting]
        work = functools.partial(_run_one, run)
        with (
            tqdm(total=len(directories), initial=done, unit="run", disable=not progress) as bar,
            deferred() as request,
            contextlib.closing(side_by_side(work, tasks, min(jobs, len(tasks)), request)) as ends,
        ):
            for number, ended in ends:
                error = ended.result if ended.error is None else str(ended.error)
                if error is not None:
                    errors[waiting[number]] = error
                bar.update()
        if request.signum is not None:
            raise Interrupted(request.signum, "the sweep was stopped; started again it goes on")
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


def _run_one(run: Run, task: tuple[Any, Path], say: Say) -> str | None:
    """Does one run; what went wrong, if anything did."""
    config, directory = task
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
