"""How many threads torch's own ops use while steps are small."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

# multiply-adds of a decoder's forward below which a second thread costs more than it gives: on a busy
# machine each of some dozen parallel regions of a step spins until the other thread gets a core
_SMALL = 2**22


@contextmanager
def one_thread_where_small(decoder: nn.Module, rows: int) -> Iterator[None]:
    """Within it this thread's ops on the CPU are serial, if batches of so many rows are small work.

    OpenMP's own setting is used, which is that of the calling thread alone: `torch.set_num_threads`
    would hold for threads that others start meanwhile.
    """
    threads = torch.get_num_threads()
    work = rows * sum(parameter.numel() for parameter in decoder.parameters())
    set_threads(1 if work < _SMALL else threads)
    try:
        yield
    finally:
        set_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it ops on the CPU are serial in all libraries that torch calls, as where processes work.

    Meanwhile that holds for other threads of this process too, as far as they ask those libraries.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def set_threads(count: int) -> None:
    """Sets how many threads the ops of this thread use, where torch is built with OpenMP."""
    if count != torch.get_num_threads() and (openmp := _openmp()) is not None:
        openmp.omp_set_num_threads(count)


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP that torch is linked with."""
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            library = ctypes.CDLL(str(path))
            return library if hasattr(library, "omp_set_num_threads") else None
        except OSError:
            continue
    return None
