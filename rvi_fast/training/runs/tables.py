"""The tables of rows, their moments and steps: how they get into the checkpoints of a run and back."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from torch import Tensor

from ...optim import MAX_STEPS, RowAdam
from ...posteriors.relay import RelayPosterior
from ...posteriors.tables import MappedTables
from ..settings import Settings
from .checkpoints import Checkpoint, CheckpointError
from .journal import Journal, discard
from .state import unflatten


class RowTables:
    """Tables in memory: each checkpoint holds all of them.

    Args:
        posterior: owns the rows.
        settings: what their optimiser is made with.

    Attributes:
        left_out: names of the model's tensors that checkpoints do not hold.
        rows: the optimiser, once `open` has made it.
    """

    left_out: tuple[str, ...] = ()

    def __init__(self, posterior: RelayPosterior, settings: Settings) -> None:
        self.posterior, self.settings = posterior, settings
        self.rows: RowAdam

    def open(self, found: bool) -> RowAdam:
        """The optimiser, for a run that begins or for one that goes on from a checkpoint."""
        settings = self.settings
        self.rows = RowAdam(
            self.posterior,
            lr=settings.inference_lr,
            mode=settings.optimizer,
            moment_dtype=settings.moment_dtype,
        )
        return self.rows

    def begin(self) -> None:
        """The optimiser has been made."""

    def start(self) -> bool:
        """A run begins; whether it needs a checkpoint before its first step."""
        return False

    def keep(self, block: int) -> None:
        """A block is written to next."""

    def watch(self) -> None:
        """From now on rows are written to."""

    def copied(self) -> dict[str, Tensor]:
        """Tables that a checkpoint holds beside the rows, as they are."""
        return {name: table for name, table in self.rows.raw_tables().items() if name != "rows"}

    def before_saving(
        self, epoch: int, tensors: dict[str, dict[str, Tensor]], metadata: dict[str, Any]
    ) -> None:
        """A checkpoint is about to be written; adds what it needs beside the tables."""

    def saved(self) -> None:
        """The checkpoint has its name."""

    def failed(self, run_dir: Path) -> None:
        """The checkpoint could not be written."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Tables and optimiser as they were at a checkpoint whose rows lag behind.

        Raises:
            CheckpointError: it holds other tables, or those in files are no longer its own.
        """
        raw = self.raw(checkpoint)
        self._take_back(checkpoint)
        for name, table in self.rows.raw_tables().items():
            if name in raw:
                table.copy_(raw[name])
        self.rows.load_raw_state(raw)

    def settle(self, checkpoint: Checkpoint) -> None:
        """Brings the rows of a checkpoint up to date, and lets go of them."""
        self.open(found=True)
        self.begin()
        self.restore(checkpoint)
        self.watch()
        self.rows.detach()

    def _take_back(self, checkpoint: Checkpoint) -> None:
        """Undoes what has been written since to what the checkpoint does not hold."""

    def raw(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """What a checkpoint holds of the optimiser, all of it and as it must be.

        Raises:
            CheckpointError: something is missing, or of another shape.
        """
        raw, path = unflatten("raw", checkpoint.tensors["optimizer"]).get(0, {}), checkpoint.path
        tables = self.copied()
        for name in (*tables, "clock", "history"):
            if name not in raw:
                raise CheckpointError(path, f"lacks {name} of the row optimiser")
            if name in tables and raw[name].shape != tables[name].shape:
                reason = f"has {name} {list(raw[name].shape)}, expected {list(tables[name].shape)}"
                raise CheckpointError(path, reason)
        taken, since = raw["clock"].tolist()
        if not 0 <= since <= taken <= MAX_STEPS or len(raw["history"]) != taken - since + 1:
            held = len(raw["history"])
            reason = f"has a history of {held} entries for steps {since} to {taken}"
            raise CheckpointError(path, reason)
        return raw


class TablesInFiles(RowTables):
    """Tables in files of a run that leaves no checkpoints."""

    def __init__(self, posterior: RelayPosterior, settings: Settings) -> None:
        super().__init__(posterior, settings)
        assert isinstance(posterior.tables, MappedTables)
        self.files = posterior.tables

    def open(self, found: bool) -> RowAdam:
        if found:
            with self.files.kept():
                return super().open(found)
        discard(self.files.directory)
        return super().open(found)


class JournaledTables(TablesInFiles):
    """Tables in files that are a part of each checkpoint, with a journal of what has changed since."""

    left_out = ("posterior.rows",)

    def __init__(self, posterior: RelayPosterior, settings: Settings) -> None:
        super().__init__(posterior, settings)
        self.journal: Journal

    def begin(self) -> None:
        assert self.settings.block_rows is not None
        tables = self.rows.raw_tables()
        self.journal = Journal(self.files.directory, tables, self.settings.block_rows)

    def start(self) -> bool:
        # what a run that is killed in its first epoch goes back to
        self.journal.begin(f"{secrets.token_hex(8)}-start")
        return True

    def keep(self, block: int) -> None:
        self.journal.keep(block)

    def watch(self) -> None:
        self.rows.before_write = self.journal.before_write

    def copied(self) -> dict[str, Tensor]:
        return {}

    def before_saving(
        self, epoch: int, tensors: dict[str, dict[str, Tensor]], metadata: dict[str, Any]
    ) -> None:
        tensors["checksums"] = self.files.checksums.settle()
        self.files.sync()
        token = f"{secrets.token_hex(8)}-{epoch}"
        metadata["journal"] = {"token": token, "previous": self.journal.token}
        self.journal.pending = token

    def saved(self) -> None:
        self.journal.begin(self.journal.pending)

    def failed(self, run_dir: Path) -> None:
        self.journal.settle(run_dir)

    def _take_back(self, checkpoint: Checkpoint) -> None:
        self.journal.go_on_from(checkpoint.path, **checkpoint.metadata["journal"])
        self.files.checksums.adopt(checkpoint.tensors.get("checksums"), checkpoint.path)
        self.journal.roll_back()


def tables_of(posterior: RelayPosterior, settings: Settings, run_dir: Path | None) -> RowTables:
    """How the tables of a posterior get into the checkpoints of a run, if it leaves any."""
    if not isinstance(posterior.tables, MappedTables):
        return RowTables(posterior, settings)
    return (TablesInFiles if run_dir is None else JournaledTables)(posterior, settings)
