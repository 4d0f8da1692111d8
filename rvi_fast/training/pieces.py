"""A trained model over rows that are read in pieces: what it does with some of them, and who does it."""

from __future__ import annotations

import contextlib
import hashlib
import math
import multiprocessing
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch

from .. import _checks
from ..data.files import blaming
from ..models import LatentModel
from ..posteriors.relay import RelayPosterior
from .impute import impute
from .infer import infer
from .loop.interrupts import Interrupted, deferred
from .workers import Ended, ProcessDied, Say, Work, available_cpus, check_picklable, side_by_side

Source = TypeVar("Source")
Task = TypeVar("Task")


class Completed(NamedTuple):
    """What `out` holds when all is done.

    Attributes:
        files: how many there are.
        written: how many of them this call has written; the others were there.
        rows: of all files.
        filled: cells that were filled in, of all files.
    """

    files: int
    written: int
    rows: int
    filled: int


@dataclass(frozen=True)
class Job(Generic[Source]):
    """What is done with each piece, as other processes are told of it.

    Args:
        kind: "impute" or "infer".
        model: a trained model.
        source: what rows are read from.
        out: where they go.
        unseen: bool [D], features that the model knows nothing of: they are not shown to it and not
            filled in.
        inference: arguments of `infer`.
        estimate: as in `impute`.
        bounds: smallest and largest number to fill in.
    """

    kind: Literal["impute", "infer"]
    model: LatentModel
    source: Source
    out: Path
    unseen: np.ndarray
    inference: dict[str, Any] = field(default_factory=dict)
    estimate: Literal["mean", "mode"] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def described(self) -> dict[str, Any]:
        """What decides about results, but for the data, as JSON gives it back."""
        return {
            "command": self.kind,
            "model": _digest_of(self.model),
            "unseen": np.flatnonzero(self.unseen).tolist(),
            "options": [*self.inference.values(), self.estimate, *map(repr, self.bounds)],
        }

    def completed(self, x: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray] | None:
        """What is filled into some rows.

        Args:
            x: [n, D] float64, NaN for missing; what the model knows nothing of becomes NaN.
            where: the place of the rows, for errors.

        Returns:
            Values [n, D] float64, and bool [n, D], true where they are filled in; None for rows without
            gaps.
        """
        gaps = np.isnan(x) & ~self.unseen
        if not gaps.any():
            return None
        posterior = self._inferred(x, where)
        filled = impute(self.model, x, posterior=posterior, estimate=self.estimate)
        return filled.to(torch.float64).cpu().numpy().clip(*self.bounds), gaps

    def latents(self, x: np.ndarray, where: str) -> np.ndarray:
        """Means and standard deviations of the posteriors of some rows, [n, 2 T] float32.

        Args:
            x: [n, D] float64, NaN for missing, or uint8; what the model knows nothing of becomes NaN.
            where: the place of the rows, for errors.
        """
        posterior = self._inferred(x, where)
        with torch.no_grad():
            parts = (posterior.mean(), posterior.std())
            return torch.cat(parts, dim=1).float().cpu().numpy()

    def _inferred(self, x: np.ndarray, where: str) -> RelayPosterior:
        if x.dtype != np.uint8:
            x[:, self.unseen] = np.nan
        with blaming(Path(where)):
            # a row must not depend on its place
            return infer(self.model, x, shared_noise=True, **self.inference)


def check_filling(estimate: Any, bounds: tuple[float, float]) -> tuple[float, float]:
    """Refuses what says wrongly what is filled in, and gives the bounds back."""
    low, high = bounds
    if not low <= high:
        raise ValueError(f"bounds: expected the smallest and the largest number, got {bounds}")
    if estimate not in (None, "mean", "mode"):
        raise ValueError(f"estimate: expected 'mean', 'mode' or None, got {estimate!r}")
    return float(low), float(high)


