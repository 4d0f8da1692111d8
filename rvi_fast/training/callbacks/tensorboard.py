"""The history of a training for TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from ...models import LatentModel
from ..loop.callback import Callback
from ..loop.history import History


class TensorBoard(Callback):
    """Writes the history for TensorBoard (extra `tensorboard`): `tensorboard --logdir runs`.

    Curves "loss", "kl" and "log_prob" in nats, and "elastic" and "held_out" where they are evaluated, by
    epoch. After a resume, what an interrupted run had written of later epochs is not shown.

    Args:
        log_dir: the directory of the run's events, made where it is missing.

    Raises:
        ImportError: by `fit`, before anything is trained, where tensorboard is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.log_dir = os.fspath(log_dir)
        self._writer: Any = None

    def begin(self, model: LatentModel, history: History) -> None:
        """Opens the events, from the epoch on that comes next."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                'callbacks: TensorBoard needs tensorboard: pip install "rvi-fast[tensorboard]"',
                name="tensorboard",
            ) from error
        self._writer = SummaryWriter(self.log_dir, purge_step=history.epochs + 1)

    def __call__(self, model: LatentModel, history: History) -> None:
        """Adds a point to each curve."""
        record = history.records()[-1]
        epoch = int(record.pop("epoch"))
        for name, value in record.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Closes the events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
