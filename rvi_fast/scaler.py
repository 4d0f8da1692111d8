"""The scale of a model's data, carried by the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ._devices import beside, to_float64
from .data.scaling import Standardizer

_NAMES = ("mean", "std", "limit")


class Scaler(nn.Module):
    """Takes data to the units of a model, (x - mean) / std, and what the model says back.

    Args:
        scale: centre, spread and limit of each feature, see `data.Standardizer`.

    Attributes:
        mean, std, limit: buffers [D], float64 whatever dtype the model is cast to.
    """

    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(self, scale: Standardizer) -> None:
        super().__init__()
        for name in _NAMES:
            self.register_buffer(name, torch.tensor(getattr(scale, name), dtype=torch.float64))

    @property
    def num_features(self) -> int:
        """D."""
        return len(self.mean)

    def standardizer(self) -> Standardizer:
        """The same numbers as a `data.Standardizer`."""
        return Standardizer(*(getattr(self, name).cpu().numpy().copy() for name in _NAMES))

    def to_model(self, x: Tensor, dtype: torch.dtype, *, cut: bool = True) -> Tensor:
        """Data [..., D] in the model's units and dtype, counted in float64; NaN stays NaN.

        Args:
            x: floating point.
            dtype: of the result.
            cut: at the limit of each feature, as rows are that a model is fitted to.

        Raises:
            TypeError: x holds pixels (uint8), which have no scale of their own.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"x: expected floating point, as the data that gave the model its scale, got {x.dtype}"
            )
        mean, std, limit = self._beside(x)
        values = (to_float64(x) - mean) / torch.where(std == 0, 1.0, std)
        if cut:
            values = values.clamp(-limit, limit)
        return values.to(x.device, dtype)

    def to_data(self, values: Tensor) -> Tensor:
        """[..., D] in the model's units -> float64 in the data's units; constant features exactly."""
        mean, std, _ = self._beside(values)
        return torch.where(std == 0, mean, to_float64(values) * std + mean)

    def log_volume(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B] float64: what log-densities in the model's units exceed those in the data's units by.

        The sum of log std over the observed entries; a constant feature counts as std = 1.
        """
        _, std, _ = self._beside(x)
        observed = ~torch.isnan(x) if mask is None else mask
        logs = torch.where(std == 0, 0.0, std.log())
        return torch.where(observed.to(logs.device), logs, 0.0).sum(-1)

    def _beside(self, x: Tensor) -> list[Tensor]:
        return [getattr(self, name).to(beside(x.device)) for name in _NAMES]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # follows the model to another device, not to another dtype
        for name in _NAMES:
            own: Any = getattr(self, name)
            device = fn(torch.empty(0, device=own.device)).device
            if device.type == own.device.type == "cpu":
                changed = fn(own)  # `share_memory` and its like
                setattr(self, name, changed if changed.dtype == own.dtype else own)
            elif own.is_meta:  # `to_empty`: there is nothing to copy
                setattr(self, name, torch.empty_like(own, device=beside(device)))
            else:
                setattr(self, name, own.to(beside(device)))
        return self

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}"
