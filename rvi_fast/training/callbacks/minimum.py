"""Where a quantity of a history was least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from ..loop.history import History

Quantity = Literal["loss", "elastic", "held_out"]


def check_quantity(name: str, value: Any) -> Quantity:
    """Refuses what a history has no errors of."""
    if value not in get_args(Quantity):
        raise ValueError(f"{name}: expected one of {', '.join(get_args(Quantity))}, got {value!r}")
    return value


class Minimum(NamedTuple):
    """The least value of a quantity so far, and how many values there were since."""

    value: float
    since: int

    @classmethod
    def of(cls, values: Sequence[float], min_delta: float = 0.0) -> Minimum:
        """A value counts where it lies below the one before by more than `min_delta`; NaN never does."""
        best, since = float("inf"), 0
        for value in values:
            best, since = (value, 0) if value < best - min_delta else (best, since + 1)
        return cls(best, since)


def values_of(history: History, quantity: Quantity) -> list[float]:
    """All values of a quantity.

    Raises:
        ValueError: entries were to be held out, and `fit` was not told so.
    """
    values = history.get(quantity, [])
    if quantity == "held_out" and history["evaluated"] and not values:
        raise ValueError(
            "quantity: expected fit(held_out=), a share of the observed entries, beside "
            "quantity='held_out', got none"
        )
    return values


def is_new(history: History, quantity: Quantity, min_delta: float = 0.0) -> bool:
    """Whether the epoch that is over has found a new minimum of a quantity."""
    values = values_of(history, quantity)
    evaluated = quantity == "loss" or history["evaluated"][-1:] == [history.epochs]
    return bool(evaluated and values and Minimum.of(values, min_delta).since == 0)
