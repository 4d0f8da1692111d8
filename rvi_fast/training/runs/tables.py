"""The tables of rows, their moments and steps: how they get into the checkpoints of a run and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...optim import MAX_STEPS, RowAdam
from ...posteriors.checksums import UNKNOWN
from ...posteriors.relay import RelayPosterior
from ...posteriors.rows import sum_of
from ...posteriors.tables import MappedTables
from ..settings import Settings
from .checkpoints import Checkpoint, CheckpointError
from .journal import Journal, discard
from .parts import parts_of, put, read_rows, remove_parts, row_width
from .state import unflatten

# rows started at once
_CHUNK = 8192


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
    # whether these are others than those of the checkpoint to go on from
    moved = False
    # their name where they are a part of checkpoints, see `parts`
    part: str | None = None

    def __init__(self, posterior: RelayPosterior, settings: Settings) -> None:
        self.posterior, self.settings = posterior, settings
        self.rows: RowAdam

    def open(self, found: Checkpoint | None) -> RowAdam:
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

    def start(self, token: str) -> bool:
        """A run of that name begins; whether it needs a checkpoint before its first step."""
        return False

    def keep(self, block: int) -> None:
        """A block is written to next."""

    def watch(self) -> None:
        """From now on rows are written to."""

    def copied(self) -> dict[str, Tensor]:
        """Tables that a checkpoint holds beside the rows, as they are."""
        return {name: table for name, table in self.rows.raw_tables().items() if name != "rows"}

    def before_saving(
        self, token: str, tensors: dict[str, dict[str, Tensor]], metadata: dict[str, Any]
    ) -> None:
        """A checkpoint of that name is about to be written; adds what it needs beside the tables."""

    def lacks_room(self) -> str | None:
        """Why training cannot go on while the checkpoint is written, in words."""
        return None

    def fork(self) -> None:
        """Training goes on while it is written."""

    def sync(self) -> None:
        """Returns when what the checkpoint says of the tables is on disk."""

    def saved(self) -> None:
        """The checkpoint has its name."""

    def failed(self, run_dir: Path) -> None:
        """The checkpoint could not be written."""

    def remove(self, parts: Iterable[str]) -> None:
        """Removes tables that no checkpoint goes back to."""

    def restore(
        self, checkpoint: Checkpoint, total: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Tables and optimiser as they were at a checkpoint whose rows lag behind.

        Args:
            checkpoint: it can have fewer rows than the tables.
            total: the sum of a tensor over all processes, in place; there is this one if not given.

        Raises:
            CheckpointError: it holds other tables, or those in files are no longer its own.
        """
        raw = self.raw(checkpoint)
        self._take_back(checkpoint)
        for name, table in self.rows.raw_tables().items():
            if name in raw:
                table.copy_(raw[name])
        self.rows.load_raw_state(raw)
        self._start_new(checkpoint, total)

    def settle(self, checkpoint: Checkpoint) -> None:
        """Brings the rows of a checkpoint up to date, and lets go of them."""
        self.open(checkpoint)
        self.begin()
        self.restore(checkpoint)
        self.watch()
        self.rows.detach()

    def _take_back(self, checkpoint: Checkpoint) -> None:
        """Undoes what has been written since to what the checkpoint does not hold."""

    def _start_new(self, checkpoint: Checkpoint, total: Callable[[Tensor], Tensor] | None) -> None:
        """Starts rows that the checkpoint has not and the tables have."""

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
        self.part = self.files.directory.name if posterior.sharded else ""

    def open(self, found: Checkpoint | None) -> RowAdam:
        if found is not None and self.part in parts_of(found):
            with self.files.kept():
                return super().open(found)
        self.moved = found is not None
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

    def start(self, token: str) -> bool:
        # what a run that is killed in its first epoch goes back to
        self.journal.begin(token)
        return True

    def keep(self, block: int) -> None:
        self.journal.keep(block)

    def watch(self) -> None:
        self.rows.before_write = self.journal.before_write

    def copied(self) -> dict[str, Tensor]:
        return {}

    def before_saving(
        self, token: str, tensors: dict[str, dict[str, Tensor]], metadata: dict[str, Any]
    ) -> None:
        sums, end = self.files.checksums.settle(), f".{self.part}" if self.part else ""
        tensors["checksums"] = {f"{name}{end}": held for name, held in sums.items()}
        metadata["journal"] = {"token": token, "previous": self.journal.token}
        self.journal.pending = token

    def lacks_room(self) -> str | None:
        return self.journal.lacks_room()

    def fork(self) -> None:
        self.journal.fork()

    def sync(self) -> None:
        self.files.sync()

    def saved(self) -> None:
        self.journal.saved()

    def failed(self, run_dir: Path) -> None:
        self.journal.settle(run_dir)

    def remove(self, parts: Iterable[str]) -> None:
        remove_parts(self.root, parts)

    def _take_back(self, checkpoint: Checkpoint) -> None:
        if self.moved:
            self._copy_from(checkpoint)
            # as they are, until there is a checkpoint that has them
            self.journal.begin(checkpoint.metadata["journal"]["token"])
            return
        self.journal.go_on_from(checkpoint.path, **checkpoint.metadata["journal"])
        sums = parts_of(checkpoint)[self.part or ""]
        here = self._here_before(checkpoint)
        if here is not None and here < self.posterior.num_data:
            sums = _with_more(sums, here, self.posterior.num_data)
        self.files.checksums.adopt(sums or None, checkpoint.path)
        self.journal.roll_back(here)

    def _here_before(self, checkpoint: Checkpoint) -> int | None:
        """How many rows here the checkpoint has, where it has fewer than the whole table; else None."""
        before = rows_before(checkpoint, self.posterior.table_size)
        if before is None:
            return None
        return min(max(before - self.posterior.first_row, 0), self.posterior.num_data)

    @torch.no_grad()
    def _start_new(self, checkpoint: Checkpoint, total: Callable[[Tensor], Tensor] | None) -> None:
        """As `growth.grown` starts them; what changes of the others is in the journal before."""
        before = rows_before(checkpoint, self.posterior.table_size)
        here = self._here_before(checkpoint)
        if before is None or here is None:
            return
        self.watch()
        tables, count = self.rows.raw_tables(), self.posterior.num_data
        # none, perhaps, in this process
        new = torch.arange(here, count, device="cpu").split(_CHUNK) if here < count else ()
        for index in new:
            self.files.before_write(index)
            start, stop = int(index[0]), int(index[-1]) + 1
            for name in ("rows", "exp_avg", "exp_avg_sq"):
                tables[name][start:stop] = 0.0
            tables["row_step"][start:stop] = self.rows.num_steps if self.rows.mode == "dense" else 0
        self.rows.flush()
        sums = sum_of(self.rows.table()[:here])
        start_row = ((sums if total is None else total(sums)) / before).to(tables["rows"])
        for index in new:
            self.files.before_write(index)
            tables["rows"][index] = start_row

    def _copy_from(self, checkpoint: Checkpoint) -> None:
        """Fills the tables with the same rows of those that a checkpoint has."""
        tables, posterior, files = self.rows.raw_tables(), self.posterior, self.files
        own = range(posterior.first_row, posterior.first_row + posterior.num_data)
        widths = {name: row_width(table) for name, table in tables.items()}
        before = rows_before(checkpoint, posterior.table_size)
        whole = (self.root, own, posterior.table_size if before is None else before)
        for rows, content in read_rows(checkpoint, *whole, widths):
            start, stop = rows.start - own.start, rows.stop - own.start
            files.enter(start, stop)
            for name, table in tables.items():
                put(table[start:stop], content[name])
            files.leave(start, stop)
            files.release(start, stop)
        files.sync()

    @property
    def root(self) -> Path:
        """The directory of the whole table."""
        directory = self.files.directory
        return directory.parent if self.posterior.sharded else directory


def _with_more(sums: dict[str, Tensor], before: int, num_data: int) -> dict[str, Tensor]:
    """Checksums of tables that have grown: unknown are those of pieces with new rows."""
    if not sums:
        return {}
    size = int(sums["piece_rows"])
    known, pieces = before // size, -(-num_data // size)
    return {
        name: held
        if name == "piece_rows"
        else torch.cat((held[:known], held.new_full((pieces - known,), UNKNOWN)))
        for name, held in sums.items()
    }


def rows_before(checkpoint: Checkpoint, num_data: int) -> int | None:
    """Rows that a run had at a checkpoint where they were fewer than `num_data`; else None."""
    data = checkpoint.metadata.get("settings", {}).get("data")
    return data["rows"] if isinstance(data, dict) and data["rows"] < num_data else None


def tables_of(posterior: RelayPosterior, settings: Settings, run_dir: Path | None) -> RowTables:
    """How the tables of a posterior get into the checkpoints of a run, if it leaves any."""
    if not isinstance(posterior.tables, MappedTables):
        return RowTables(posterior, settings)
    return (TablesInFiles if run_dir is None else JournaledTables)(posterior, settings)
