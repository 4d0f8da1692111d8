"""Checkpoints of a run that goes on with more rows than it had."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...ops import ops
from ...optim import RowAdam
from ...posteriors.rows import sum_of
from ...reference import HISTORY_COLUMNS, widened_history
from .checkpoints import Checkpoint
from .sharded import is_row_table
from .state import lags, unflatten

_ROWS = "posterior.rows"
# rows brought up to date at once
_CHUNK = 65536


@torch.no_grad()
def grown(
    checkpoint: Checkpoint,
    optimizer: Any,
    rows: range,
    num_data: int,
    total: Callable[[Tensor], Tensor],
) -> Checkpoint:
    """The same checkpoint with rows added at its end, as `RelayPosterior.extend` adds them.

    Rows that lag behind are brought up to date, so that new ones start at the mean of what they are. An
    epoch that was broken off begins anew, with all rows.

    Args:
        checkpoint: with tables of those rows of this process in it that it has.
        optimizer: what goes on with it, a `RowAdam` where datapoints own rows; its options say what
            rows have missed.
        rows: of this process, new ones included.
        num_data: N with the new rows, those of all processes.
        total: the sum of a tensor over all processes, in place.
    """
    before = checkpoint.metadata["settings"]["data"]["rows"]
    metadata = {name: value for name, value in checkpoint.metadata.items() if name != "partial"}
    if "structure" in metadata:  # where a posterior without rows says how many they are
        pattern, now = rf"\bnum_data={before}\b", f"num_data={num_data}"
        lines = metadata["structure"].items()
        metadata["structure"] = {name: re.sub(pattern, now, line) for name, line in lines}
    checkpoint = replace(checkpoint, metadata=metadata)
    if not isinstance(optimizer, RowAdam) or _ROWS not in checkpoint.tensors["model"]:
        return checkpoint  # tables in files start theirs where they lie
    model, state = (dict(checkpoint.tensors[stem]) for stem in ("model", "optimizer"))
    if lags(checkpoint) and optimizer.mode == "dense":
        model[_ROWS], raw = _up_to_date(model[_ROWS], checkpoint, optimizer, rows.start)
        state |= {f"raw.0.{name}": tensor for name, tensor in raw.items()}
    held = model[_ROWS]
    start = (total(sum_of(held)) / before).to(held)
    more = len(rows) - len(held)
    model[_ROWS] = torch.cat((held, start.expand(more, -1)))
    for name, table in state.items():
        if is_row_table(name):
            fill = 0
            if name.endswith("row_step") and optimizer.mode == "dense":
                fill = int(state["raw.0.clock"][0])
            new = table.new_full((more, *table.shape[1:]), fill)
            state[name] = torch.cat((table, new))
    tensors: dict[str, Any] = {**checkpoint.tensors, "model": model, "optimizer": state}
    return replace(checkpoint, tensors=tensors)


def _up_to_date(
    rows: Tensor, checkpoint: Checkpoint, optimizer: RowAdam, first_row: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows that lag behind no more, and what is raw of their optimiser."""
    raw = dict(unflatten("raw", checkpoint.tensors["optimizer"])[0])
    names = ("exp_avg", "exp_avg_sq", "row_step")
    tables = [rows.clone(), *(raw[name].clone() for name in names)]
    clock = raw["clock"]
    history = widened_history(raw["history"])
    for start in range(0, len(rows), _CHUNK):
        index = torch.arange(start, min(start + _CHUNK, len(rows)), device=rows.device)
        keys = index + first_row if first_row else None
        ops.row_adam_catch_up(
            *tables, index, clock, history, *optimizer.coefficients, key_index=keys
        )
    raw |= dict(zip(names, tables[1:], strict=True))
    raw["clock"] = clock[:1].repeat(2)
    raw["history"] = history.new_zeros((1, HISTORY_COLUMNS))
    return tables[0], raw
