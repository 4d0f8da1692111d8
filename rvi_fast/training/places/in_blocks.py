"""Rows of which an epoch has a few blocks in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._devices import in_line
from ...models import LatentModel
from ..inputs.feed import HostInputs
from ..inputs.prepare import Inputs
from ..settings import Settings
from .in_memory import InMemory
from .order import EpochOrder
from .residence import Residence

_ROWS = "posterior.rows"


class InBlocks(InMemory):
    """Rows that come and go in blocks, on the device that trains or in files mapped into its memory.

    What "dense" rows have missed is applied when they are next read, not at the end of each epoch.
    """

    epochs_behind = 2

    def __init__(self, model: LatentModel, settings: Settings) -> None:
        super().__init__(model, settings)
        assert settings.block_rows is not None
        self.block_rows = settings.block_rows
        self._first_step = 0

    def order(self, num_data: int, generator: torch.Generator) -> EpochOrder:
        return EpochOrder(num_data, self.block_rows, generator, self.parts)

    @contextmanager
    def epoch(
        self,
        order: EpochOrder,
        inputs: Inputs | HostInputs,
        check: Callable[[str, Tensor], None],
        done: int,
    ) -> Iterator[Residence]:
        self._first_step = self.rows.num_steps - done
        table, tables = self.rows.table(), self.model.posterior.tables

        def enter(first: int, end: int) -> None:
            for start, stop in self._own(first, end):
                tables.prefetch(start, stop)
                tables.enter(start, stop)
                for block in range(start // self.block_rows, -(-stop // self.block_rows)):
                    self.tables.keep(block)
                inputs.prefetch(start, stop)
                self._enter(start, stop)

        def leave(first: int, end: int, mark: Any) -> None:
            for start, stop in self._own(first, end):
                self._leave(table, start, stop, mark, lambda part: check(_ROWS, part))
                tables.leave(start, stop)
                tables.release(start, stop)
                inputs.release(start, stop)

        with self._lent(order):
            residence = Residence(order, enter, leave, self._mark, in_line(table.device))
            try:
                yield residence
            except BaseException:
                residence.abandon()
                raise
            residence.close()

    def _own(self, first: int, end: int) -> list[tuple[int, int]]:
        """Which of rows [first, end) of the table are here, as they are numbered here: if any."""
        posterior = self.model.posterior
        start = max(first - posterior.first_row, 0)
        stop = min(end - posterior.first_row, posterior.num_data)
        return [(start, stop)] if start < stop else []

    @contextmanager
    def _lent(self, order: EpochOrder) -> Iterator[None]:
        """Within it the optimiser works where the steps do."""
        yield

    def _enter(self, start: int, stop: int) -> None:
        """Brings rows [start, stop), which are in memory, to where the steps work."""

    def _leave(
        self, table: Tensor, start: int, stop: int, mark: Any, check: Callable[[Tensor], None]
    ) -> None:
        """Brings them back, once the steps before `mark` are done, and checks them on their way."""
        check(table[start:stop])

    def _mark(self) -> Any:
        """What has to be waited for before rows leave: steps on the CPU are done."""

    def visited(self) -> None:
        self.rows.forget_before(self._first_step)

    def settle(self) -> None:
        """Rows are brought up to date when they are next read."""

    def release(self, start: int, stop: int, inputs: Inputs | HostInputs) -> None:
        self.model.posterior.tables.release(start, stop)
        inputs.release(start, stop)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        # rows were looked at as they left
        for name, parameter in self.model.named_parameters():
            if name != _ROWS:
                yield name, parameter.detach()

    def start(self, token: str) -> bool:
        return self.tables.start(token)

    @property
    def part(self) -> str | None:
        return self.tables.part

    @property
    def moved(self) -> bool:
        return self.tables.moved

    def remove(self, parts: Iterable[str]) -> None:
        self.tables.remove(parts)

    def watch(self) -> None:
        self.tables.watch()

    def tensors(self, midway: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._as_they_are()

    def before_saving(
        self, token: str, tensors: dict[str, dict[str, Tensor]], metadata: dict[str, Any]
    ) -> None:
        self.tables.before_saving(token, tensors, metadata)

    def lacks_room(self) -> str | None:
        return self.tables.lacks_room()

    def fork(self) -> None:
        self.tables.fork()

    def sync(self) -> None:
        self.tables.sync()

    def saved(self) -> None:
        self.tables.saved()

    def failed(self, run_dir: Path) -> None:
        self.tables.failed(run_dir)
