"""The scale of a model's data, carried by the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ._devices import beside, to_float64
from .data.pixels import observed
from .data.scaling import Standardizer
from .data.transforms import ColumnTransform

_NAMES = ("mean", "std", "limit")
# what bends columns, where something does, see `ColumnTransform.knots`
_BENT = ("knots", "kinds")


class Scaler(nn.Module):
    """Takes data to the units of a model, (bent x - mean) / std, and what the model says back.

    Args:
        scale: centre, spread and limit of each feature, see `data.Standardizer`.
        transform: what bends the features before that, see `data.ColumnTransform`; None where all stay
            as they are. It is counted on the CPU, and no gradient goes through it.

    Attributes:
        mean, std, limit: buffers [D], float64 whatever dtype the model is cast to.
        knots, kinds: buffers that hold the transform, None without one.
    """

    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(self, scale: Standardizer, transform: ColumnTransform | None = None) -> None:
        super().__init__()
        for name in _NAMES:
            values = torch.tensor(getattr(scale, name), dtype=torch.float64, device="cpu")
            self.register_buffer(name, values)
        knots = kinds = None
        if transform is not None:
            knots, kinds = map(torch.from_numpy, transform.knots())
        self.knots: Tensor | None
        self.kinds: Tensor | None
        self.register_buffer("knots", knots)
        self.register_buffer("kinds", kinds)

    @property
    def num_features(self) -> int:
        """Number of features D that the scale has."""
        return len(self.mean)

    def standardizer(self) -> Standardizer:
        """Centre, spread and limit as a `data.Standardizer`; a copy."""
        return Standardizer(*(getattr(self, name).cpu().numpy().copy() for name in _NAMES))

    def transform(self) -> ColumnTransform | None:
        """What bends features before they are scaled; None where nothing does."""
        if self.knots is None or self.kinds is None:
            return None
        return ColumnTransform.from_knots(self.knots.cpu().numpy(), self.kinds.cpu().numpy())

    def to_dict(self) -> dict[str, Any]:
        """Scale and transform as lists of Python floats, exact through JSON, for `from_dict`."""
        transform = self.transform()
        bent = {} if transform is None else {"transform": transform.to_dict()}
        return self.standardizer().to_dict() | bent

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The `Scaler` that a dict of `to_dict` describes.

        Raises:
            ValueError: it is not a dict that `to_dict` has made.
        """
        scale = {name: value for name, value in values.items() if name != "transform"}
        bent = values.get("transform")
        transform = None if bent is None else ColumnTransform.from_dict(bent)
        return cls(Standardizer.from_dict(scale), transform)

    @classmethod
    def like(cls, tensors: dict[str, Tensor]) -> Self:
        """One whose buffers have the shapes of those of a `state_dict`, which is to be loaded next."""
        empty = np.zeros(len(tensors["mean"]))
        scaler = cls(Standardizer(empty, empty))
        for name in _BENT:
            if name in tensors:
                setattr(scaler, name, torch.zeros_like(tensors[name], device="cpu"))
        return scaler

    def copy(self) -> Scaler:
        """A second `Scaler` of the same scale and transform, with buffers of its own on the CPU."""
        return Scaler(self.standardizer(), self.transform())

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
        values = self._bent(to_float64(x), ColumnTransform.transform)
        values = (values - mean) / torch.where(std == 0, 1.0, std)
        if cut:
            values = values.clamp(-limit, limit)
        return values.to(x.device, dtype)

    def to_data(self, values: Tensor) -> Tensor:
        """[..., D] in the model's units -> float64 in the data's units; constant features exactly."""
        mean, std, _ = self._beside(values)
        bent = torch.where(std == 0, mean, to_float64(values) * std + mean)
        return self._bent(bent, ColumnTransform.inverse)

    def log_volume(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B] float64: what log-densities in the model's units exceed those in the data's units by.

        The sum over the observed entries of log std, a constant feature counts as std = 1, less the
        logarithm of the transform's slope.
        """
        _, std, _ = self._beside(x)
        known = observed(x) if mask is None else mask
        logs = torch.where(std == 0, 0.0, std.log()).expand(x.shape)
        if self.knots is not None:
            slopes = self._bent(to_float64(x), ColumnTransform.slope)
            logs = logs - slopes.log()
        return torch.where(known.to(logs.device), logs, 0.0).sum(-1)

    def _bent(
        self, x: Tensor, function: Callable[[ColumnTransform, np.ndarray], np.ndarray]
    ) -> Tensor:
        """Float64 [..., D] through a function of the transform; itself where there is none."""
        transform = self.transform()
        if transform is None:
            return x
        values = function(transform, x.detach().cpu().reshape(-1, x.shape[-1]).numpy())
        return torch.from_numpy(values).reshape(x.shape).to(x.device)

    def _beside(self, x: Tensor) -> list[Tensor]:
        return [getattr(self, name).to(beside(x.device)) for name in _NAMES]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # follows the model to another device, not to another dtype
        for name in (*_NAMES, *_BENT):
            own: Any = getattr(self, name)
            if own is None:
                continue
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
