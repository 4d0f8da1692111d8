"""Learning rates that change from epoch to epoch."""

from __future__ import annotations

from typing import Any

import torch

from ...optim import RowAdam
from ...optim.shared_adam import SharedAdam
from ..places.base import NoRows


class Rates:
    """The learning rates of a run, each a multiple of what `fit` was given.

    Args:
        shared: drives all but the rows.
        rows: drives the rows.
    """

    def __init__(self, shared: torch.optim.Optimizer, rows: RowAdam | NoRows) -> None:
        self.shared = shared
        groups: list[dict[str, Any]] = [*shared.param_groups, *rows.param_groups]
        self._given = [(group, group["lr"]) for group in groups]
        self._factor = 1.0

    def scale(self, factor: float) -> None:
        """From the next step on all are `factor` times what they were given as.

        Raises:
            ValueError: weights would decay to 0 or beyond in a step.
        """
        if factor == self._factor:
            return
        for group, given in self._given:
            if given * factor * group.get("weight_decay", 0.0) >= 1.0:
                raise ValueError(
                    f"lr_factor: expected less than 1 / (lr * weight_decay), got {factor}"
                )
            group["lr"] = given * factor
        if isinstance(self.shared, SharedAdam):
            # a graph reads them where they lie
            self.shared.set_lr()
        self._factor = factor
