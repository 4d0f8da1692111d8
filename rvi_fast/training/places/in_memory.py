"""Rows in the memory of the device that trains: an epoch visits them in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ...models import LatentModel
from ...optim import RowAdam
from ..runs.checkpoints import Checkpoint
from ..runs.state import flatten, lags, unflatten
from ..runs.tables import RowTables, tables_of
from ..settings import Settings, name_of
from .base import Place

_ROWS = "posterior.rows"


class InMemory(Place):
    """Rows that are all at hand, and up to date at the end of an epoch.

    Args:
        model: its posterior owns rows.
        settings: what its optimiser is made with.
    """

    rows: RowAdam

    def __init__(self, model: LatentModel, settings: Settings) -> None:
        super().__init__(model)
        self.tables: RowTables = tables_of(model.posterior, settings, settings.directory)
        self.left_out = self.tables.left_out
        self._sparse = model.posterior.sparse

    @property
    def older(self) -> dict[str, Any]:
        return {"moment_dtype": name_of(self.model.posterior.rows.dtype)}

    def open(self, found: Checkpoint | None) -> None:
        self.model.posterior.sparse = True
        self.rows = self.tables.open(found)
        self.tables.begin()

    def close(self) -> None:
        super().close()
        self.model.posterior.sparse = self._sparse

    def settle(self) -> None:
        self.rows.flush()

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        # to bring rows up to date within an epoch would change its rounding
        for name, parameter in self.model.named_parameters():
            yield name, self.rows.table() if name == _ROWS else parameter.detach()

    def tensors(self, midway: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if midway:
            return self._as_they_are()
        return self.model.state_dict(), flatten("rows", self.rows.state_dict())

    def _as_they_are(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Model and row optimiser as they are: to bring rows up to date here would change the run."""
        with self.rows.as_they_are():
            values = self.model.state_dict()
        rows = {**self.rows.raw_state(), **self.tables.copied()}
        for name in self.left_out:
            del values[name]
        return values, {f"raw.0.{name}": tensor for name, tensor in rows.items()}

    def held(self) -> dict[str, Tensor]:
        with self.model.posterior.tables.unread():
            values = self.model.state_dict()
        return {name: tensor for name, tensor in values.items() if name not in self.left_out}

    def restore(self, checkpoint: Checkpoint, others: Callable[[], None]) -> None:
        # the optimisers look at everything before they change anything
        if lags(checkpoint):
            self.tables.raw(checkpoint)
            others()
            self.tables.restore(checkpoint, self.total)
            return
        state = unflatten("rows", checkpoint.tensors["optimizer"])
        groups = self.rows.state_dict()["param_groups"]
        self.rows.load_state_dict({"state": state, "param_groups": groups})
        others()
