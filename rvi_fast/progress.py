"""Progress of long work: a bar in a terminal or a notebook, a line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import threading
from typing import IO, Any

# what happens on the way, at INFO and DEBUG; a program that wants to see it configures logging
logger = logging.getLogger("rvi_fast")
logger.addHandler(logging.NullHandler())

# seconds between the lines of a log file
EVERY = 30.0
_LINE = (
    "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
)


def progress_bar(
    total: int, *, unit: str, initial: int = 0, shown: bool = True, description: str | None = None
) -> Any:
    """A tqdm bar over `total` pieces of work, in the form that suits where it is seen.

    In a terminal it is tqdm's own, in a notebook its widget. Where stderr is neither (a file, a pipe) a
    bar would fill it with what overwrites itself on a screen: there it is one line at the beginning, one
    every 30 seconds and one at the end. The lines go to the logger "rvi_fast" where that takes INFO, and
    to stderr else.

    Args:
        total: pieces of work.
        unit: what one of them is called.
        initial: those that were done before.
        shown: false for a bar that is never seen.
        description: what the work is.
    """
    options: dict[str, Any] = {"total": total, "initial": initial, "unit": unit}
    options["desc"] = description
    if not shown:
        from tqdm import tqdm

        return tqdm(disable=True, **options)
    if _seen():
        from tqdm.auto import tqdm as bar

        return bar(**options)
    from tqdm import tqdm

    every = {"mininterval": EVERY, "maxinterval": EVERY, "miniters": 1}
    options["desc"] = description or "progress"
    return tqdm(file=_Lines(), bar_format=_LINE, ncols=0, **every, **options)


def keep_lock_here() -> None:
    """Bars of this process share no lock with others: a process that is killed would leave it behind."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _seen() -> bool:
    """Whether a person watches: in a terminal or in a notebook."""
    if hasattr(sys.modules.get("IPython"), "get_ipython") and "ipykernel" in sys.modules:
        return True
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


class _Lines:
    """A file that makes of what overwrites itself lines below each other."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line and line != self._last:
            self._last = line
            if logger.isEnabledFor(logging.INFO) and _listened():
                logger.info("%s", line)
            else:
                stream: IO[str] = sys.stderr
                stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _listened() -> bool:
    """Whether anything but the handler that does nothing gets what the logger is told."""
    if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        return True
    return bool(logger.propagate and logger.root.handlers)
