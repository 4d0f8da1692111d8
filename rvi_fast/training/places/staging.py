"""Training on a GPU of tables that lie in host memory or in files.

The rows and moments of the blocks that an epoch works on lie in a table of slots on the device: three
windows, as `Residence` moves them. A block is copied into its slots before its first step and
back to the host after its last, on a stream of its own, while the steps of other windows go on. So each
row crosses the bus once each way in an epoch, whatever N.

Steps see the slots as a posterior of their own, under the model's relays and decoder. Which slot a row
has is arithmetic with the place of its block; the noise is keyed by the row's number in the whole
table, and clock and history of `RowAdam` are the same all along: the result is that of tables on the
device, bit for bit, with the same blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...memory.room import check_memory
from ...models import LatentModel, Objective
from ...optim import RowAdam
from .mover import Mover
from .order import Blocks, EpochOrder, blocks_at_work

_ADVICE = "lower block_rows, groups or latent_dim"


class Staging:
    """The slots on the device, and how blocks get there and back.

    An epoch that is broken off leaves the blocks at work as they were before it.

    Args:
        model: its posterior's rows lie in host memory.
        rows: their optimiser.
        block_rows: rows in a block.
        batch_size: rows of the largest batch.
        parts: of the table, see `Blocks`.
    """

    def __init__(
        self,
        model: LatentModel,
        rows: RowAdam,
        block_rows: int,
        batch_size: int,
        parts: int = 1,
    ) -> None:
        posterior, self.rows, self.block_rows = model.posterior, rows, block_rows
        self.host, self.first = rows.raw_tables(), posterior.first_row
        device = posterior.relays.device
        self._blocks = Blocks(posterior.table_size, block_rows, parts)
        self._own = self._blocks.over(range(self.first, self.first + posterior.num_data))
        # of a whole table in one part, the block of a row is arithmetic
        self._starts = None
        if posterior.num_data < posterior.table_size or parts > 1:
            starts = self._blocks.starts[self._own.start : self._own.stop]
            self._starts = torch.tensor(starts, device=device)
        ends = (self._own.start, self._own.stop - 1)
        first, last = (self._blocks.part(block) for block in ends)
        at_work = (last - first + 1) * blocks_at_work(block_rows, batch_size)
        self.places = min(at_work, len(self._own))
        num_slots = self.places * block_rows
        size = sum(table[:1].nbytes for table in self.host.values()) * num_slots
        check_memory(device, "slots of posterior.rows", size, _ADVICE)
        self.slots = {
            name: torch.zeros((num_slots, *table.shape[1:]), dtype=table.dtype, device=device)
            for name, table in self.host.items()
        }
        # the place of each block in the epoch at hand
        self._place = torch.zeros(len(self._own), dtype=torch.int64, device=device)
        self._place_of = [0] * len(self._own)
        self.posterior = posterior.over(self.slots["rows"])
        self.numbers = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.posterior.row_numbers = self.numbers
        self.model = copy.copy(model)
        self.model._modules = {**model._modules, "posterior": self.posterior}
        self.mover = Mover(device, [table[:block_rows] for table in self.host.values()])

    @contextmanager
    def epoch(self, order: EpochOrder) -> Iterator[None]:
        """Within it the optimiser works on the slots, and blocks may enter and leave in this order."""
        visited = (block for window in order.windows for block in window if block in self._own)
        for number, block in enumerate(visited):
            self._place_of[block - self._own.start] = number % self.places
        self._place.copy_(torch.tensor(self._place_of, device="cpu"))
        self.model.train()
        with self.rows.lent(self.posterior, self.slots):
            yield

    def slots_of(self, index: Tensor) -> Tensor:
        """Where rows `index` [B] of blocks that have entered lie."""
        size = self.block_rows
        if self._starts is None:
            return self._place[index // size] * size + index % size
        rows = index + self.first
        block = torch.bucketize(rows, self._starts, right=True) - 1
        return self._place[block] * size + rows - self._starts[block]

    def enter(self, start: int, stop: int) -> None:
        """Copies a block to its slots; returns when it is there."""
        slots = self._slots(start, stop)
        pairs = [(self.host[name][start:stop], table[slots]) for name, table in self.slots.items()]
        with self.mover.at_work():
            self.mover.to_device(pairs)
            numbers = self.numbers[slots]
            first, last = self.first + start, self.first + stop
            torch.arange(first, last, out=numbers, device=numbers.device)

    def leave(self, start: int, stop: int, mark: Any, check: Callable[[Tensor], None]) -> None:
        """Copies a block back, after the steps before `mark`; returns when it is on the host.

        Args:
            start, stop: the block.
            mark: from `mover.mark`.
            check: looks at the block's rows on the device before they go.
        """
        slots = self._slots(start, stop)
        pairs = [(table[slots], self.host[name][start:stop]) for name, table in self.slots.items()]
        with self.mover.at_work(mark):
            check(self.slots["rows"][slots])
            self.mover.to_host(pairs)

    def _slots(self, start: int, stop: int) -> slice:
        block = self._blocks.number(self.first + start)
        place = self._place_of[block - self._own.start] * self.block_rows
        first = place + self.first + start - self._blocks.starts[block]
        return slice(first, first + stop - start)


class StagedStep:
    """A step on rows of the table, done in their slots."""

    def __init__(self, staging: Staging, step: Callable[..., Objective]) -> None:
        self.staging, self.step = staging, step

    def __call__(self, index: Tensor, *others: Any) -> Objective:
        return self.step(self.staging.slots_of(index), *others)
