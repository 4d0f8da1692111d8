"""Processes that train together: how they meet, exchange and part."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout

from ... import _checks
from ...posteriors.relay import RelayPosterior

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")

# seconds between two looks at a GPU that is waited for
_POLL = 1e-4

# how long an exchange may take, where `init` was told
_timeout: timedelta | None = None
# the thread that called `init`
_thread: int | None = None


class RankError(RuntimeError):
    """Another process has failed, has died, or has not answered in time."""


def init(*, timeout: float = 60.0, device: torch.device | str | None = None) -> torch.device:
    """Joins the processes that `torchrun` has started, and seeds torch in all of them as in the first.

    Args:
        timeout: seconds that an exchange may take. What one process does while the others wait (a
            callback, a checkpoint of more rows) must not take longer.
        device: "cpu" or "cuda"; CUDA where there is some if not given.

    Returns:
        The device of this process, with CUDA that of its local rank.

    Raises:
        ValueError: `torchrun` has not started this process, or it has joined already.
        RankError: the others did not come in time.
    """
    global _timeout, _thread
    _checks.check_positive_float("timeout", timeout)
    if not launched():
        missing = [name for name in _TORCHRUN if name not in os.environ]
        raise ValueError(
            f"init: expected to be started by torchrun, which sets {', '.join(missing)}"
        )
    if joined():
        raise ValueError("init: expected no process group, this process is in one already")
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if kind.type == "cuda" and kind.index is None:
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if kind.type == "cuda":
        torch.cuda.set_device(kind)
    # its functions have the group of their first import as a default, and would keep it, with threads
    # that abort a process on its way out, after leave()
    importlib.import_module("torch.distributed.nn.functional")
    backend = "cpu:gloo,cuda:nccl" if kind.type == "cuda" else "gloo"
    with exchange():
        _timeout, _thread = timedelta(seconds=timeout), threading.get_ident()
        own = kind if kind.type == "cuda" else None
        dist.init_process_group(backend, timeout=_timeout, device_id=own)
        seed = [torch.initial_seed()]
        dist.broadcast_object_list(seed, src=0)
    torch.manual_seed(seed[0])
    return kind


def launched() -> bool:
    """Whether `torchrun` has started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def leave() -> None:
    """Waits for the others, and ends what `init` has begun."""
    total(torch.zeros(1, device="cpu"))
    dist.destroy_process_group()


def first(action: Callable[[], T]) -> T:
    """What the first process finds, which alone acts; without a process group it is this one.

    Raises what the action raises, and `RankError` in the others then.
    """
    if not joined():
        return action()
    answer: list[Any] = [None, None]
    raised: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            answer[0] = action()
        except BaseException as error:
            answer[1], raised = f"{type(error).__name__}: {error}", error
    try:
        with exchange():
            dist.broadcast_object_list(answer, src=0)
    finally:
        if raised is not None:  # also where nobody is left to be told
            raise raised
    if answer[1] is not None:
        raise RankError(f"the first process has failed: {answer[1]}")
    return answer[0]


def total(values: Tensor) -> Tensor:
    """The sum over all processes, in place; without a process group that of this one."""
    if joined():
        with exchange():
            dist.all_reduce(values)
    return values


def gathered(value: T) -> list[T]:
    """The values of all processes, in each of them."""
    values: list[Any] = [None] * dist.get_world_size()
    with exchange():
        dist.all_gather_object(values, value)
    return values


def patience() -> float:
    """How many seconds an exchange may take."""
    return (_timeout or default_pg_timeout).total_seconds()


def begin_total(values: Tensor) -> Callable[[], None]:
    """Begins what `total` does in a process group; what is returned waits for it."""
    with exchange():
        work = dist.all_reduce(values, async_op=True)

    def wait() -> None:
        with exchange():
            work.wait()

    return wait


def done_in_time(device: torch.device) -> None:
    """Waits for what a GPU has been asked, as long as an exchange may take; on the CPU nothing is left.

    A kernel that waits for a process that has died waits for ever and says nothing, and of exchanges
    within CUDA graphs NCCL has nobody who watches them.

    Raises:
        RankError: it took longer.
    """
    if device.type != "cuda" or _timeout is None:
        return
    mark = torch.cuda.current_stream(device).record_event()
    end = time.monotonic() + _timeout.total_seconds()
    with exchange():
        while not mark.query():
            if time.monotonic() > end:
                raise RuntimeError(f"{device} has not finished in {_timeout.total_seconds():g} s")
            time.sleep(_POLL)


def joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def another_group() -> dist.ProcessGroup:
    """A second group of all processes, on the host, for exchanges in another thread.

    To be called by all of them. Exchanges of the default group do not wait for those of this one.
    """
    with exchange():
        return dist.new_group(backend="gloo", timeout=_timeout)


def rows_of_rank(num_data: int, *, rank: int | None = None, size: int | None = None) -> range:
    """The rows that a process owns: N // W of them, one more in the first N % W processes.

    Args:
        num_data: N.
        rank: the process; this one if not given.
        size: W; those of the process group if not given.

    Example:
        >>> [len(rows_of_rank(10, rank=rank, size=4)) for rank in range(4)]
        [3, 3, 2, 2]
    """
    _checks.check_positive_int("num_data", num_data)
    if (rank is None or size is None) and not joined():
        raise ValueError("rank, size: expected numbers before init() is called, got None")
    rank = dist.get_rank() if rank is None else rank
    size = dist.get_world_size() if size is None else size
    if num_data < size:
        raise ValueError(f"num_data: expected a row for each of {size} processes, got {num_data}")
    share, more = divmod(num_data, size)
    start = rank * share + min(rank, more)
    return range(start, start + share + (rank < more))


def leave_rows(module: nn.Module) -> None:
    """Tells `DistributedDataParallel(module)` to leave out the rows of every posterior in the module.

    To be called before it is wrapped. Relays, decoder and scale are synchronised as ever.
    """
    rows = [
        f"{name}.rows" if name else "rows"
        for name, part in module.named_modules()
        if isinstance(part, RelayPosterior)
    ]
    ignore = nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(module, rows)


def _abandon() -> None:
    """Ends the exchanges that a GPU is at work on: it would wait for a lost process for ever.

    In a thread of its own, since NCCL does not return before CUDA graphs that hold them are gone; what
    waits for the GPU goes on at once. Not from another thread than that of `init`, which may wait for
    others while the GPU does well.
    """
    group = dist.group.WORLD if joined() else None
    if group is None or _thread != threading.get_ident() or not torch.cuda.is_initialized():
        return
    with suppress(RuntimeError):  # there is none for GPUs
        backend: Any = group._get_backend(torch.device("cuda"))
        threading.Thread(target=backend.abort, name="rvi_fast gives up", daemon=True).start()


@contextmanager
def exchange() -> Iterator[None]:
    """What the other processes have to answer in time."""
    try:
        yield
    except (RankError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise  # a graph cannot hold it
        _abandon()
        rank = dist.get_rank() if dist.is_initialized() else os.environ.get("RANK")
        raise RankError(
            f"process {rank} has lost another one, which has died or has not answered in time; start "
            f"all of them again with resume=True (--resume) to go on from the last checkpoint: {error}"
        ) from error
