"""Runs in processes of their own: each gets a copy of its model, which comes back by way of a file.

The model of the caller changes when its run has ended, however that was, and at once: it is then what
`fit` would have left. Where a process dies it stays as it was.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models import LatentModel
from ..loop.history import History
from ..loop.interrupts import Interrupted, Request, deferred
from ..workers import ProcessDied, Say, portable, side_by_side
from .call import Call, Count, Outcome, steps_of
from .carrier import Carrier


@dataclass
class _Parcel:
    """What a process is given: where the call lies, and where its outcome is to lie."""

    call: Path
    back: Path


@dataclass
class _Report:
    """What it answers, beside the tensors in the file."""

    history: History | None = None
    error: BaseException | None = None
    warned: list[tuple[str, type[Warning]]] = field(default_factory=list)


def train_in_processes(
    calls: Sequence[Call], jobs: int, request: Request, count: Count
) -> list[Outcome]:
    """Trains the models of all calls, `jobs` at a time; one that fails leaves the others alone.

    Args:
        calls: what to train, on the CPU, and what can be pickled.
        jobs: how many processes.
        request: whether a signal has asked for the end; each run then ends as `fit` does.
        count: told of steps that are done.

    Raises:
        KeyboardInterrupt: a second signal has come.
    """
    outcomes = [Outcome() for _ in calls]
    warned: list[tuple[str, type[Warning]]] = []
    # in the order in which tasks are numbered
    sent: list[int] = []
    with tempfile.TemporaryDirectory(prefix="rvi_fast-") as name:
        directory, carrier = Path(name), Carrier(Path(name))

        def parcels() -> Iterator[_Parcel]:
            for number, call in enumerate(calls):
                parcel = _Parcel(directory / f"call-{number}.pt", directory / f"back-{number}.pt")
                try:
                    _pack(call, carrier, parcel)
                except (OSError, RuntimeError) as error:
                    outcomes[number].error = error
                    continue
                sent.append(number)
                yield parcel

        ends = side_by_side(_work, parcels(), jobs, request, lambda _, steps: count(steps))
        with contextlib.closing(ends):
            for task, ended in ends:
                number = sent[task]
                report = ended.result or _Report(error=ended.error)
                if request.signum is not None and isinstance(report.error, ProcessDied):
                    report.error = KeyboardInterrupt("stopped before it began")
                back = directory / f"back-{number}.pt"
                try:
                    if ended.result is not None:
                        _take_back(calls[number].model, back)
                except Exception as error:
                    report.error = report.error or error
                back.unlink(missing_ok=True)
                outcomes[number] = Outcome(report.history, report.error)
                warned += [(f"runs[{number}]: {text}", kind) for text, kind in report.warned]
    for outcome in outcomes:
        if outcome == Outcome() and request.signum is not None:
            outcome.error = Interrupted(request.signum, "stopped before it began")
    for text, kind in warned:
        warnings.warn(text, kind, stacklevel=3)
    return outcomes


def _pack(call: Call, carrier: Carrier, parcel: _Parcel) -> None:
    """Writes a call into a file: the model as it is, the data once for all calls that take them."""
    directory = call.settings.directory
    parts = {
        "model": call.model,
        "settings": replace(call.settings, run_dir=None if directory is None else str(directory)),
        "x": carrier.put(call.x),
        "mask": carrier.put(call.mask),
    }
    torch.save(parts, parcel.call)


def _work(parcel: _Parcel, say: Say) -> _Report:
    """Trains the copy of a model in this process, and writes down what has become of it."""
    report = _Report()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        parts = torch.load(parcel.call, weights_only=False)
        os.unlink(parcel.call)
        x, mask = (None if parts[name] is None else parts[name]() for name in ("x", "mask"))
        call = Call(parts["model"], x, mask, parts["settings"])
        try:
            with deferred() as request:
                report.history = _finish(call, request, say)
        except (Exception, KeyboardInterrupt) as error:
            report.error = portable(error)
        torch.save(_state_of(call.model), parcel.back)
    report.warned = [(str(entry.message), entry.category) for entry in warned]
    return report


def _finish(call: Call, request: Request, say: Say) -> History:
    steps = steps_of(call, request, say)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _tensors_of(model: LatentModel) -> dict[str, Tensor]:
    """Parameters and buffers, but for those of the scale, which a model may get by its training."""
    named = chain(model.named_parameters(), model.named_buffers())
    return {name: tensor.detach() for name, tensor in named if not name.startswith("scaler.")}


def _state_of(model: LatentModel) -> dict[str, Any]:
    return {
        "tensors": _tensors_of(model),
        "scaler": model.scaler,
        "trained_on": model.trained_on,
        "columns": model.columns,
    }


@torch.no_grad()
def _take_back(model: LatentModel, path: Path) -> None:
    """Makes the model what the copy of it has become."""
    state = torch.load(path, mmap=True, weights_only=False)
    for name, own in _tensors_of(model).items():
        own.copy_(state["tensors"][name])
    if model.scaler is None:
        model.scaler = state["scaler"]
    model.trained_on = state["trained_on"]
    model.columns = state["columns"]
