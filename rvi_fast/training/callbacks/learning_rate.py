"""Learning rates that change from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from ... import _checks
from ..loop.callback import Callback
from ..loop.history import History
from .minimum import Minimum, Quantity, check_quantity, values_of


class LearningRate(Callback):
    """Multiplies `lr` and `posterior_lr` of `fit` by a factor for each epoch.

    Args:
        factor: from the epoch, counted from 0, to a finite number of at least 0. A resume asks it again
            for the epochs that are over, and refuses another answer. `fit_many` pickles it.

    Example:
        >>> from rvi_fast.training.callbacks import LearningRate
        >>> warm = LearningRate.cosine(4, warmup=2)
        >>> [round(warm.factor(epoch), 3) for epoch in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """

    shared = True

    def __init__(self, factor: Callable[[int], float]) -> None:
        if not callable(factor):
            raise TypeError(f"factor: expected a function of the epoch, got {factor!r}")
        self.factor = factor
        self._epochs = 0

    @classmethod
    def cosine(cls, epochs: int, *, warmup: int = 0, last: float = 0.0) -> Self:
        """Rises in equal steps over `warmup` epochs, then falls from 1 to `last` along half a cosine.

        Args:
            epochs: of the whole training; later ones stay at `last`.
            warmup: epochs, less than `epochs`.
            last: the factor at the end.
        """
        epochs = _checks.check_positive_int("epochs", epochs)
        if _checks.check_count("warmup", warmup) >= epochs:
            raise ValueError(f"warmup: expected less than epochs={epochs}, got {warmup}")
        return cls(partial(_cosine, epochs, warmup, _checks.check_non_negative("last", last)))

    @classmethod
    def steps(cls, at: Sequence[int], *, factor: float = 0.1) -> Self:
        """Multiplies by `factor` at the beginning of each of these epochs, counted from 0."""
        epochs = tuple(_checks.check_count("at", epoch) for epoch in at)
        return cls(partial(_steps, epochs, _checks.check_positive_float("factor", factor)))

    def lr_factor(self, history: History) -> float:
        """The factor for the next epoch."""
        self._epochs = history.epochs
        return self.factor(history.epochs)

    def state_dict(self) -> dict[str, Any]:
        """The factors of all epochs up to the one at hand."""
        return {"factors": [float(self.factor(epoch)) for epoch in range(self._epochs + 1)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compares the factors.

        Raises:
            ValueError: those of the epochs that are over were others.
        """
        if "factors" not in state:
            raise ValueError("factor: expected no schedule for a run that began without one")
        for epoch, factor in enumerate(state["factors"]):
            if (own := float(self.factor(epoch))) != factor:
                raise ValueError(f"factor: expected {factor} in epoch {epoch}, got {own}")


class ReduceOnPlateau(Callback):
    """Multiplies the learning rates by `factor` when a quantity has not fallen for a while.

    Args:
        patience: values without a new minimum after which they are multiplied; then the counting begins
            anew.
        quantity: "loss", "elastic" or "held_out", as in `EarlyStopping`.
        factor: between 0 and 1.
        min_delta: by how much a value must fall below the minimum to count.
        least: the product of all factors is at least this.
    """

    shared = True

    def __init__(
        self,
        patience: int = 10,
        *,
        quantity: Quantity = "loss",
        factor: float = 0.5,
        min_delta: float = 0.0,
        least: float = 0.0,
    ) -> None:
        self.patience = _checks.check_positive_int("patience", patience)
        self.quantity = check_quantity("quantity", quantity)
        self.factor = _checks.check_between("factor", factor, 0.0, 1.0)
        self.min_delta = _checks.check_non_negative("min_delta", min_delta)
        self.least = _checks.check_between("least", least, 0.0, 1.0)

    def lr_factor(self, history: History) -> float:
        """The factor for the next epoch, from the history alone."""
        times, since, best = 0, 0, math.inf
        for value in values_of(history, self.quantity):
            found = Minimum.of((best, value), self.min_delta)
            best, since = (found.value, 0) if found.since == 0 else (best, since + 1)
            if since == self.patience:
                times, since = times + 1, 0
        return max(self.factor**times, self.least)

    def state_dict(self) -> dict[str, Any]:
        """The arguments: with others the epochs that are over would have been others."""
        names = ("patience", "quantity", "factor", "min_delta", "least")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compares the arguments.

        Raises:
            ValueError: they were others, or there was no such callback.
        """
        if not state:
            raise ValueError("patience: expected no schedule for a run that began without one")
        for name, own in self.state_dict().items():
            if state[name] != own:
                raise ValueError(f"{name}: expected {state[name]!r}, got {own!r}")


def _cosine(epochs: int, warmup: int, last: float, epoch: int) -> float:
    if epoch < warmup:
        return (epoch + 1) / warmup
    done = min(1.0, (epoch - warmup) / (epochs - warmup))
    return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * done))


def _steps(at: tuple[int, ...], factor: float, epoch: int) -> float:
    return factor ** sum(begun <= epoch for begun in at)
