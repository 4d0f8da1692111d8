"""Copies between the host and a device, on a stream of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Mover:
    """Copies between the host and a device, in parts of some sizes; all that is CUDA's own is here.

    Memory that is not pinned is copied through buffers that are: a GPU reads nothing else by itself.

    Args:
        device: where to.
        like: the largest part of each table on the host.
    """

    def __init__(self, device: torch.device, like: list[Tensor]) -> None:
        self.stream: torch.cuda.Stream | None = None
        self._buffers: list[Tensor] = []
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self._buffers = [torch.empty_like(part, pin_memory=True) for part in like]

    def mark(self) -> torch.cuda.Event | None:
        """What has been asked of the device so far, by this thread."""
        return (
            None
            if self.stream is None
            else torch.cuda.current_stream(self.stream.device).record_event()
        )

    @contextmanager
    def at_work(self, mark: torch.cuda.Event | None = None) -> Iterator[None]:
        """Within it, copies on the stream of this mover, after `mark`; waits for them at the end."""
        if self.stream is None:
            yield
            return
        if mark is not None:
            self.stream.wait_event(mark)
        with torch.cuda.stream(self.stream):
            yield
        self.stream.synchronize()

    def to_device(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Copies each (part on the host, part on the device)."""
        for number, (source, target) in enumerate(pairs):
            if self._buffers:
                source = self._buffers[number][: len(source)].copy_(source)
            # what is not pinned may change under a copy that is not waited for
            target.copy_(source, non_blocking=self.stream is not None)

    def to_host(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Copies each (part on the device, part on the host)."""
        if self.stream is None:
            for source, target in pairs:
                target.copy_(source)
            return
        buffers = [
            own[: len(source)] for own, (source, _) in zip(self._buffers, pairs, strict=True)
        ]
        for own, (source, _) in zip(buffers, pairs, strict=True):
            own.copy_(source, non_blocking=True)
        self.stream.synchronize()
        for own, (_, target) in zip(buffers, pairs, strict=True):
            target.copy_(own)
