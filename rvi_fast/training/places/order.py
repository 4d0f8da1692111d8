"""Epochs that visit a table block by block, so that little of it has to be in memory.

The rows are divided into blocks. An epoch visits the blocks in random order, a few at a time: a
window, whose rows are shuffled together. A window of a run that several processes have begun has a few
blocks of each of as many parts of the table, so that each process finds its share of every batch in
the blocks that it has in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import torch
from torch import Tensor

from ..inputs.feed import Visit

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


def blocks_at_work(block_rows: int, batch_size: int) -> int:
    """Blocks of one part of a table that can be in memory at a time.

    Those of the window at work, the one before and the one to come; a batch larger than a window works
    on more. One block of a table may be smaller, and so one window.
    """
    return _TOGETHER * (2 + -(-batch_size // ((_TOGETHER - 1) * block_rows + 1)))


def blocks_resident(num_data: int, block_rows: int, batch_size: int) -> int:
    """The same of a table of so many rows."""
    return min(blocks_at_work(block_rows, batch_size), -(-num_data // block_rows))


class Blocks:
    """The blocks of a table, which begin anew in each of its parts.

    Args:
        num_data: N.
        block_rows: rows in a block; the last one of a part may have fewer.
        parts: into how many the rows are divided, in order: N // parts of them each, one more in the
            first N % parts.

    Attributes:
        starts: first row of each block, in order, and N.
        of_parts: numbers of the blocks of each part.
    """

    def __init__(self, num_data: int, block_rows: int, parts: int = 1) -> None:
        share, more = divmod(num_data, parts)
        self.starts: list[int] = []
        self.of_parts: list[range] = []
        for part in range(parts):
            first = part * share + min(part, more)
            rows = range(first, first + share + (part < more), block_rows)
            self.of_parts.append(range(len(self.starts), len(self.starts) + len(rows)))
            self.starts += rows
        self.starts.append(num_data)

    def number(self, row: int) -> int:
        """The block that a row lies in."""
        return bisect_right(self.starts, row) - 1

    def part(self, block: int) -> int:
        """The part that a block lies in."""
        return next(part for part, own in enumerate(self.of_parts) if block in own)

    def over(self, rows: range) -> range:
        """The blocks that hold some of these rows."""
        return range(self.number(rows.start), self.number(rows.stop - 1) + 1)


class EpochOrder:
    """The order of one epoch; depends on the generator and the sizes alone.

    Args:
        num_data: N.
        block_rows: rows in a block; with N or more the order is a plain permutation.
        generator: what it is drawn from, on the device where row numbers are wanted.
        parts: of the table, each window has blocks of all.
    """

    def __init__(
        self, num_data: int, block_rows: int, generator: torch.Generator, parts: int = 1
    ) -> None:
        self.num_data, self.block_rows, self.generator = num_data, block_rows, generator
        self.blocks = Blocks(num_data, block_rows, parts)
        orders = [self._shuffled(numbers) for numbers in self.blocks.of_parts]
        self.windows = [
            [block for order in orders for block in order[at : at + _TOGETHER]]
            for at in range(0, max(map(len, orders)), _TOGETHER)
        ]

    def ranges(self, window: int) -> list[tuple[int, int]]:
        """First row and end of each block of a window."""
        starts = self.blocks.starts
        return [(starts[block], starts[block + 1]) for block in self.windows[window]]

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

    def _shuffled(self, blocks: range) -> list[int]:
        if len(blocks) == 1:
            return [*blocks]
        order: list[int] = self._permutation(len(blocks)).tolist()
        return [blocks[place] for place in order]

    def _rows(self, window: int) -> Tensor:
        ranges = self.ranges(window)
        order = self._permutation(sum(stop - start for start, stop in ranges))
        if len(ranges) == 1 and ranges[0][0] == 0:
            return order
        return torch.cat([torch.arange(*ends, device=order.device) for ends in ranges])[order]

    def _permutation(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator, device=self.generator.device)
