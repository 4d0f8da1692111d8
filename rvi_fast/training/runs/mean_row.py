"""The average of the rows of a checkpoint, of which some are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...memory import pages
from ...ops import ops
from ...optim import RowAdam
from ...posteriors.relay import RelayPosterior
from ...reference import widened_history
from ..settings import Settings
from .checkpoints import Checkpoint
from .parts import read_rows, row_width
from .state import lags, unflatten

_ROWS = "posterior.rows"
# rows read at once
_CHUNK = 1024
# rows and columns summed up at once: a sum in float64 is of a copy, and one of so many rows as `mean_of`
# has gives its bits
_SUMMED, _COLUMNS = 65536, 64


@torch.no_grad()
def mean_row(
    checkpoint: Checkpoint, posterior: RelayPosterior, config: Mapping[str, Any]
) -> Tensor:
    """The mean [W] of all rows, brought up to date where they lag behind: the bits of `mean_row()`.

    What lies in files is read as it was at the checkpoint, and stays as it is.

    Args:
        checkpoint: of a run whose datapoints own rows.
        posterior: one of the same layout, of one row, for instance.
        config: of the model; says where tables in files lie, and N.

    Raises:
        CheckpointError: files are missing, damaged, or have been changed by something else.
    """
    width, dtype = posterior.layout.width, posterior.rows.dtype
    held = checkpoint.tensors["model"].get(_ROWS)
    count = int(config["num_data"]) if held is None else len(held)
    optimizer, raw, behind = None, {}, lags(checkpoint)
    if behind:
        settings = Settings.of_rows(checkpoint.metadata.get("settings", {}))
        mode, moments = settings.optimizer, settings.moment_dtype
        optimizer = RowAdam(posterior, lr=0.0, mode=mode, moment_dtype=moments)
        optimizer.detach()
        raw = unflatten("raw", checkpoint.tensors["optimizer"])[0]
        behind = mode == "dense"
    if held is not None:
        names = ("exp_avg", "exp_avg_sq", "row_step") if behind else ()
        parts = _in_checkpoint({"rows": held, **{name: raw[name] for name in names}})
    else:
        assert optimizer is not None
        parts = _in_files(checkpoint, Path(str(config["storage"])), count, optimizer)
    if behind and optimizer is not None:
        history = widened_history(raw["history"])
        parts = _up_to_date(parts, raw["clock"], history, optimizer.coefficients)
    return mean_of_parts((part["rows"] for part in parts), count, width, dtype)


def mean_of_rows(rows: Tensor) -> Tensor:
    """The mean [W] of packed rows [N, W] that are mapped, as `mean_of` gives it."""
    parts = (part["rows"] for part in _in_checkpoint({"rows": rows}))
    return mean_of_parts(parts, len(rows), rows.shape[1], rows.dtype)


def mean_of_parts(parts: Iterator[Tensor], count: int, width: int, dtype: torch.dtype) -> Tensor:
    """The mean [W] of so many rows, that come some [n, W] at a time."""
    total = torch.zeros(width, dtype=torch.float64, device="cpu")
    some, filled, seen = torch.empty((min(count, _SUMMED), width), dtype=dtype, device="cpu"), 0, 0
    for part in parts:
        while len(part):
            taken = part[: len(some) - filled]
            some[filled : filled + len(taken)] = taken
            filled, seen, part = filled + len(taken), seen + len(taken), part[len(taken) :]
            if filled == len(some) or seen == count:
                for first in range(0, width, _COLUMNS):
                    columns = slice(first, first + _COLUMNS)
                    total[columns] += some[:filled, columns].sum(0, dtype=torch.float64)
                filled = 0
    return (total / count).to(dtype)


def _in_checkpoint(tables: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Rows of tables that are mapped from the files of a checkpoint, which are let go of again."""
    count = len(tables["rows"])
    for start in range(0, count, _CHUNK):
        yield {name: table[start : start + _CHUNK] for name, table in tables.items()}
        for table in tables.values():
            if table.device.type == "cpu":
                pages.forget_pages(*pages.bytes_of_rows(table, 0, start + _CHUNK))


def _in_files(
    checkpoint: Checkpoint, root: Path, count: int, optimizer: RowAdam
) -> Iterator[dict[str, Tensor]]:
    tables = optimizer.raw_tables()
    widths = {name: row_width(table) for name, table in tables.items()}
    for _, content in read_rows(checkpoint, root, range(count), count, widths):
        yield {
            name: torch.from_numpy(content[name].reshape(-1))
            .view(table.dtype)
            .view(-1, *table.shape[1:])
            for name, table in tables.items()
        }


def _up_to_date(
    parts: Iterator[dict[str, Tensor]],
    clock: Tensor,
    history: Tensor,
    coefficients: tuple[float, float, float],
) -> Iterator[dict[str, Tensor]]:
    for part in parts:
        names = ("rows", "exp_avg", "exp_avg_sq", "row_step")
        tables = [part[name].clone() for name in names]
        index = torch.arange(len(tables[0]), device="cpu")
        ops.row_adam_catch_up(*tables, index, clock, history, *coefficients)
        yield {"rows": tables[0]}