def inference_options(
    model: LatentModel, steps: Any, lr: Any, scale_factor: Any, seed: Any
) -> dict[str, Any]:
    """Arguments of `infer`, checked before anything is written."""
    if steps is not None:
        check = _checks.check_count if model.amortized else _checks.check_positive_int
        steps = check("steps", steps)
    lr = None if lr is None else _checks.check_positive_float("lr", lr)
    if scale_factor == "held-out":
        raise ValueError("scale_factor: expected a number for files, got 'held-out'")
    factor = _checks.check_positive_float("scale_factor", scale_factor)
    return {"steps": steps, "lr": lr, "scale_factor": factor, "seed": _checks.check_seed(seed)}


def hidden_of(features: Sequence[str], unseen: Sequence[str]) -> np.ndarray:
    """Which features, bool [D], are those that training never observed."""
    for name in unseen:
        if name not in features:
            raise ValueError(f"unseen: expected names of features, got {name!r}")
    return np.array([name in unseen for name in features])


def check_jobs(model: LatentModel, jobs: int | None, tasks: int) -> int:
    """How many processes may work side by side on so many tasks, checked before anything is written.

    Raises:
        ValueError: `jobs` is no number of processes, or none for a model where this one is.
        TypeError: other processes cannot be given the model.
    """
    device = next(model.parameters()).device
    if jobs is not None and _checks.check_positive_int("jobs", jobs) > 1 and device.type != "cpu":
        raise ValueError(f"jobs: expected 1 for a model on {device}, got {jobs}")
    # a process that belongs to another one's pool may not start any
    if device.type != "cpu" or multiprocessing.current_process().daemon:
        return 1
    jobs = min(jobs or available_cpus(), tasks)
    if jobs > 1:
        check_picklable({"model": model})
    return jobs


def ends_of(
    out: Path, work: Work, tasks: Sequence[Task], jobs: int, count: Say
) -> Generator[tuple[Task, Ended], None, None]:
    """Does tasks in this process, or in several; none of those outlives the iteration.

    Args:
        out: what is written.
        work: does one of them, and says how many rows are done.
        tasks: what can be pickled.
        jobs: how many processes, as `check_jobs` allows; no more than there are tasks.
        count: told of rows that are done.

    Yields:
        A task and how it ended, as they end; not more of them once a process could not begin.

    Raises:
        Interrupted: by a signal, while other processes are at work.
    """
    jobs = min(jobs, len(tasks))
    if jobs < 2:
        return _in_turn(work, tasks, count)
    return _side_by_side(out, work, tasks, jobs, count)


def _in_turn(
    work: Work, tasks: Sequence[Task], count: Say
) -> Generator[tuple[Task, Ended], None, None]:
    for task in tasks:
        try:
            ended = Ended(work(task, count))
        except Exception as error:
            ended = Ended(error=error)
        yield task, ended


def _side_by_side(
    out: Path, work: Work, tasks: Sequence[Task], jobs: int, count: Say
) -> Generator[tuple[Task, Ended], None, None]:
    with deferred() as request:
        ends = side_by_side(work, tasks, jobs, request, lambda _, rows: count(rows))
        with contextlib.closing(ends):
            for number, ended in ends:
                if request.signum is None or ended.error is None:
                    yield tasks[number], ended
                    if isinstance(ended.error, ProcessDied) and not ended.error.begun:
                        return
        if request.signum is not None:
            raise Interrupted(request.signum, f"{out}: started again, it goes on")


def raise_first(
    errors: Sequence[tuple[str, BaseException]], total: int, unit: str, kept: str
) -> None:
    """Raises the first error, if there is one, which says how many tasks have failed.

    Args:
        errors: the place of each failed task, and its error.
        total: how many tasks there are.
        unit: what they are called.
        kept: what has become of the others.
    """
    if not errors:
        return
    place, error = errors[0]
    if isinstance(error, ProcessDied):  # which knows no place
        error = ProcessDied(f"{place}: {error}")
    names = ", ".join(name for name, _ in errors[:5])
    error.add_note(f"{len(errors)} of {total} {unit} failed ({names}); {kept}")
    raise error


def _digest_of(model: LatentModel) -> str:
    """SHA-256 of all that a model is."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {list(values.shape)} ".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
