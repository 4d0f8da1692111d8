"""What of a run outlives its process: checkpoints and metrics in a run directory."""

from __future__ import annotations

import secrets
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...models import LatentModel
from ...progress import logger
from ..distributed.ranks import Alone
from ..inputs.feed import HostInputs
from ..inputs.fingerprint import Fingerprint, same
from ..inputs.prepare import Inputs
from ..places.base import Place
from ..runs.checkpoints import Checkpoint, CheckpointError, CheckpointWarning, latest_epoch
from ..runs.described import config_of
from ..runs.growth import grown
from ..runs.metrics import append_metrics, rewrite_metrics
from ..runs.parts import parts_of
from ..runs.state import flatten
from ..runs.structure import structure_of
from ..runs.tables import rows_before
from ..settings import Settings
from .background import Background, NoBackground
from .callback import Callbacks
from .history import History, Partial, Standing
from .interrupts import Interrupted
from .restoring import restore


class NoArchive:
    """A run without a run directory: nothing of it is kept."""

    # the checkpoint to go on from
    found: Checkpoint | None = None

    def start(self, shared: torch.optim.Optimizer, standing: Standing) -> None:
        """Takes model, optimisers and standing back to the checkpoint to go on from, if there is one.

        Args:
            shared: drives all but the rows.
            standing: how far the run has come, written to.
        """

    def record(self, standing: Standing, seconds: float) -> bool:
        """An epoch of so many seconds is over; whether a checkpoint is due."""
        return False

    def save(self, *, later: bool = False) -> CheckpointError | None:
        """Writes a checkpoint, or warns and returns why not; the one before stays then.

        Args:
            later: it may be written while training goes on; whether it could is told of by the next
                call, or by `close`.

        Raises:
            CheckpointError: nothing may be written to the tables any more, the disk has to be mended.
            Exception: what went wrong with the checkpoint before, other than that it had no room.
        """
        return None

    def close(self) -> None:
        """Waits for what is being written, and warns if it could not be."""

    def kept(self) -> str:
        """Which checkpoint is good."""
        return "no checkpoint has been written"

    def interrupted(self, signum: int, text: str) -> NoReturn:
        """Leaves a checkpoint and raises, because of a signal."""
        raise Interrupted(signum, f"{text}; without a run_dir nothing was saved")


