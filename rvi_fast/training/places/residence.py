"""Which blocks of a table are in memory: the next are made ready while steps work on those before.

While the steps work on one window of an epoch the next is made ready and the one before is put away,
on a thread of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .order import EpochOrder


class Residence:
    """Which windows of an epoch are in memory.

    Args:
        order: the epoch.
        enter: makes rows [start, stop) ready; called for each block before its first step.
        leave: puts them away; called after the last, with what `mark` has returned.
        mark: called after the last step that reaches into a window, on the thread of the steps, which
            on a GPU has only been asked for by then.
        begin: called once on the thread of the first two.

    The first two run on one thread, in turn; their errors are raised by `before` and `close`.
    """

    def __init__(
        self,
        order: EpochOrder,
        enter: Callable[[int, int], None],
        leave: Callable[[int, int, Any], None],
        mark: Callable[[], Any] = lambda: None,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.order = order
        self._enter, self._leave, self._mark = enter, leave, mark
        self._thread = ThreadPoolExecutor(1, "rvi_fast moves blocks", begin)
        self._entering: list[Future[None]] = []
        self._leaving: list[Future[None]] = []
        self._entered = self._left = 0
        self._prepare()

    def before(self, window: int) -> None:
        """To be called before a step that reaches into this window."""
        while self._entered <= window:
            self._entering[self._entered].result()
            self._entered += 1
            # no more than two windows wait to be put away
            for future in self._leaving[: self._left - 1]:
                future.result()
            self._prepare()

    def after(self, window: int) -> None:
        """To be called after it: no step will reach into the windows before this one."""
        mark = self._mark() if self._left < window else None
        while self._left < window:
            self._leaving.append(self._submit(self._leave, self._left, mark))
            self._left += 1

    def close(self) -> None:
        """Puts away what is left, and waits."""
        try:
            self.after(self._entered)
            for future in self._leaving:
                future.result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def abandon(self) -> None:
        """After an exception: waits for what is under way and leaves the rest."""
        self._thread.shutdown(cancel_futures=True)

    def _prepare(self) -> None:
        if len(self._entering) < len(self.order.windows):
            self._entering.append(self._submit(self._enter, len(self._entering)))

    def _submit(self, action: Callable[..., None], window: int, *others: Any) -> Future[None]:
        def act() -> None:
            for ends in self.order.ranges(window):
                action(*ends, *others)

        return self._thread.submit(act)
