"""Likelihoods of a user's own, which need not know what this package asks of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Likelihood, lacking


class Foreign(Likelihood):
    """A likelihood of a user's own, any module with `forward`, as this package asks it.

    Args:
        module: has `num_features`, and may have `num_outputs`, `location_scale`, `mean`, `mode`,
            `sample` and `check`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.num_features)  # type: ignore[arg-type]
        self.module = module
        self.location_scale = bool(getattr(module, "location_scale", False))

    @property
    def num_outputs(self) -> int | None:
        return getattr(self.module, "num_outputs", None)

    @property
    def restricted(self) -> bool:
        return callable(getattr(self.module, "check", None))

    @property
    def num_noise(self) -> int:
        # what else a law draws with is not known
        return self.num_features if self.location_scale else 0

    def forward(self, x: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.module(x, outputs, mask)

    def mean(self, outputs: Tensor) -> Tensor:
        return self._method("mean")(outputs)

    def mode(self, outputs: Tensor) -> Tensor:
        return self._method("mode")(outputs)

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        draw = self._method("sample")
        return draw(outputs, noise=noise) if self.location_scale else draw(outputs)

    def check(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        rows: Any = None,
        columns: Sequence[int | str] | None = None,
    ) -> None:
        if self.restricted:
            self.module.check(x, mask)  # type: ignore[operator]

    def _method(self, name: str) -> Any:
        method = getattr(self.module, name, None)
        if not callable(method):
            raise ValueError(lacking(self.module, name))
        return method


def as_likelihood(module: nn.Module) -> Likelihood:
    """The module, or what answers for it where it is none of the package's kind."""
    return module if isinstance(module, Likelihood) else Foreign(module)


def lacks(module: nn.Module, name: str) -> bool:
    """Whether a likelihood has no method "mean", "mode" or "sample" of its own."""
    if isinstance(module, Foreign):
        return lacks(module.module, name)
    method = getattr(type(module), name, None)
    own = getattr(module, name, None)
    return not callable(own) or method is getattr(Likelihood, name)
