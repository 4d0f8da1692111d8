"""Batches that are on the device before their steps, and what the steps give."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs.feed import Visit
from .tally import CHECK_EVERY

# steps whose batches are on the device, and whose results are still there: they are looked at by then
STEPS = CHECK_EVERY


class Batch(NamedTuple):
    """The rows of a batch, each [B]; the same tensor where the numbers are the same.

    Attributes:
        places: where they lie in the table that is stepped; -1 stands for no row.
        rows: their numbers in the data.
        keys: their numbers in the whole table, which key what is drawn.
    """

    places: Tensor
    rows: Tensor
    keys: Tensor


class Ahead:
    """Row numbers of the steps to come, and objectives of the steps before, in two rings of 64 steps.

    A step takes its rows from row `position` of `order`, leaves its objective in that row of
    `results`, and counts `position` up, so that it is the same launches at the same addresses each time.

    Args:
        batch_size: rows of the largest batch.
        device: where the steps run.
        dtype: of what they give.
        slots_of: from row numbers to places in the table that is stepped, where those are others.
        first_row: number of the first row in the whole table.

    Attributes:
        order: int64 [64, `batch_size`], the places of the batches.
        size: rows of the step at hand, with those that are none, see `Visit.room`.
        results: [64, 3].
        position: int64 [1], the row of the next step.
    """

    def __init__(
        self,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        slots_of: Callable[[Tensor], Tensor] | None = None,
        first_row: int = 0,
    ) -> None:
        shape = (STEPS, batch_size)
        self.order = torch.zeros(shape, dtype=torch.int64, device=device)
        # room for those of the step at hand
        self._index = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._slots_of, self._first_row, self.size = slots_of, first_row, batch_size
        # as `order`, and of the step at hand as `_index`: the rows, and their keys
        self._rows, self._own = self.order, self._index
        self._gathered: list[tuple[Tensor, Tensor]] = []
        if slots_of is not None:
            self._rows, self._own = self._another()
        self._keys, self._own_keys = self._another() if first_row else (self._rows, self._own)
        self.results = torch.zeros((STEPS, 3), dtype=dtype, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        # the same as the host knows it, and what lies in `order` from there on
        self._position = 0
        self._waiting: deque[tuple[Tensor, int]] = deque()
        self._results = self.results.unbind()

    def feed(self, visits: Iterable[Visit]) -> Iterator[Visit]:
        """The same visits; the batches of up to 64 of them go to the device in one copy."""
        visits = iter(visits)
        while group := list(islice(visits, STEPS - self._position)):
            self._put([(visit.rows, visit.room) for visit in group])
            yield from group

    def load(self, index: Tensor) -> None:
        """To be called before the step on rows `index` [B]."""
        if not (self._waiting and self._waiting[0][0] is index):
            self._put([(index, 0)])
        _, room = self._waiting.popleft()
        self.size = room or len(index)

    def result(self) -> Tensor:
        """To be called after it: what it gives, [3], for as long as 64 steps."""
        found = self._results[self._position]
        self._position = (self._position + 1) % STEPS
        return found

    def places(self) -> Tensor:
        """The places [`size`] of the step at hand: there once its first launch has copied them."""
        return self._index[: self.size]

    def batch(self, size: int) -> Batch:
        """The rows of the step at hand, `size` of them, whose places are there as `places` says."""
        for ring, own in self._gathered:
            torch.index_select(ring, 0, self.position, out=own[None])
        places = self._index[:size]
        # launches are told by the very tensor that numbers are the same
        rows = places if self._own is self._index else self._own[:size]
        keys = rows if self._own_keys is self._own else self._own_keys[:size]
        return Batch(places, rows, keys)

    def _another(self) -> tuple[Tensor, Tensor]:
        """A ring beside `order`, and room for what it has of the step at hand."""
        made = torch.zeros_like(self.order), torch.zeros_like(self._index)
        self._gathered.append(made)
        return made

    def _put(self, batches: list[tuple[Tensor, int]]) -> None:
        self._waiting = deque(batches)
        end = self._position + len(batches)
        rows = self._rows[self._position : end]
        given, rooms = zip(*batches, strict=True)
        padded = any(rooms)
        if padded:
            rows.fill_(-1)
        _put_side_by_side(rows, given)
        if self._slots_of is not None:
            slots = self._slots_of(rows.clamp(min=0) if padded else rows)
            self.order[self._position : end] = slots.where(rows >= 0, -1) if padded else slots
        if self._first_row:
            torch.add(rows, self._first_row, out=self._keys[self._position : end])


def _put_side_by_side(rows: Tensor, batches: tuple[Tensor, ...]) -> None:
    """Writes each batch to the beginning of a row of `rows`."""
    size = rows.shape[1]
    if all(len(batch) == size for batch in batches[:-1]):
        count = (len(batches) - 1) * size + len(batches[-1])
        torch.cat(batches, out=rows.view(-1)[:count])
    else:
        for place, batch in zip(rows, batches, strict=True):
            place[: len(batch)].copy_(batch)
