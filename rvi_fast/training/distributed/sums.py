"""Sums of gradients over processes, one in each step: on one machine, in memory that they share."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from .launch import begin_total, exchange, gathered, patience

# what a process sends to another when its part of a sum is there
_THERE = b"."


class Sums:
    """Those of the process group: by NCCL on GPUs, by gloo on CPUs."""

    def begin(self, values: Tensor) -> Callable[[], None]:
        """Begins to add up a vector over all processes, in place; what is returned waits for it."""
        return begin_total(values)

    def close(self) -> None:
        """Nothing is summed any more."""


class SharedMemory(Sums):
    """Sums of processes on the CPUs of one machine, in memory that all of them map.

    Each puts its part there, tells the others, and adds up all parts, in the order of the processes:
    all have the same bits. For 0.3 MB gloo, with TCP, threads of its own and more messages, takes as
    long as a step of a few hundred rows.

    Args:
        like: what is summed [P].
        memory: descriptor of a file of `bytes_for(like)` bytes in memory.
        others: a connection to each of the other processes. One that ends closes them, which is how the
            others notice.
    """

    def __init__(self, like: Tensor, memory: int, others: dict[int, socket.socket]) -> None:
        mapped = torch.frombuffer(mmap.mmap(memory, bytes_for(like)), dtype=like.dtype)
        # two, in turn: who has come to the next sum has read this one, and perhaps nobody else has
        turns = mapped.view(2, dist.get_world_size(), len(like)).unbind()
        self._turns = [list(parts.unbind()) for parts in turns]
        self._own, self._others = dist.get_rank(), dict(sorted(others.items()))

    def begin(self, values: Tensor) -> Callable[[], None]:
        self._turns.reverse()
        parts = self._turns[0]
        parts[self._own].copy_(values)
        with exchange():
            for rank, other in self._others.items():
                with _heard(f"process {rank}"):
                    other.sendall(_THERE)

        def wait() -> None:
            with exchange():
                for rank, other in self._others.items():
                    with _heard(f"process {rank}"):
                        _some(other.recv(len(_THERE)))
            values.copy_(parts[0])
            for part in parts[1:]:
                values.add_(part)

        return wait

    def close(self) -> None:
        for other in self._others.values():
            other.close()
        self._turns.clear()


def sums_over(like: Tensor) -> Sums:
    """What sums vectors such as `like` [P] over all processes, which make it together.

    On the CPUs of one machine that is `SharedMemory`, elsewhere the process group: on GPUs, on several
    machines, and wherever processes do not reach each other (in containers, on systems that are not
    Linux).

    Raises:
        RankError: one of the others is lost.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if like.device.type != "cpu" or size == 1 or not len(like):
        return Sums()
    others = dict[int, socket.socket]()
    with contextlib.ExitStack() as passing, contextlib.ExitStack() as connected:
        try:
            # of each its own: nobody but this user gets in
            folder = passing.enter_context(tempfile.TemporaryDirectory(prefix="rvi_fast."))
            door = passing.enter_context(socket.socket(socket.AF_UNIX))
            door.bind(path := os.path.join(folder, "door"))
            door.listen(size)
            door.settimeout(patience())
            if rank == 0:
                memory = os.memfd_create("rvi_fast")
                passing.callback(os.close, memory)
                os.posix_fallocate(memory, 0, bytes_for(like))
        except (OSError, AttributeError):
            path = ""
        paths = gathered(path)
        reached = all(paths)
        try:
            for other in range(rank) if reached else ():
                others[other] = connected.enter_context(socket.socket(socket.AF_UNIX))
                others[other].settimeout(patience())
                others[other].connect(paths[other])
        except OSError:
            reached = False
        if not all(gathered(reached)):
            return Sums()
        with exchange(), _heard("a process that begins to sum"):
            for other in range(rank):
                others[other].sendall(rank.to_bytes(4))
            for _ in range(rank + 1, size):
                connection = connected.enter_context(door.accept()[0])
                connection.settimeout(patience())
                others[int.from_bytes(_some(connection.recv(4)))] = connection
                if rank == 0:
                    socket.send_fds(connection, [_THERE], [memory])
            if rank > 0:
                said, passed, *_ = socket.recv_fds(others[0], len(_THERE), 1)
                _some(said)
                memory = passed[0]
                passing.callback(os.close, memory)
        sums = SharedMemory(like, memory, others)
        connected.pop_all()
        return sums


def bytes_for(like: Tensor) -> int:
    """Of memory in which all processes sum vectors such as `like`."""
    return 2 * dist.get_world_size() * like.nbytes


def _some(said: bytes) -> bytes:
    """What a process has said, which is nothing where it has closed its connection."""
    if not said:
        raise ConnectionError("has ended")
    return said


@contextlib.contextmanager
def _heard(other: str) -> Iterator[None]:
    """What another process sends, or is sent."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"{other}: {error}") from error
