"""Epochs that visit a table block by block, so that little of it has to be in memory.

The rows are divided into blocks. An epoch visits the blocks in random order, a few at a time: a
window, whose rows are shuffled together. While the steps work on one window the next is made ready
and the one before is put away, on a thread of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..inputs.sources import Visit

# blocks shuffled together: neighbours in the table then meet others as well
_TOGETHER = 4
# of a window that nothing else is known about; three are in memory at a time
_WINDOW_BYTES = 256 << 20


def row_bytes(width: int, dtype: torch.dtype, moment_dtype: torch.dtype) -> int:
    """Of one datapoint: its row, two moments, and the step it is up to date with."""
    return width * (dtype.itemsize + 2 * moment_dtype.itemsize) + 4


def default_block_rows(row_bytes: int) -> int:
    """Rows of a block of a table, moments included, that is streamed."""
    return max(1, _WINDOW_BYTES // (_TOGETHER * row_bytes))


def blocks_resident(num_data: int, block_rows: int, batch_size: int) -> int:
    """Blocks that can be in memory at a time.

    Those of the window at work, the one before and the one to come; a batch larger than a window works
    on more. One block of a table may be smaller, and so one window.
    """
    windows = 2 + -(-batch_size // ((_TOGETHER - 1) * block_rows + 1))
    return min(_TOGETHER * windows, -(-num_data // block_rows))


class EpochOrder:
    """The order of one epoch; depends on the generator and the sizes alone.

    Args:
        num_data: N.
        block_rows: rows in a block; with N or more the order is a plain permutation.
        generator: what it is drawn from, on the device where row numbers are wanted.
    """

    def __init__(self, num_data: int, block_rows: int, generator: torch.Generator) -> None:
        self.num_data, self.block_rows, self.generator = num_data, block_rows, generator
        num_blocks = -(-num_data // block_rows)
        order = [0] if num_blocks == 1 else self._permutation(num_blocks).tolist()
        self.windows = [order[at : at + _TOGETHER] for at in range(0, num_blocks, _TOGETHER)]

    def ranges(self, window: int) -> list[tuple[int, int]]:
        """First row and end of each block of a window."""
        size = self.block_rows
        blocks = self.windows[window]
        return [(block * size, min((block + 1) * size, self.num_data)) for block in blocks]

    def visits(self, batch_size: int) -> Iterator[Visit]:
        """Full batches, which may reach from one window into the next, and a smaller one at the end."""
        left = torch.empty(0, dtype=torch.int64, device=self.generator.device)
        for window in range(len(self.windows)):
            rows = self._rows(window)
            if len(left):
                rows = torch.cat((left, rows))
            full = len(rows) // batch_size * batch_size
            for index in rows[:full].split(batch_size) if full else ():
                yield Visit(index, window)
            left = rows[full:]
        if len(left):
            yield Visit(left, len(self.windows) - 1)

    def _rows(self, window: int) -> Tensor:
        ranges = self.ranges(window)
        order = self._permutation(sum(stop - start for start, stop in ranges))
        if len(ranges) == 1 and ranges[0][0] == 0:
            return order
        return torch.cat([torch.arange(*ends, device=order.device) for ends in ranges])[order]

    def _permutation(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator, device=self.generator.device)


class Residence:
    """Which windows of an epoch are in memory.

    Args:
        order: the epoch.
        enter: makes rows [start, stop) ready; called for each block before its first step.
        leave: puts them away; called after the last, with what `mark` has returned.
        mark: called after the last step that reaches into a window, on the thread of the steps, which
            on a GPU has only been asked for by then.

    The first two run on one thread, in turn; their errors are raised by `before` and `close`.
    """

    def __init__(
        self,
        order: EpochOrder,
        enter: Callable[[int, int], None],
        leave: Callable[[int, int, Any], None],
        mark: Callable[[], Any] = lambda: None,
    ) -> None:
        self.order = order
        self._enter, self._leave, self._mark = enter, leave, mark
        self._thread = ThreadPoolExecutor(1, "rvi_fast moves blocks")
        self._entering: list[Future[None]] = []
        self._leaving: list[Future[None]] = []
        self._entered = self._left = 0
        self._prepare()

    def before(self, window: int) -> None:
        """To be called before a step that reaches into this window."""
        while self._entered <= window:
            self._entering[self._entered].result()
            self._entered += 1
            # no more than two windows wait to be put away
            for future in self._leaving[: self._left - 1]:
                future.result()
            self._prepare()

    def after(self, window: int) -> None:
        """To be called after it: no step will reach into the windows before this one."""
        mark = self._mark() if self._left < window else None
        while self._left < window:
            self._leaving.append(self._submit(self._leave, self._left, mark))
            self._left += 1

    def close(self) -> None:
        """Puts away what is left, and waits."""
        try:
            self.after(self._entered)
            for future in self._leaving:
                future.result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def abandon(self) -> None:
        """After an exception: waits for what is under way and leaves the rest."""
        self._thread.shutdown(cancel_futures=True)

    def _prepare(self) -> None:
        if len(self._entering) < len(self.order.windows):
            self._entering.append(self._submit(self._enter, len(self._entering)))

    def _submit(self, action: Callable[..., None], window: int, *others: Any) -> Future[None]:
        def act() -> None:
            for ends in self.order.ranges(window):
                action(*ends, *others)

        return self._thread.submit(act)
