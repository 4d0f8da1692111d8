"""Tables whose rows come and go: what is owned by datapoints follows them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..files import StrPath
from ..memory.room import check_memory
from .rows import OwnedRows
from .tables import MappedTables


class GrowingRows(OwnedRows):
    """Rows [N, W] of which there can be more or fewer later, beside relays that stay as they are."""

    @torch.no_grad()
    def extend(self, num_data: int) -> None:
        """Adds rows at the end, in place; those that are there, and the relays, stay as they are.

        New rows start at `mean_row`. A `RowAdam` that drives the rows goes on with all of them: the
        moments of the new ones are zero, as if no gradient had reached them in the steps so far, which
        count for their bias correction in the modes "dense" and "lazy"; in mode "row" they have not
        been visited. Other optimisers have to be made anew. Tables in files grow where they are.

        Args:
            num_data: how many.

        Raises:
            ValueError: the posterior is a shard, or its rows have numbers of their own.
            InsufficientMemory: there is no room; nothing is changed then.

        Example:
            >>> import torch, rvi_fast
            >>> posterior = rvi_fast.RelayPosterior(100, 4, groups=(3,))
            >>> start = posterior.mean_row()
            >>> posterior.extend(20)
            >>> posterior.num_data, torch.equal(posterior.rows[119], start)
            (120, True)
        """
        added = _checks.check_positive_int("num_data", num_data)
        self._check_all_here("extend")
        rows, tables, start = self._plain_rows(), self.tables, self.mean_row().to(self.rows.device)
        if isinstance(tables, MappedTables):
            tables.grow(self._description(), added)
            rows = tables.table("rows")
            rows[self.num_data :] = start
        else:
            size = (len(rows) + added) * rows.shape[1] * rows.element_size()
            check_memory(rows.device, "posterior.rows", size)
            rows = torch.cat((rows, start.expand(added, -1)))
        kept = torch.arange(self.num_data, device=rows.device)
        self._take_rows(rows, kept, added)

    @torch.no_grad()
    def select(self, index: Any, *, storage: StrPath | None = None) -> None:
        """Keeps some rows and lets go of the others, in place; the relays stay as they are.

        Row i is row `index[i]` of before: it has its numbers and, under a `RowAdam`, its moments and
        steps. It draws the noise of its new number. Other optimisers have to be made anew.

        Tables in files are written anew, a few rows in memory at a time: their disk has to hold both
        for a while. A program that ends meanwhile leaves the rows of before, or those that are kept.
        Runs with checkpoints of before do not go on with them.

        Args:
            index: int64 [n], n >= 1, each row once, in any order; or bool [N], true = kept.
            storage: of tables in files, another directory, where the rows that are kept lie from now
                on; what is in the one so far stays as it is.

        Raises:
            IndexError, ValueError, TypeError: what is no such index; the posterior is a shard, or its
                rows have numbers of their own; `storage` for rows in memory, or one that holds tables.
            CheckpointError: a row in a file is damaged.
            InsufficientMemory: the disk has no room; nothing is changed then.

        Example:
            >>> import torch, rvi_fast
            >>> posterior = rvi_fast.RelayPosterior(100, 4, groups=(3,))
            >>> third = posterior.rows[3].clone()
            >>> posterior.select(torch.tensor([5, 3]))
            >>> posterior.num_data, torch.equal(posterior.rows[1], third)
            (2, True)
        """
        self._check_all_here("select")
        kept = _kept(index, self.num_data)
        self._bring_up_to_date(None)
        if isinstance(self.tables, MappedTables):
            described = {**self._description(), "num_data": len(kept)}
            self.tables = self.tables.select(kept.cpu(), described, storage)
            self._take_rows(self.tables.table("rows"), kept, 0)
            return
        if storage is not None:
            raise ValueError(
                f"storage: expected None for rows in memory, got {os.fspath(storage)!r}"
            )
        rows = self._plain_rows()
        kept = kept.to(rows.device)
        self._take_rows(rows[kept], kept, 0)

    def _take_rows(self, rows: Tensor, kept: Tensor, added: int) -> None:
        """Takes other packed rows: some of those before, all of them up to date, then new ones."""
        optimizer = self._row_optimizer
        # the same parameter, whatever its class is meanwhile
        with torch._C.DisableTorchFunctionSubclass():
            self.rows.grad = None
            self.rows.data = rows
            if isinstance(self.tables, MappedTables):
                # which counts what is written to it from now on
                self.tables.checksums.watch(self.rows.detach())
        self.num_data = self.table_size = len(rows)
        if optimizer is not None:
            optimizer.rows_replaced(kept, added)
        elif isinstance(self.tables, MappedTables):
            self.tables.seal()

    def _plain_rows(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.rows.data

    def _check_all_here(self, what: str) -> None:
        self.check_rows()
        if self.sharded and self.num_data < self.table_size:
            raise ValueError(
                f"posterior: expected all {self.table_size} rows for {what}, got a shard of "
                f"{self.num_data}"
            )
        if self.row_numbers is not None or self.first_row:
            raise ValueError(f"posterior: expected rows numbered from 0 for {what}, got others")


def _kept(index: Any, num_data: int) -> Tensor:
    """Numbers of the rows that are kept, int64 [n]."""
    index = torch.as_tensor(index, device="cpu")
    if index.dtype == torch.bool:
        _checks.check_shape("index", index, (num_data,))
        index = index.nonzero()[:, 0]
    if index.dtype not in (torch.int32, torch.int64) or index.dim() != 1:
        raise TypeError(
            f"index: expected int64 [n] or bool [{num_data}], got {index.dtype} "
            f"{_checks.shape_of(index)}"
        )
    if not len(index):
        raise ValueError("index: expected at least one row, got none")
    _checks.check_row_numbers(index, num_data)
    _checks.check_each_once(index)
    return index.to(torch.int64)
