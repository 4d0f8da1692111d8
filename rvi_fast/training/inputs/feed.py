"""Batches of data that are not in memory, read ahead of the steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor

from ..._devices import in_line
from ...likelihoods.base import Likelihood
from ...scaler import Scaler
from .sources import Batch, Source, convert, fingerprint_of

# batches that wait for the step
AHEAD = 4
_POLL = 0.05  # seconds


class Visit(NamedTuple):
    """A batch to come: row numbers [B], and up to which of the epoch's windows they reach."""

    rows: Tensor
    window: int


class HostInputs:
    """What `Inputs` is for data in memory; each batch is read, checked and converted by itself.

    Within `feed` one thread reads ahead of the steps. Its errors are raised where the batch is asked
    for, and it ends with the block.
    """

    def __init__(
        self,
        source: Source,
        device: torch.device,
        dtype: torch.dtype,
        scaler: Scaler | None = None,
        law: Likelihood | None = None,
    ) -> None:
        self.source, self.device, self.dtype, self.law = source, device, dtype, law
        # batches are converted where they are read
        self.scaler = None if scaler is None else scaler.copy()
        self._ready: tuple[Tensor, Batch] | None = None

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.source)

    def batch(self, index: Tensor) -> Batch:
        """x and mask of rows `index`."""
        ready = self._ready
        return ready[1] if ready is not None and ready[0] is index else self._read(index)

    def fingerprint(self) -> str:
        """SHA-256 that tells two data sets apart."""
        return fingerprint_of(self.kind, self.num_data, self.digest(0, self.num_data))

    @property
    def kind(self) -> str:
        """What all rows have in common."""
        return self.source.kind(self.dtype)

    def digest(self, first_row: int, num_data: int) -> int:
        """See `Inputs.digest`."""
        return self.source.digest(self.dtype, first_row, num_data, self.scaler)

    def prefetch(self, start: int, stop: int) -> None:
        """Rows [start, stop) will be needed soon."""
        self.source.prefetch(start, stop)

    def release(self, start: int, stop: int) -> None:
        """Rows [start, stop) are not needed for a while."""
        self.source.release(start, stop)

    @contextmanager
    def feed(self, visits: Iterable[Visit]) -> Iterator[Iterator[Visit]]:
        """Within it `batch` finds what it needs read already."""
        waiting: queue.Queue[tuple[Visit, Batch] | BaseException | None]
        waiting, ended = queue.Queue(AHEAD), threading.Event()

        def put(entry: tuple[Visit, Batch] | BaseException | None) -> None:
            while not ended.is_set():
                with suppress(queue.Full):
                    waiting.put(entry, timeout=_POLL)
                    return

        begin = in_line(self.device)

        def read() -> None:
            try:
                begin()
                for visit in visits:
                    if ended.is_set():
                        return
                    put((visit, self._read(visit.rows)))
                put(None)
            except BaseException as error:
                put(error)

        def served() -> Iterator[Visit]:
            while (entry := waiting.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                self._ready = (entry[0].rows, entry[1])
                yield entry[0]

        thread = threading.Thread(target=read, name="rvi_fast reads ahead", daemon=True)
        thread.start()
        try:
            yield served()
        finally:
            ended.set()
            thread.join()
            self._ready = None

    def _read(self, index: Tensor) -> Batch:
        rows = index.cpu().numpy()
        x, mask = convert(*self.source.read(rows), self.dtype, rows, self.scaler, self.law)
        return x.to(self.device), None if mask is None else mask.to(self.device)
