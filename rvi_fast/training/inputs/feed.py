"""Batches of data that are not in memory, read ahead of the steps."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._devices import in_line
from ...likelihoods.base import Likelihood
from ...scaler import Scaler
from .landing import Landing, lands_on
from .sources import Batch, Source, convert, fingerprint_of

# batches that wait for the step
AHEAD = 4
# batches whose row numbers go to the host together
_TOGETHER = 64
_POLL = 0.05  # seconds


class Visit(NamedTuple):
    """A batch to come.

    Attributes:
        rows: their numbers [B]; of several processes each has its own.
        window: up to which of the epoch's windows they reach.
        room: rows that each of several processes makes room for, so that all launch a step alike; 0
            where one process trains alone.
    """

    rows: Tensor
    window: int
    room: int = 0


class HostInputs:
    """What `Inputs` is for data in memory; each batch is read, checked and converted by itself.

    Within `feed` one thread reads ahead of the steps. Its errors are raised where the batch is loaded,
    and it ends with the block. On a GPU batches get to a `Landing`.
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
        self._landing: Landing | None = None
        self._loaded: Batch | None = None
        # row numbers of visits that are being read, and what comes of them
        self._given: deque[Tensor] = deque()
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue()

    @property
    def num_data(self) -> int:
        """N."""
        return len(self.source)

    def batch(self, index: Tensor) -> Batch:
        """x and mask of rows `index`, read now."""
        x, mask = self._read(index.cpu().numpy())
        return x.to(self.device), None if mask is None else mask.to(self.device)

    def reserve(self, batch_size: int) -> None:
        """Makes room for batches of up to so many rows, where steps find them at fixed addresses."""
        if lands_on(self.device):
            self._landing = Landing(self.device, batch_size, self._read(np.arange(1)))

    @property
    def tables(self) -> Batch | None:
        """See `Inputs.tables`."""
        return None if self._landing is None else self._landing.tables

    @property
    def place(self) -> int:
        """See `Inputs.place`."""
        return 0 if self._landing is None else self._landing.place

    def load(self, index: Tensor) -> None:
        """See `Inputs.load`; within `feed` the batch has been read already, or is waited for."""
        if self._given and self._given[0] is index:
            self._given.popleft()
            batch = self._ready.get()
            if isinstance(batch, BaseException):
                raise batch
        else:
            batch = self._prepared(index.cpu().numpy())
        if self._landing is None:
            self._loaded = batch
        else:
            self._landing.take(batch)

    def loaded(self, index: Tensor) -> Batch:
        """See `Inputs.loaded`."""
        if self._landing is None:
            assert self._loaded is not None
            return self._loaded
        x, mask = self._landing.tables
        return x[: len(index)], None if mask is None else mask[: len(index)]

    def located(self, index: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """See `Inputs.located`."""
        assert self._landing is not None
        return *self._landing.tables, self._landing.rows[: len(index)]

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
        """Within it `load` finds what it needs read already, if asked in this order."""
        asked: queue.SimpleQueue[_Numbers | None] = queue.SimpleQueue()
        ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        ended, begin = threading.Event(), in_line(self.device)

        def put(entry: Batch | BaseException) -> None:
            while not ended.is_set():
                with suppress(queue.Full):
                    ready.put(entry, timeout=_POLL)
                    return

        def read() -> None:
            try:
                begin()
                while (numbers := asked.get()) is not None:
                    for rows in numbers.get():
                        if ended.is_set():
                            return
                        put(self._prepared(rows))
            except BaseException as error:
                put(error)

        def ask(visits: Iterator[Visit]) -> list[Visit]:
            group = list(islice(visits, _TOGETHER))
            if group:
                asked.put(_Numbers(group, self.device))
            return group

        def served() -> Iterator[Visit]:
            waiting = iter(visits)
            group = ask(waiting)
            while group:
                # before these are used up, so that the reader need not stop
                following = ask(waiting)
                for visit in group:
                    self._given.append(visit.rows)
                    yield visit
                group = following

        self._ready = ready
        thread = threading.Thread(target=read, name="rvi_fast reads ahead", daemon=True)
        thread.start()
        try:
            yield served()
        finally:
            ended.set()
            asked.put(None)
            thread.join()
            self._given.clear()
            self._loaded = None

    def _read(self, rows: np.ndarray) -> Batch:
        """Some rows, on the host."""
        return convert(*self.source.read(rows), self.dtype, rows, self.scaler, self.law)

    def _prepared(self, rows: np.ndarray) -> Batch:
        """Some rows as `load` takes them: on their way to the device, or there."""
        batch = self._read(rows)
        if self._landing is not None:
            return self._landing.prepared(batch, rows)
        x, mask = batch
        return x.to(self.device), None if mask is None else mask.to(self.device)


class _Numbers:
    """Row numbers of some visits, on their way to the host: nobody waits but who reads the rows."""

    def __init__(self, visits: list[Visit], device: torch.device) -> None:
        self._sizes = [len(visit.rows) for visit in visits]
        beside = lands_on(device)
        self._rows = torch.cat([visit.rows for visit in visits]).to("cpu", non_blocking=beside)
        self._mark = torch.cuda.current_stream(device).record_event() if beside else None

    def get(self) -> list[np.ndarray]:
        if self._mark is not None:
            self._mark.synchronize()
        return np.split(self._rows.numpy(), np.cumsum(self._sizes)[:-1])
