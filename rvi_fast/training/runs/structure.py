"""What a model is made of, in words that are the same in every process: a resume compares them."""

from __future__ import annotations

import functools
import re
from typing import Any

import torch
from torch import nn

from ...models import LatentModel

# where an object lies is different in every process
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# which rows a process holds, where they have started, and what training itself sets
_PASSING = {
    *("training", "sparse", "num_data", "table_size", "first_row", "row_numbers", "sharded"),
    "initial_log_std",
}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size)


def structure_of(model: LatentModel) -> dict[str, str]:
    """One line for each module, by its name: type, `extra_repr`, plain attributes, shapes and dtypes.

    Rows are left out: how many there are is compared elsewhere.
    """
    return {name: _line(module) for name, module in model.named_modules() if name}


def difference(stored: dict[str, str], own: dict[str, str]) -> str | None:
    """The first module that differs, in words; None where none does."""
    for name in [*stored, *(own.keys() - stored.keys())]:
        expected, got = stored.get(name, "nothing"), own.get(name, "nothing")
        if expected != got:
            return f"{name}: expected {expected}, got {got}"
    return None


def _line(module: nn.Module) -> str:
    owns_rows = "rows" in module._parameters
    parts = [] if owns_rows else [_ADDRESS.sub("", module.extra_repr())]
    for name, value in sorted(vars(module).items()):
        if not name.startswith("_") and name not in _PASSING and _is_plain(value):
            parts.append(f"{name}={_text(value)}")
    if owns_rows:
        parts.append(f"layout={module.layout}")
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and name != "rows":
            dtype = str(tensor.dtype).removeprefix("torch.")
            parts.append(f"{name}: {dtype}{list(tensor.shape)}")
    return f"{type(module).__qualname__}({', '.join(filter(None, parts))})"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, functools.partial):
        return _is_plain(value.func) and _is_plain([*value.args, *value.keywords.values()])
    return isinstance(value, _PLAIN) or (callable(value) and hasattr(value, "__qualname__"))


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, functools.partial):
        arguments = [
            *map(_text, value.args),
            *(f"{k}={_text(v)}" for k, v in value.keywords.items()),
        ]
        return f"{_text(value.func)}({', '.join(arguments)})"
    return value.__qualname__ if callable(value) else repr(value)
