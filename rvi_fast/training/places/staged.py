"""Rows in host memory or in files, of which a GPU has a few blocks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...models import LatentModel
from ..runs.checkpoints import Checkpoint
from ..settings import Settings
from .base import Step
from .in_blocks import InBlocks
from .order import EpochOrder
from .staging import StagedStep, Staging


class Staged(InBlocks):
    """Rows whose blocks are copied into slots on the device for their steps, and back."""

    def __init__(self, model: LatentModel, settings: Settings) -> None:
        super().__init__(model, settings)
        self.batch_size = settings.batch_size
        self.staging: Staging

    @property
    def landing(self) -> torch.device:
        # tables that have no room on the device must not be loaded there
        return torch.device("cpu")

    def open(self, found: Checkpoint | None) -> None:
        super().open(found)
        sizes = (self.block_rows, self.batch_size, self.parts)
        self.staging = Staging(self.model, self.rows, *sizes)
        self.stepped = self.staging.model

    def bind(self, step: Step) -> Step:
        return StagedStep(self.staging, step)

    @property
    def slots_of(self) -> Callable[[Tensor], Tensor]:
        return self.staging.slots_of

    @contextmanager
    def _lent(self, order: EpochOrder) -> Iterator[None]:
        with self.staging.epoch(order):
            yield

    def _enter(self, start: int, stop: int) -> None:
        self.staging.enter(start, stop)

    def _leave(
        self, table: Tensor, start: int, stop: int, mark: Any, check: Callable[[Tensor], None]
    ) -> None:
        self.staging.leave(start, stop, mark, check)

    def _mark(self) -> Any:
        return self.staging.mover.mark()
