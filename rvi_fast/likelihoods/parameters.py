"""Numbers that a law learns of all features or of each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .. import _checks
from .base import Likelihood, view


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


@torch.no_grad()
def set_scale(law: nn.Module, scale: float) -> None:
    """Sets the scale to a number, in every part of a law that has one and in every column.

    Raises:
        ValueError, TypeError: no part has one, or the number is none that a scale can be.
    """
    logarithm = math.log(_checks.check_positive_float("initial_scale", scale))
    parts: list[Any] = [part for part in law.modules() if isinstance(part, Likelihood)]
    scales = [part.log_scale for part in parts if hasattr(part, "log_scale")]
    if not scales:
        raise ValueError(
            f"initial_scale: expected 1 for a {type(law).__name__}, which has no scale, got {scale!r}"
        )
    for log_scale in scales:
        log_scale.fill_(logarithm)


def with_wider_scale(law: Any, factor: float) -> Any:
    """A view of a law whose `log_scale` is that of a scale `factor` times as large, not learned."""
    other = view(law)
    with torch.no_grad():
        log_scale = law.log_scale.detach() + math.log(factor)
    other._parameters.pop("log_scale", None)
    other._buffers["log_scale"] = log_scale
    return other
