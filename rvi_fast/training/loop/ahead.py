"""Batches that are on the device before their steps, and what the steps give."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from ..inputs.feed import Visit
from .tally import CHECK_EVERY

# steps whose batches are on the device, and whose results are still there: they are looked at by then
STEPS = CHECK_EVERY


class Ahead:
    """Row numbers of the steps to come, and objectives of the steps before, in two rings of 64 steps.

    A step takes its rows from row `position` of `order`, leaves its objective in that row of
    `results`, and counts `position` up, so that it is the same launches at the same addresses each time.

    Args:
        batch_size: rows of the largest batch.
        device: where the steps run.
        dtype: of what they give.
        slots_of: from row numbers to places in the table that is stepped, where those are others.

    Attributes:
        order: int64 [64, `batch_size`], the places of the batches.
        results: [64, 3].
        position: int64 [1], the row of the next step.
    """

    def __init__(
        self,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        slots_of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        shape = (STEPS, batch_size)
        self.order = torch.zeros(shape, dtype=torch.int64, device=device)
        # room for those of the step at hand
        self._index = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._slots_of, self._rows, self._own = slots_of, self.order, self._index
        if slots_of is not None:
            self._rows, self._own = torch.zeros_like(self.order), torch.zeros_like(self._index)
        self.results = torch.zeros((STEPS, 3), dtype=dtype, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        # the same as the host knows it, and what lies in `order` from there on
        self._position = 0
        self._waiting: deque[Tensor] = deque()
        self._results = self.results.unbind()

    def feed(self, visits: Iterable[Visit]) -> Iterator[Visit]:
        """The same visits; the batches of up to 64 of them go to the device in one copy."""
        visits = iter(visits)
        while group := list(islice(visits, STEPS - self._position)):
            self._put([visit.rows for visit in group])
            yield from group

    def load(self, index: Tensor) -> None:
        """To be called before the step on rows `index` [B]."""
        if not (self._waiting and self._waiting[0] is index):
            self._put([index])
        self._waiting.popleft()

    def result(self) -> Tensor:
        """To be called after it: what it gives, [3], for as long as 64 steps."""
        found = self._results[self._position]
        self._position = (self._position + 1) % STEPS
        return found

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Places and row numbers [`size`] of the step at hand, the same tensor where they are the same.

        The places are there once the first launch has copied them from `order`.
        """
        index = self._index[:size]
        if self._slots_of is None:
            return index, index
        torch.index_select(self._rows, 0, self.position, out=self._own[None])
        return index, self._own[:size]

    def _put(self, batches: list[Tensor]) -> None:
        self._waiting = deque(batches)
        end = self._position + len(batches)
        rows = self._rows[self._position : end]
        size = rows.shape[1]
        if all(len(batch) == size for batch in batches[:-1]):
            count = (len(batches) - 1) * size + len(batches[-1])
            torch.cat(batches, out=rows.view(-1)[:count])
        else:
            for place, batch in zip(rows, batches, strict=True):
                place[: len(batch)].copy_(batch)
        if self._slots_of is not None:
            self.order[self._position : end].copy_(self._slots_of(rows))
