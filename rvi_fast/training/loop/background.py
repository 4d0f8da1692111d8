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
from ..places.base import Place
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
        place: where the rows lie.
    """

    def __init__(self, ranks: Alone, place: Place) -> None:
        self.ranks, self.place, self._aside = ranks, place, ranks.aside()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def takes(self, run_dir: Path, epoch: int, tensors: Tensors, metadata: dict[str, Any]) -> bool:
        if self.ranks.any(self._lacks_room(tensors)):
            return False
        copied = {
            stem: {name: tensor.detach().to("cpu", copy=True) for name, tensor in named.items()}
            for stem, named in tensors.items()
        }
        self.place.fork()
        what = (run_dir, epoch, copied, copy.deepcopy(metadata))
        self._writing = self._thread.submit(self._write, *what)
        return True

    def _write(self, *what: Any) -> Path:
        self.place.sync()
        path = self._aside.save(*what)
        self.place.saved()
        return path

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

    def _lacks_room(self, tensors: Tensors) -> bool:
        """Whether what it takes to go on meanwhile has no room, with a warning."""
        size = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
        free, reason = free_memory(torch.device("cpu")), self.place.lacks_room()
        if free is not None and size > free:
            reason = f"a copy of it needs {size} bytes of memory, {free} are free"
        if reason is not None:
            message = f"checkpoint_async: a checkpoint is written before the next step: {reason}"
            warnings.warn(message, CheckpointWarning, stacklevel=5)
        return reason is not None
