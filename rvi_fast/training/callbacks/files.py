"""Files that a training leaves beside its run directory: a table of its history, the model itself."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from ... import _checks
from ...files import append_text, write_text
from ...models import LatentModel
from ...posteriors.base import as_posterior
from ..loop.callback import Callback
from ..loop.history import History
from ..runs.checkpoints import CheckpointError, CheckpointWarning
from ..runs.export import export
from .minimum import Quantity, check_quantity, is_new

_COLUMNS = ("epoch", "loss", "kl", "log_prob", "elastic", "held_out")


class CSVLogger(Callback):
    """Writes the history to a CSV file, a line after each epoch; empty where nothing was evaluated.

    Columns are "epoch", "loss", "kl", "log_prob", "elastic" and "held_out", in the units of `History`. A
    resume writes the file anew from the history, so that no epoch stands there twice. A file that cannot
    be written warns and does not end the run; the next epoch tries again.

    Args:
        path: the file, replaced if it is there; its directory is made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._whole = True

    def begin(self, model: LatentModel, history: History) -> None:
        """Writes the epochs before a resume."""
        self._write(history, whole=True)

    def __call__(self, model: LatentModel, history: History) -> None:
        """Adds the line of an epoch."""
        self._write(history, whole=not self._whole)

    def _write(self, history: History, whole: bool) -> None:
        lines = [
            ",".join(f"{record[name]!r}" if name in record else "" for name in _COLUMNS) + "\n"
            for record in (history.records() if whole else history.records()[-1:])
        ]
        try:
            if whole:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_text(self.path, ",".join(_COLUMNS) + "\n" + "".join(lines))
            else:
                append_text(self.path, "".join(lines))
            self._whole = True
        except OSError as error:
            message = f"{self.path} could not be written: {error}; the next epoch tries again"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
            self._whole = False


class Checkpoint(Callback):
    """Writes the model to a file that `rvi_fast.load` reads: every so many epochs, or when it is best.

    What a run needs to be resumed is in its `run_dir`; these files hold the model alone, see
    `rvi_fast.training.export`. Each is written whole or not at all; where the disk is full a
    `CheckpointWarning` says so and training goes on.

    Args:
        path: the file. With `every`, "{epoch}" in it stands for the number of epochs.
        every: epochs between files.
        best: "loss", "elastic" or "held_out": a file for each new minimum, in the place of the one
            before.

    Raises:
        ValueError: not exactly one of `every` and `best` is given, or `every` without "{epoch}"; by
            `fit`, where several processes share the rows.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: int | None = None,
        best: Quantity | None = None,
    ) -> None:
        self.path = os.fspath(path)
        if (every is None) == (best is None):
            raise ValueError(f"every, best: expected one of them, got {every!r} and {best!r}")
        if every is not None and "{epoch}" not in self.path:
            raise ValueError(f"path: expected one with {{epoch}} beside every, got {self.path!r}")
        self.every = None if every is None else _checks.check_positive_int("every", every)
        self.best = None if best is None else check_quantity("best", best)

    def begin(self, model: LatentModel, history: History) -> None:
        """Refuses a model of which a process has only a part."""
        posterior = as_posterior(model.posterior)
        if posterior.owns_rows and posterior.sharded:
            raise ValueError(
                "callbacks: expected no Checkpoint where several processes share the rows; the "
                "checkpoints in run_dir have all of them"
            )

    def __call__(self, model: LatentModel, history: History) -> None:
        """Writes the file where it is due."""
        if self.every is not None:
            due = history.epochs % self.every == 0
        else:
            assert self.best is not None
            due = is_new(history, self.best)
        if not due:
            return
        path = Path(self.path.replace("{epoch}", str(history.epochs)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            export(model, path)
        except (OSError, CheckpointError) as error:
            message = f"the model could not be written: {error}; training goes on"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
