"""Checkpoints that a thread writes while training goes on, from copies of what they hold."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...memory.room import free_memory
from ..distributed.ranks import Alone
from ..runs.checkpoints import CheckpointWarning

Tensors = dict[str, dict[str, Tensor]]


class NoBackground:
    """Checkpoints are written before training goes on."""

    def takes(self, run_dir: Path, epoch: int, tensors: Tensors, metadata: dict[str, Any]) -> bool:
        """Has a checkpoint written as it is now, by another thread; false where that cannot be.

        `wait` is to be called before the next. Arguments as in `Alone.save`.
        """
        return False

    def wait(self) -> Path | None:
        """The checkpoint that was taken last, if any since the last call, once it has its name.

        Raises:
            Exception: what its writing has raised.
        """
        return None

    def close(self) -> None:
        """Returns when nothing is written any more; warns of what could not be."""


class Background(NoBackground):
    """Writes a checkpoint at a time in a thread, from a copy that is gone when it has its name.

    Args:
        ranks: who trains; all of them make one.
    """

    def __init__(self, ranks: Alone) -> None:
        self.ranks, self._aside = ranks, ranks.aside()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def takes(self, run_dir: Path, epoch: int, tensors: Tensors, metadata: dict[str, Any]) -> bool:
        if self.ranks.any(_lacks_room(tensors)):
            return False
        copied = {
            stem: {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()}
            for stem, named in tensors.items()
        }
        kept = copy.deepcopy(metadata)
        self._writing = self._thread.submit(self._aside.save, run_dir, epoch, copied, kept)
        return True

    def wait(self) -> Path | None:
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def close(self) -> None:
        try:
            self.wait()
        except Exception as error:  # another one has ended the run, or it would have been raised
            message = f"a checkpoint could not be written: {error}"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
        finally:
            self._thread.shutdown()
            self._aside.leave()


def _lacks_room(tensors: Tensors) -> bool:
    """Whether a copy has no room in memory, with a warning."""
    size = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
    free = free_memory(torch.device("cpu"))
    if free is None or size <= free:
        return False
    warnings.warn(
        f"checkpoint_async: a checkpoint is written before the next step: a copy of it needs {size} "
        f"bytes ({size / 1e9:.1f} GB) of memory, {free} ({free / 1e9:.1f} GB) are free",
        CheckpointWarning,
        stacklevel=5,
    )
    return True
