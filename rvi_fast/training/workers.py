"""Processes side by side: each does one task after the other, and one that dies is replaced.

Ctrl-C reaches all processes of a terminal; here the parent alone hears it, and tells the others by
SIGTERM, which `fit` takes as the wish to end with a checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..progress import keep_lock_here
from .loop.interrupts import Request, deferred, raised

# tells the parent something while a task is at work
Say = Callable[[Any], None]
# a task and `Say` -> its result; a function of a module, or a `functools.partial` of one
Work = Callable[[Any, Say], Any]

_SPAWN = multiprocessing.get_context("spawn")
# seconds between two looks whether a signal has come
_POLL = 0.1
_GUARD = (
    "; it had not begun: a script that starts processes needs `if __name__ == '__main__':` around what "
    "it does"
)


@dataclass(frozen=True)
class Ended:
    """How a task has ended: with what its work returned, or with what that raised."""

    result: Any = None
    error: BaseException | None = None


class ProcessDied(RuntimeError):
    """A process has died over its task, or before it: then the next one would too."""

    begun = True


def available_cpus() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    work: Work,
    tasks: Iterable[Any],
    jobs: int,
    request: Request,
    hear: Callable[[int, Any], object] = lambda number, said: None,
) -> Generator[tuple[int, Ended], None, None]:
    """Does tasks in processes where torch has one thread, `jobs` at a time; none outlives the iteration.

    What of torch's settings decides about the bits of a result is there as it is here.

    Args:
        work: does one of them.
        tasks: what can be pickled, asked for one by one as processes are free.
        jobs: how many processes.
        request: once it asks for the end no task is begun, and those at work get SIGTERM.
        hear: called with the number of a task and what it says.

    Yields:
        Number of a task and how it ended, as they end. The error of one that a signal has ended is a
        KeyboardInterrupt, that of one whose process has died a `ProcessDied`.
    """
    waiting, told = enumerate(tasks), False
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(work)) for _ in range(jobs)]
        while True:
            if request.signum is None:
                for worker in workers:
                    if not worker.busy and (task := next(waiting, None)) is not None:
                        worker.start(*task)
            elif not told:
                told = True
                for worker in workers:
                    worker.tell()
            busy = [worker for worker in workers if worker.busy]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], _POLL)
            for worker in busy:
                if worker.connection in ready:
                    number = worker.number
                    kind, value = worker.hear()
                    if kind == "said":
                        hear(number, value)
                    elif kind == "ended":
                        yield number, value


class _Worker:
    """A process that does one task after the other; one that dies is replaced."""

    def __init__(self, work: Work) -> None:
        self.work, self.number, self.busy, self._began = work, -1, False, False
        self.numerics = _numerics()
        self.process, self.connection = self._spawn()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        # an idle one would end by itself, but takes its time
        self.process.kill()
        self.process.join()
        self.connection.close()

    def start(self, number: int, task: Any) -> None:
        self.number, self.busy = number, True
        if not self.process.is_alive():
            self.connection.close()
            self.process, self.connection = self._spawn()
        content = ForkingPickler.dumps(task)
        with contextlib.suppress(ConnectionError):  # it has died: there will be nothing to hear
            self.connection.send_bytes(content)

    def tell(self) -> None:
        """Asks for the end of the task at hand."""
        if self.busy:
            self.process.terminate()

    def hear(self) -> tuple[str, Any]:
        """What it has to say next: that it has begun, what its task says, or how that ended."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            text = f"the process died, exit code {self.process.exitcode}"
            error = ProcessDied(text if self._began else text + _GUARD)
            error.begun = self._began
            kind, value = "ended", Ended(error=error)
        self._began = True
        self.busy = kind != "ended"
        return kind, value

    def _spawn(self) -> tuple[Any, Connection]:
        self._began = False
        own, other = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(self.work, self.numerics, other), daemon=True)
        with _without_sigint():
            process.start()
        other.close()  # or the death of the process would not end the pipe
        return process, own


@contextlib.contextmanager
def _without_sigint() -> Iterator[None]:
    """Within it Ctrl-C waits, in this thread and in what it starts, which inherits that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # or the first process would start it, which lets the signal through again
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Work, numerics: dict[str, Any], connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _take_numerics(numerics)
    keep_lock_here()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    answer: tuple[str, Any] = ("began", None)
    with raised():
        while True:
            try:
                with (
                    deferred()
                ):  # a signal comes too late for the last task, too early for the next
                    connection.send(answer)
                    content = connection.recv_bytes()
            except (EOFError, ConnectionError):
                return
            try:
                result = work(pickle.loads(content), lambda said: connection.send(("said", said)))
                answer = ("ended", Ended(result))
            except BaseException as error:
                answer = ("ended", Ended(error=portable(error)))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a task without its parent would hold its directory against the next one


def _numerics() -> dict[str, Any]:
    """What of this process, beside the arguments, decides about the bits of a result."""
    return {
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
    }


def _take_numerics(held: dict[str, Any]) -> None:
    torch.set_default_dtype(held["dtype"])
    torch.set_float32_matmul_precision(held["precision"])
    torch.use_deterministic_algorithms(held["deterministic"], warn_only=held["warns"])
    torch.set_autocast_enabled("cpu", held["autocast"])
    torch.set_autocast_dtype("cpu", held["autocast dtype"])


def check_picklable(parts: Mapping[str, Any]) -> None:
    """Refuses what another process cannot be given; tensors and arrays are not looked at.

    Raises:
        TypeError: names the part.
    """
    for name, part in parts.items():
        try:
            _Trial(io.BytesIO()).dump(part)
        except Exception as error:
            raise TypeError(
                f"{name}: expected what other processes can be given (see the pickle module), got "
                f"{type(part).__name__}: {error}; jobs=1 does all in this process"
            ) from error


class _Trial(pickle.Pickler):
    """Finds out whether something can be pickled, without writing its numbers."""

    def persistent_id(self, value: Any) -> str | None:
        return "numbers" if isinstance(value, Tensor | np.ndarray) else None

    def reducer_override(self, value: Any) -> Any:
        main = sys.modules["__main__"]
        seen = getattr(main, "__file__", None) or getattr(main, "__spec__", None)
        named = isinstance(value, type | FunctionType) and value.__module__ == "__main__"
        if named and not seen:
            raise pickle.PicklingError(
                f"{value.__qualname__} is of this session, other processes know what modules define"
            )
        return NotImplemented


def portable(error: BaseException) -> BaseException:
    """An error as another process can be told of it, where it was raised in a note."""
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(str(error))
    other = error
    if not isinstance(error, Exception) or not _survives(error):
        other = RuntimeError(f"{type(error).__name__}: {error}")
    text = "".join(traceback.format_exception(error)).rstrip()
    other.__notes__ = [*getattr(error, "__notes__", ()), text]
    return other


def _survives(error: Exception) -> bool:
    try:
        copied = pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return type(copied) is type(error) and str(copied) == str(error)
