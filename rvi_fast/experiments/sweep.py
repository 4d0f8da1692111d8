"""Many runs side by side, each in a directory of its own that outlives a kill.

    out/3f0c2b9d41e6a87c/ config.json    what was asked for
                          result.json    what came out; written last, its presence marks the run done;
                                         "made" says by which version, in how many seconds, and
                                         whether an earlier start had been interrupted (seconds
                                         are then those since the last start); elsewhere than on
                                         the CPU also where, and how many runs were at work together

The directory is named by a hash of the configuration, see `directory_of`. A run that is done is not
started again; one that was interrupted is called again with its directory, where it finds its own
checkpoints.

All models are trained by `fit_many`. On the CPU it is given one run in each of `jobs` processes, those
that `fit_many` would start itself: reading, inference and scores of the runs are then spread over the
processors as well, where one call over all runs would leave them to this process, one after the other.
On a GPU it is given `jobs` runs of one shape in one process, whose small steps fill the device together.
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
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from .. import _checks
from .._version import __version__
from ..files import read_bytes, write_text
from ..progress import progress_bar
from ..training.loop.interrupts import Interrupted, Request, deferred
from ..training.runs.directory import RunDirectory
from ..training.workers import Say, side_by_side
from .work import Work, train

# a frozen dataclass and the directory of its run -> what JSON can hold, or the work that returns that
Run = Callable[[Any, Path], dict[str, Any] | Work[dict[str, Any]]]
# a configuration and its directory
_Task = tuple[Any, Path]


class SweepError(RuntimeError):
    """Some runs of a sweep failed; the message says which and why, all others are done."""


def sweep(
    configurations: Sequence[Any],
    run: Run,
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    device: str | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Runs every configuration once, `jobs` at a time.

    Args:
        configurations: frozen dataclasses of what JSON can hold; equal ones are one run. Those with an
            equal `shape`, if they have such an attribute, take equally many steps of one size.
        run: called in another process, where torch has one thread, with a configuration and its
            directory; a function of a module, or a `functools.partial` of one. It is called again
            with the same directory after an interruption. What it leaves in `checkpoints/` is
            removed when the run is done. It returns the result, or a generator that asks for
            what it trains, see `work`.
        out: directory of all runs; only one sweep can use it at a time.
        jobs: processes side by side. Elsewhere than on the CPU, runs of one shape that one process
            trains side by side.
        device: where the models of generators are trained; the CPU if not given.
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
    on_cpu = device is None or torch.device(device).type == "cpu"
    processes, together = (jobs, 1) if on_cpu else (1, jobs)
    with RunDirectory(out) as held:
        root = Path(held)
        directories = {config: directory_of(root, config) for config in configurations}
        waiting = [task for task in directories.items() if _result(task[1]) is None]
        for config in directories.keys() - {config for config, _ in waiting}:
            # a kill may have come between the result and their removal
            _drop_checkpoints(directories[config])
        done = len(directories) - len(waiting)
        with (
            progress_bar(len(directories), unit="run", initial=done, shown=progress) as bar,
            deferred() as request,
        ):
            groups = [*_of_one_shape(waiting, together)]
            work = functools.partial(_run_together, run, device)
            errors = _do_all(work, groups, processes, request, bar.update)
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


def _of_one_shape(tasks: Sequence[_Task], most: int) -> Iterator[list[_Task]]:
    """Tasks in groups of at most so many, each of one shape; in the order given where they are alone."""
    groups: dict[Any, list[_Task]] = {}
    for task in tasks:
        shape = getattr(task[0], "shape", None)
        group = groups.setdefault(shape, [])
        group.append(task)
        if len(group) == most:
            yield groups.pop(shape)
    yield from groups.values()


def _do_all(
    work: Callable[[list[_Task], Say], None],
    groups: list[list[_Task]],
    processes: int,
    request: Request,
    count: Callable[[int], object],
) -> dict[Any, str]:
    """Does all groups of runs; what went wrong, by configuration."""
    errors: dict[Any, str | None] = {}
    while groups and request.signum is None:
        ended, again = _do(work, groups, processes, request, count)
        errors |= ended
        groups = [[task] for task in again]
    return {config: error for config, error in errors.items() if error is not None}


def _do(
    work: Callable[[list[_Task], Say], None],
    groups: list[list[_Task]],
    processes: int,
    request: Request,
    count: Callable[[int], object],
) -> tuple[dict[Any, str | None], list[_Task]]:
    """Does groups of runs once.

    Returns:
        What went wrong, by configuration, None where nothing did; and the tasks of those that were
        at work beside one that has ended the process of all, whichever it was.
    """
    ended: dict[Any, str | None] = {}
    again: list[_Task] = []

    def hear(number: int, said: tuple[int, str | None]) -> None:
        position, error = said
        ended[groups[number][position][0]] = error
        count(1)

    ends = side_by_side(work, groups, min(processes, len(groups)), request, hear)
    with contextlib.closing(ends):
        for number, end in ends:
            left = [task for task in groups[number] if task[0] not in ended]
            if end.error is not None and len(groups[number]) > 1:
                again += left
            elif end.error is not None and left:
                hear(number, (0, str(end.error)))
    return ended, again


def _run_together(run: Run, device: str | None, tasks: Sequence[_Task], say: Say) -> None:
    """Does some runs at a time; says of each, by its position, what went wrong, None if nothing did."""
    made = {} if device is None else {"device": device, "together": len(tasks)}
    works = [_done(run, *task, made) for task in tasks]
    # what each is told next: nothing at its beginning, then how its training has ended
    told: dict[int, Any] = dict.fromkeys(range(len(works)))
    while told:
        calls = {}
        for number, answer in told.items():
            try:
                failed = isinstance(answer, BaseException)
                calls[number] = (works[number].throw if failed else works[number].send)(answer)
            except StopIteration:
                say((number, None))
            except Exception as error:
                say((number, _said(error)))
        told = train(calls, device)


def _done(run: Run, config: Any, directory: Path, made: dict[str, Any]) -> Work[None]:
    """One run, from its configuration in a file to its result in another."""
    directory.mkdir(parents=True, exist_ok=True)
    started, resumed = time.monotonic(), (directory / "config.json").exists()
    write_text(directory / "config.json", json.dumps(asdict(config), indent=2) + "\n")
    result = run(config, directory)
    if isinstance(result, Generator):
        result = yield from result
    seconds = round(time.monotonic() - started, 3)
    made = {"seconds": seconds, "version": __version__, "resumed": resumed, **made}
    write_text(
        directory / "result.json", json.dumps(result | {"made": made}, allow_nan=False) + "\n"
    )
    _drop_checkpoints(directory)


def _said(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"{type(error).__name__}: {error} ({where})"
