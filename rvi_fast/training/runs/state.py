"""The model and the optimisers of a run, as checkpoints hold them and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models import LatentModel
from ...optim import MAX_STEPS, RowAdam
from ...posteriors.relay import RelayPosterior
from ...posteriors.tables import MappedTables, Tables
from ..loop.step import NoRows
from .checkpoints import Checkpoint, CheckpointError
from .journal import Journal
from .structure import difference, structure_of


@dataclass(frozen=True)
class State:
    """What a run changes, with the journal of tables in files and whether rows lag behind."""

    model: LatentModel
    rows: RowAdam | NoRows
    shared: torch.optim.Optimizer
    journal: Journal | None
    lagging: bool

    def tensors(self, *, midway: bool = False) -> dict[str, dict[str, Tensor]]:
        """As a checkpoint holds them.

        Args:
            midway: within an epoch, where to bring rows up to date would change what follows.
        """
        if (self.lagging or midway) and isinstance(self.rows, RowAdam):
            values, rows = self._lagging()
        else:
            values, rows = self.model.state_dict(), _flatten("rows", self.rows.state_dict())
        return {
            "model": values,
            "optimizer": {**rows, **_flatten("shared", self.shared.state_dict())},
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes all of them back to a checkpoint.

        Raises:
            CheckpointError: it is that of another model.
        """
        with getattr(self.model.posterior, "tables", Tables()).unread():
            own = self.model.state_dict()
        held = checkpoint.tensors["model"]
        if self.journal is not None:
            del own["posterior.rows"]
        wrong = sorted(own.keys() ^ held.keys()) or [
            name
            for name, tensor in own.items()
            if tensor.shape != held[name].shape
            or (name.endswith("_extra_state") and not torch.equal(tensor.cpu(), held[name].cpu()))
        ]
        if wrong:  # before anything of the model is changed
            raise CheckpointError(checkpoint.path, f"does not fit the model: {', '.join(wrong)}")
        # older checkpoints do not say what the model is made of
        structure = checkpoint.metadata.get("structure")
        other = None if structure is None else difference(structure, structure_of(self.model))
        if other is not None:
            raise CheckpointError(checkpoint.path, f"does not fit the model: {other}")
        try:
            state = checkpoint.tensors["optimizer"]
            # the optimisers look at everything before they change anything
            lagging: RowAdam | None = None
            if isinstance(self.rows, RowAdam) and lags(checkpoint):
                lagging = self.rows
            if lagging is None:
                self.rows.load_state_dict(_unflatten("rows", state, self.rows))
            else:
                _raw(lagging, self.journal, checkpoint)
            self.shared.load_state_dict(_unflatten("shared", state, self.shared))
            self.model.load_state_dict(held, strict=self.journal is None)
            if lagging is not None:
                restore_lagging(lagging, self.journal, checkpoint)
        except CheckpointError:
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(checkpoint.path, f"does not fit the model: {error}") from error

    def _lagging(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Model and row optimiser as they are: to bring rows up to date here would change the run."""
        assert isinstance(self.rows, RowAdam)
        with self.rows.as_they_are():
            values = self.model.state_dict()
        rows = self.rows.raw_state()
        if self.journal is None:
            rows |= {name: t for name, t in self.rows.raw_tables().items() if name != "rows"}
        else:
            del values["posterior.rows"]
        return values, {f"raw.0.{name}": tensor for name, tensor in rows.items()}


def lags(checkpoint: Checkpoint) -> bool:
    """Whether it holds rows that are not up to date, and what brings them there."""
    return any(name.startswith("raw.") for name in checkpoint.tensors["optimizer"])


def name_of(dtype: torch.dtype) -> str:
    """A dtype as settings hold it."""
    return str(dtype).removeprefix("torch.")


def row_adam(posterior: RelayPosterior, settings: dict[str, Any]) -> RowAdam:
    """The optimiser of the rows that the settings of a run name."""
    narrow = settings.get("moment_dtype") == name_of(torch.bfloat16)
    return RowAdam(
        posterior,
        lr=settings["posterior_lr"],
        mode=settings["optimizer"],
        moment_dtype=torch.bfloat16 if narrow else None,
    )


def restore_lagging(rows: RowAdam, journal: Journal | None, checkpoint: Checkpoint) -> None:
    """Tables and row optimiser as they were at a checkpoint between two blocks."""
    raw = _raw(rows, journal, checkpoint)
    if journal is not None:
        journal.go_on_from(checkpoint.path, **checkpoint.metadata["journal"])
        tables = rows.posterior.tables
        assert isinstance(tables, MappedTables)
        tables.checksums.adopt(checkpoint.tensors.get("checksums"), checkpoint.path)
        journal.roll_back()
    for name, table in rows.raw_tables().items():
        if name in raw:
            table.copy_(raw[name])
    rows.load_raw_state(raw)


def _raw(rows: RowAdam, journal: Journal | None, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What a checkpoint between two blocks holds of the row optimiser, all of it and as it must be."""
    raw = _unflatten("raw", checkpoint.tensors["optimizer"], rows)["state"].get(0, {})
    # the rows are the model's; where there is a journal, all tables are in files
    tables = {} if journal is not None else rows.raw_tables()
    for name in (*tables, "clock", "history"):
        if name == "rows":
            continue
        if name not in raw:
            raise CheckpointError(checkpoint.path, f"lacks {name} of the row optimiser")
        if name in tables and raw[name].shape != tables[name].shape:
            reason = f"has {name} {list(raw[name].shape)}, expected {list(tables[name].shape)}"
            raise CheckpointError(checkpoint.path, reason)
    taken, since = raw["clock"].tolist()
    if not 0 <= since <= taken <= MAX_STEPS or len(raw["history"]) != taken - since + 1:
        reason = f"has a history of {len(raw['history'])} entries for steps {since} to {taken}"
        raise CheckpointError(checkpoint.path, reason)
    return raw


def _flatten(prefix: str, state_dict: dict[str, Any]) -> dict[str, Tensor]:
    return {
        f"{prefix}.{position}.{name}": torch.as_tensor(value)
        for position, entries in state_dict["state"].items()
        for name, value in entries.items()
    }


def _unflatten(
    prefix: str, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer | NoRows
) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, position, name = key.split(".")
        if part == prefix:
            state.setdefault(int(position), {})[name] = value
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
