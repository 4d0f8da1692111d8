"""Where batches that the host has read lie on a GPU: steps read one while the next one is copied."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...memory.room import check_memory
from .sources import Batch

_PLACES = 2


def lands_on(device: torch.device) -> bool:
    """Whether batches are copied to a device beside its steps, to where CUDA graphs find them."""
    return device.type == "cuda"


class Landing:
    """Two places on a device; what is captured reads the same addresses whenever it is replayed.

    A batch is copied on a stream of its own, to the place that was read before the last one, as soon as
    the steps that read it are done: those of the last batch run meanwhile. The host waits for nothing.

    Args:
        device: where to.
        size: rows of the largest batch.
        like: x and mask of some rows, on the host.

    Attributes:
        place: number of the one that holds the last batch: steps on each have graphs of their own.
        rows: int64 [`size`], 0, 1 and so on.
    """

    def __init__(self, device: torch.device, size: int, like: Batch) -> None:
        self.device, self.dtype, self.place = device, like[0].dtype, 0
        needed = sum(part[:1].nbytes for part in like if part is not None) * size * _PLACES
        check_memory(device, "batches of x", needed, "lower batch_size")
        self._places: list[Batch] = [
            (
                _room(like[0], size, device),
                None if like[1] is None else _room(like[1], size, device),
            )
            for _ in range(_PLACES)
        ]
        self.rows = torch.arange(size, device=device)
        # steps that read a place, each place its own
        self._asked = [torch.cuda.Event() for _ in self._places]
        self._copies = torch.cuda.Stream(device)
        # whoever had this memory before may still be at work
        self._copies.wait_stream(torch.cuda.current_stream(device))

    @property
    def tables(self) -> Batch:
        """x and mask of the last batch, each with as many rows as the largest batch has."""
        return self._places[self.place]

    def prepared(self, batch: Batch, rows: np.ndarray) -> Batch:
        """A batch as it can be copied beside steps, which takes the host some time; for any thread.

        Args:
            batch: x and mask on the host.
            rows: their numbers.

        Raises:
            TypeError: it is not of the kind of the others.
        """
        x, mask = batch
        if x.dtype != self.dtype:
            raise TypeError(
                f"x: expected {self.dtype}, as other items of the Dataset are, got {x.dtype} at row "
                f"{rows[0]}"
            )
        return x.pin_memory(), None if mask is None else mask.pin_memory()

    def take(self, batch: Batch) -> None:
        """Copies a `prepared` batch; what this thread asks of the device from then on finds it there."""
        current = torch.cuda.current_stream(self.device)
        self._asked[self.place].record(current)
        self.place = (self.place + 1) % _PLACES
        self._copies.wait_event(self._asked[self.place])
        with torch.cuda.stream(self._copies):
            for own, part in zip(self.tables, batch, strict=True):
                if own is not None and part is not None:
                    own[: len(part)].copy_(part, non_blocking=True)
        current.wait_stream(self._copies)


def _room(like: Tensor, size: int, device: torch.device) -> Tensor:
    return torch.empty((size, *like.shape[1:]), dtype=like.dtype, device=device)
