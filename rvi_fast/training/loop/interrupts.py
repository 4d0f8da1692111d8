"""Signals that end a run after the step at hand, so that it can leave a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# those that ask a process to end: Ctrl-C, `kill` and what a cluster sends, a terminal that has gone
_ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupted(KeyboardInterrupt):
    """A signal has ended a run; `signum` says which, the message how to go on."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def status(self) -> int:
        """What a shell expects of a process that this signal has ended."""
        return 128 + self.signum


class Request:
    """Whether a signal has asked for the end."""

    signum: int | None = None


def _raise(signum: int, frame: Any) -> None:
    raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}")


@contextmanager
def raised() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise `Interrupted`, as Ctrl-C raises KeyboardInterrupt.

    Signals that are ignored (`nohup`) or that the program handles itself stay as they are.
    """
    with _handled(_raise, (signal.SIG_DFL,)):
        yield


@contextmanager
def deferred(*, ending: bool = False) -> Iterator[Request]:
    """Within it the first signal that would raise is noted instead; the second raises.

    Only in the main thread, where signals arrive, and only where they would raise: a program that
    handles them itself goes on to do so.

    Args:
        ending: the first signal that would end the process is noted too; the second ends it.
    """
    request = Request()

    def note(signum: int, frame: Any) -> None:
        request.signum = signum
        restore()

    instead_of = (signal.default_int_handler, _raise, *([signal.SIG_DFL] if ending else []))
    with _handled(note, instead_of) as restore:
        yield request


@contextmanager
def _handled(handler: Any, instead_of: tuple[Any, ...]) -> Iterator[Any]:
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    if threading.current_thread() is threading.main_thread():
        for signum in _ENDING:
            if signal.getsignal(signum) in instead_of:
                before[signum] = signal.signal(signum, handler)
    try:
        yield restore
    finally:
        restore()
