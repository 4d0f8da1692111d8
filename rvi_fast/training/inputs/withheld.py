"""Observed entries that a training is not shown, so that they can judge it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...data.pixels import observed
from ...data.withheld import withheld
from .sources import Batch, DatasetRows, InMemory, MappedArray, Opened, convert

# entries of more rows would make no judgement better
_ROWS = 4096


class Withheld(NamedTuple):
    """Entries that `fit(held_out=)` keeps from the likelihood, among the rows of this process.

    They are a share of what is observed in up to 4,096 rows of the table. No row loses all that it
    shows. Which they are depends on table, share and seed alone, not on how many processes share it out.

    Attributes:
        rows: int64 [n], in rising order, counted from the first row of this process.
        hidden: bool [n, D].
        source: the data as they came.
    """

    rows: np.ndarray
    hidden: Tensor
    source: Opened

    @classmethod
    def drawn(
        cls,
        source: Opened,
        share: float,
        seed: int,
        first_row: int,
        num_data: int,
        gather: Callable[[np.ndarray], list[np.ndarray]],
    ) -> Withheld:
        """Draws the entries.

        Args:
            source: the rows of this process.
            share: of what is observed.
            seed: of rows and entries.
            first_row: which row of the whole table the first one is.
            num_data: N, rows of the whole table.
            gather: gives what all processes pass it, in their order.

        Raises:
            ValueError: no row has two observed entries.
        """
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(num_data, min(num_data, _ROWS), replace=False))
        before = int((chosen < first_row).sum())
        rows = chosen[before:][chosen[before:] < first_row + len(source)] - first_row
        x, mask = source.read(rows)
        known = (observed(x) if mask is None else mask).cpu().numpy()
        hidden = withheld(np.concatenate(gather(known)), share, generator)
        if not hidden.any():
            raise ValueError(
                f"held_out: expected 0 for a table in which no row has two observed entries, got {share}"
            )
        own = torch.from_numpy(hidden[before : before + len(rows)])
        return cls(rows, own, source)

    def left(self) -> Opened:
        """The data without these entries; tables in memory are copied for it."""
        source = self.source
        if isinstance(source, InMemory):
            x, mask = self.without(source.x, source.mask, np.arange(len(source)))
            return InMemory(x, mask)
        kind: Any = _WithoutMapped if isinstance(source, MappedArray) else _WithoutItems
        return kind(self)

    def without(self, x: Tensor, mask: Tensor | None, rows: np.ndarray) -> Batch:
        """A copy of rows `rows` of the data that does not show the entries.

        Args:
            x: [B, D].
            mask: bool [B, D] or None.
            rows: their numbers, [B].
        """
        hidden = self.of(rows).to(x.device)
        if mask is not None:
            mask = mask & ~hidden.to(mask.device)
        elif x.dtype == torch.uint8:
            mask = ~hidden
        return (x.masked_fill(hidden, torch.nan) if x.is_floating_point() else x), mask

    def of(self, rows: np.ndarray) -> Tensor:
        """Which entries of some rows are hidden, bool [B, D]."""
        found = torch.zeros(len(rows), self.hidden.shape[1], dtype=torch.bool, device="cpu")
        if len(self.rows):
            place = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
            mine = torch.from_numpy(self.rows[place] == rows)
            found[mine] = self.hidden[torch.from_numpy(place)[mine]]
        return found

    def truth(self, part: slice, dtype: torch.dtype, scaler: Any) -> Batch:
        """x and mask of some of `rows`, in the units of a model, as if nothing were hidden.

        Args:
            part: which of `rows`.
            dtype, scaler: the model's.
        """
        rows = self.rows[part]
        return convert(*self.source.read(rows), dtype, rows, scaler)


class _WithoutMapped(MappedArray):
    """A mapped table, read without the entries."""

    def __init__(self, entries: Withheld) -> None:
        source = entries.source
        assert isinstance(source, MappedArray)
        super().__init__(source.x, source.mask)
        self.entries = entries

    def read(self, rows: np.ndarray) -> Batch:
        return self.entries.without(*super().read(rows), rows)


class _WithoutItems(DatasetRows):
    """A data set, read without the entries."""

    def __init__(self, entries: Withheld) -> None:
        source = entries.source
        assert isinstance(source, DatasetRows)
        super().__init__(source.dataset, source.num_features)
        self.entries = entries

    def read(self, rows: np.ndarray) -> Batch:
        return self.entries.without(*super().read(rows), rows)
