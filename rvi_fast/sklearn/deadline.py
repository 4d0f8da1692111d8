"""How long a `fit` may take."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import Any, Self

from sklearn.exceptions import ConvergenceWarning

# what deadlines go by: it never goes backwards
clock = time.monotonic


def now() -> float:
    """Seconds on `clock`, of which only differences mean something."""
    return clock()


class OutOfTime(Exception):
    """Work was given up because its deadline had passed."""


class Deadline:
    """A moment after which no further work is begun.

    Args:
        seconds: from now; None for no deadline.

    Attributes:
        end: on `clock`, infinity where there is no deadline.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.end = math.inf if seconds is None else now() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, below 0 where it has passed."""
        return self.end - now()

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return self.left <= 0.0

    def part(self, share: float, without: float = 0.0) -> Self:
        """The moment at which that share of the time that is left, less some seconds, is over."""
        return type(self)(None if math.isinf(self.end) else share * (self.left - without))

    def check(self, needed: float = 0.0) -> None:
        """Raises `OutOfTime` where it has passed, or will have before so many seconds are over."""
        if self.left <= needed:
            raise OutOfTime

    def __call__(self, model: Any, history: Any) -> bool:
        """As a callback of `rvi_fast.fit`: ends the training after the epoch in which it passes."""
        return self.over


def warn_of_time(seconds: float | None, notes: Sequence[str]) -> None:
    """Warns that `max_time` was over before all was done, and says what was not."""
    warnings.warn(
        f"max_time: {seconds:g} s were over before all was trained: {'; '.join(notes)}",
        ConvergenceWarning,
        stacklevel=3,
    )
