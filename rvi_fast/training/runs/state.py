"""The state of optimisers as checkpoints hold it: tensors named "<optimiser>.<parameter>.<entry>"."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...optim.row_state import as_tensor
from .checkpoints import Checkpoint


def flatten(prefix: str, state_dict: dict[str, Any]) -> dict[str, Tensor]:
    """The state of an optimiser, by names that begin with `prefix`."""
    return {
        f"{prefix}.{position}.{name}": as_tensor(value)
        for position, entries in state_dict["state"].items()
        for name, value in entries.items()
    }


def unflatten(prefix: str, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """What `flatten` was given of the state with that prefix."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, position, name = key.split(".")
        if part == prefix:
            state.setdefault(int(position), {})[name] = value
    return state


def lags(checkpoint: Checkpoint) -> bool:
    """Whether it holds rows that are not up to date, and what brings them there."""
    return any(name.startswith("raw.") for name in checkpoint.tensors["optimizer"])