class Archive(NoArchive):
    """Checkpoints and metrics of a run in its directory.

    Args:
        run_dir: the directory.
        model: what is trained.
        inputs: its data.
        data: their fingerprint, of all processes.
        ranks: who trains.
        place: where the rows lie; not open yet.
        settings: of the run.
        callbacks: what it calls.

    Raises:
        ValueError: `resume` does not say what is to become of a run that is there, or there is none to
            go on with, or settings or data differ.
        CheckpointError: none of its checkpoints can be read.
    """

    def __init__(
        self,
        run_dir: Path,
        model: LatentModel,
        inputs: Inputs | HostInputs,
        data: Fingerprint,
        ranks: Alone,
        place: Place,
        settings: Settings,
        callbacks: Callbacks,
    ) -> None:
        self.run_dir, self.model, self.inputs, self.data = run_dir, model, inputs, data
        self.ranks, self.place, self.settings = ranks, place, settings
        self.callbacks = callbacks
        self.shared: torch.optim.Optimizer
        self.standing: Standing
        self.last: Path | None = None
        self.background = NoBackground()
        # whether lines of metrics.jsonl are missing
        self._lacks = False
        self._saved_at = 0.0
        # tables in files that the newest checkpoint does without, and the one before had
        self._left: set[str] = set()
        # read before the tables of another run are opened
        self.found = self._found()
        place.total = ranks.sum
        if self.found is not None:
            place.parts = self.found.metadata.get("parts", 1)

    def _found(self) -> Checkpoint | None:
        """The last checkpoint if there is one, of a run with these settings."""
        run_dir, resume = self.run_dir, self.settings.resume
        epoch = self.ranks.first(lambda: latest_epoch(run_dir))
        if epoch is None:
            if resume and self.model.trained_on is not None:
                raise ValueError(
                    f"resume: expected a checkpoint in {run_dir}, or a model as it was made, got "
                    "one that has been trained; make it anew, or train it further with resume=False"
                )
            return None
        if not resume:
            raise ValueError(
                f"run_dir: {run_dir} holds a run of {epoch} epochs; resume=True goes on with it"
            )
        checkpoint = self.ranks.load(run_dir, self.place.landing)
        # older checkpoints have moments in the dtype of the rows, data as they came, and do not say so
        stored = {**self.place.older, "standardize": False}
        stored |= checkpoint.metadata.get("settings", {})
        self._check_data(checkpoint, stored.get("data"))
        self.settings.check_same(stored, checkpoint.path)
        return checkpoint

    def _check_data(self, checkpoint: Checkpoint, stored: Any) -> None:
        # 0.1.0 wrote a hash of the numbers as the model has them
        if isinstance(stored, str):
            alike = stored == self.ranks.fingerprint(self.inputs)
        else:
            alike = isinstance(stored, dict) and same(stored, self.data)
            if not alike and isinstance(stored, dict):
                alike = self._has_grown(stored)
        if not alike:
            raise ValueError(
                f"data: expected those of {checkpoint.path}, row for row in the same order and with the "
                "same entries observed, got others"
            )

    def _has_grown(self, stored: Fingerprint) -> bool:
        """Whether the data are those of the checkpoint with more rows after them.

        Raises:
            ValueError: they are, and the run cannot go on with more.
        """
        before = stored["rows"]
        if not 0 < before < self.data["rows"]:
            return False
        if not same(stored, self.ranks.of_first(before)):
            return False
        if self.settings.held_out:
            raise ValueError(
                f"held_out: expected 0 for a run that goes on with more rows, {self.data['rows']} after "
                f"{before}, got {self.settings.held_out}: it has been shown what would be held out"
            )
        return True

    def start(self, shared: torch.optim.Optimizer, standing: Standing) -> None:
        self.shared, self.standing = shared, standing
        if callable(self.settings.kl_weight):
            epochs = range(self.settings.epochs)
            standing.kl_weights = [float(self.settings.kl_weight_in(epoch)) for epoch in epochs]
        found, self.found = self.found, None
        if found is not None:
            self._restore(found)
            needed = self._find_left(found)
        else:
            needed = self.place.start(self._token("start"))
        if needed and (error := self.save()) is not None:
            raise error
        if self._left:
            left, self._left = self._left, set()
            self.ranks.first(lambda: self.place.remove(left))
        if self.ranks.leads:
            self._write_metrics()
        if self.settings.checkpoint_async:
            self.background = Background(self.ranks, self.place)
        self.place.watch()
        self._saved_at = time.monotonic()

    def _find_left(self, found: Checkpoint) -> bool:
        """Notes which tables in files the run leaves; whether it takes others, for a new checkpoint."""
        if self.place.part is None:
            return False
        moved, parts = zip(*self.ranks.gather((self.place.moved, self.place.part)), strict=True)
        self._left = {*parts_of(found), *found.metadata.get("left", ())} - {*parts}
        return any(moved)

    def _token(self, what: str) -> str:
        """A name of a state of the run, the same in all processes."""
        return self.ranks.first(lambda: f"{secrets.token_hex(8)}-{what}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        metadata, standing = checkpoint.metadata, self.standing
        kept = metadata.get("kl_weights", [])
        for epoch, (stored, own) in enumerate(zip(kept, standing.kl_weights, strict=False)):
            if stored != own:
                raise ValueError(
                    f"kl_weight: expected {stored} in epoch {epoch} as in {checkpoint.path}, got {own}"
                )
        before, num_data = rows_before(checkpoint, self.ranks.num_data), self.ranks.num_data
        if before is not None:
            first = self.ranks.first_row
            rows = range(first, first + self.model.num_data)
            checkpoint = grown(checkpoint, self.place.rows, rows, num_data, self.ranks.sum)
            metadata = checkpoint.metadata
            logger.info("%d rows added to the %d of %s", num_data - before, before, checkpoint.path)
        restore(checkpoint, self.model, self.place, self.shared)
        if "partial" in metadata:
            held, suffix = checkpoint.tensors["generators"], self.ranks.suffix
            names = {name.partition(".")[0] for name in held}
            generators = {n: held[n + suffix] for n in names if n + suffix in held}
            standing.partial = Partial(**metadata["partial"], generators=generators)
        standing.history = History(metadata["history"])
        standing.stopped = metadata["stopped"]
        held = checkpoint.tensors.get("callbacks", {})
        load = partial(self.callbacks.load, metadata.get("callbacks", {}), held, checkpoint.path)
        self.ranks.first(load)
        self.last = checkpoint.path
        logger.info("goes on from %s, after %d epochs", checkpoint.path, standing.history.epochs)

    def record(self, standing: Standing, seconds: float) -> bool:
        self._write_metrics({**standing.history.records()[-1], "seconds": round(seconds, 3)})
        return time.monotonic() - self._saved_at >= self.settings.checkpoint_every

    def _write_metrics(self, record: dict[str, float] | None = None) -> None:
        """Appends a record, or writes them all: none is given, or some are not there."""
        try:
            if record is None or self._lacks:
                rewrite_metrics(self.run_dir, self.standing.history.records())
            else:
                append_metrics(self.run_dir, record)
        except (OSError, CheckpointError) as error:
            message = f"metrics.jsonl could not be written: {error}; the next epoch tries again"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
            self._lacks = True
        else:
            self._lacks = False

    def save(self, *, later: bool = False) -> CheckpointError | None:
        self._wait()
        try:
            self._save(later)
            return None
        except OSError as error:
            return self._failed(error)
        finally:
            self._saved_at = time.monotonic()

    def _failed(self, error: OSError) -> CheckpointError:
        """Warns of a checkpoint that could not be written."""
        failure = CheckpointError(self.run_dir, f"no checkpoint could be written: {error}")
        self.place.failed(self.run_dir)
        warnings.warn(f"{failure}; {self.kept()}", CheckpointWarning, stacklevel=3)
        return failure

    def _wait(self) -> None:
        """Waits for the checkpoint that is being written, if one is."""
        try:
            self.last = self.background.wait() or self.last
        except OSError as error:
            self._failed(error)

    def close(self) -> None:
        self.background.close()

    def _save(self, later: bool) -> None:
        standing, scaler = self.standing, self.model.scaler
        metadata: dict[str, Any] = {
            "config": config_of(self.model),
            "settings": {**self.settings.kept(), "data": self.data},
            "history": dict(standing.history),
            "stopped": standing.stopped,
            "scale": None if scaler is None else scaler.to_dict(),
            "structure": structure_of(self.model),
            "kl_weights": standing.kl_weights,
        }
        if self.model.columns is not None:
            metadata["columns"] = list(self.model.columns)
        partial, epochs = standing.partial, standing.history.epochs
        values, rows = self.place.tensors(midway=partial is not None)
        shared = flatten("shared", self.shared.state_dict())
        tensors: dict[str, dict[str, Tensor]] = {"model": values, "optimizer": {**rows, **shared}}
        if self.place.parts > 1 and self.settings.block_rows is not None:
            metadata["parts"] = self.place.parts
        if partial is not None:
            metadata["partial"] = {
                "steps": partial.steps,
                "totals": partial.totals,
                "pending": partial.pending,
            }
            # each process has generators of its own
            suffix = self.ranks.suffix
            tensors["generators"] = {f"{n}{suffix}": t for n, t in partial.generators.items()}
        if (states := self.ranks.first(self._states))[0]:
            metadata["callbacks"] = states[0]
        if states[1]:
            tensors["callbacks"] = states[1]
        self.place.before_saving(self._token(str(epochs)), tensors, metadata)
        if self._left:
            metadata["left"] = sorted(self._left)
        if later and self.background.takes(self.run_dir, epochs, tensors, metadata):
            return
        self.place.sync()
        self.last = self.ranks.save(self.run_dir, epochs, tensors, metadata)
        self.place.saved()
        logger.debug("wrote %s", self.last)

    def _states(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Those of the callbacks, of the first process, which alone calls them."""
        values, tensors = self.callbacks.state()
        if tensors and not self.ranks.alone:
            raise ValueError(
                "callbacks: expected states without tensors where several processes train, got "
                f"{', '.join(tensors)}"
            )
        return values, tensors

    def kept(self) -> str:
        self._wait()
        return super().kept() if self.last is None else f"the last good checkpoint is {self.last}"

    def interrupted(self, signum: int, text: str) -> NoReturn:
        error = self.save()
        if error is not None:
            raise Interrupted(signum, f"{text}; {error}; {self.kept()}")
        raise Interrupted(signum, f"{text}; resume=True (--resume) goes on from {self.last}")


def archive_of(
    model: LatentModel,
    inputs: Inputs | HostInputs,
    data: Fingerprint,
    ranks: Alone,
    place: Place,
    settings: Settings,
    callbacks: Callbacks,
) -> NoArchive:
    """What keeps a run: see `Archive`, if the settings name a run directory."""
    place.parts = ranks.size
    if settings.directory is None:
        return NoArchive()
    return Archive(settings.directory, model, inputs, data, ranks, place, settings, callbacks)
