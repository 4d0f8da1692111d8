"""Numbers that a law learns of all features or of each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .base import view


def learned(
    module: nn.Module, argument: str, name: str, kind: str, value: float, **options: Any
) -> None:
    """Gives a law a number that it learns: one, or one per feature; or one that it does not.

    Args:
        module: has `num_features`.
        argument: what says the kind, for errors.
        name: of the parameter, or of the buffer where the number is fixed.
        kind: "scalar", "feature" or "fixed".
        value: where it starts.
        **options: device and dtype.
    """
    if kind not in ("scalar", "feature", "fixed"):
        raise ValueError(f"{argument}: expected scalar, feature or fixed, got {kind!r}")
    shape = (module.num_features,) if kind == "feature" else ()
    tensor = torch.full(shape, value, **options)  # type: ignore[arg-type]
    if kind == "fixed":
        module.register_buffer(name, tensor)
    else:
        module.register_parameter(name, nn.Parameter(tensor))


def with_wider_scale(law: Any, factor: float) -> Any:
    """A view of a law whose `log_scale` is that of a scale `factor` times as large, not learned."""
    other = view(law)
    with torch.no_grad():
        log_scale = law.log_scale.detach() + math.log(factor)
    other._parameters.pop("log_scale", None)
    other._buffers["log_scale"] = log_scale
    return other
