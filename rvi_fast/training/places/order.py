"""Epochs that visit a table block by block, so that little of it has to be in memory.

The rows are divided into blocks. An epoch visits the blocks in random order, a few at a time: a
window, whose rows are shuffled together.
"""

from __future__ import annotations

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
