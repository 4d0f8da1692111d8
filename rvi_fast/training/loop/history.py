"""What a training run has been through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class History(dict[str, list[float]]):
    """What a training run has been through, a list for each quantity.

    "loss", "kl" and "log_prob" have one number per epoch, means over the datapoints in nats;
    "elastic" has one per evaluation, "held_out" too, which only `fit(held_out=)` adds, and
    "evaluated" the epochs (counted from 1) of those. All are in the units of the model: of standardised
    data, where `fit` standardises, and of pixels in [0, 1].
    """

    def __init__(self, values: dict[str, list[float]] | None = None) -> None:
        empty: dict[str, list[float]] = {
            name: [] for name in ("loss", "kl", "log_prob", "elastic", "evaluated")
        }
        super().__init__(values or empty)

    @property
    def epochs(self) -> int:
        """Number of epochs that have been trained."""
        return len(self["loss"])

    def plot(self, *, ax: Any = None) -> Any:
        """The curves of a training by epoch, as a matplotlib Figure (extra `plot`).

        On the left the loss and its two parts in nats, on the right the elastic errors, of what the
        likelihood has seen and of what was held out, whose least value is marked.

        Args:
            ax: matplotlib Axes to draw the loss in, and nothing else.

        Raises:
            ValueError: no epoch is over.
            ImportError: matplotlib is missing.
        """
        from ..._figures import draw_history

        if not self.epochs:
            raise ValueError("history: expected at least one epoch, got none")
        return draw_history(self, ax)

    def records(self) -> list[dict[str, float]]:
        """One record per epoch, as `metrics.jsonl` holds them."""
        scores = {
            name: dict(zip(self["evaluated"], self[name], strict=True))
            for name in ("elastic", "held_out")
            if self.get(name)
        }
        return [
            {
                "epoch": epoch,
                "loss": self["loss"][epoch - 1],
                "kl": self["kl"][epoch - 1],
                "log_prob": self["log_prob"][epoch - 1],
                **{name: found[epoch] for name, found in scores.items() if epoch in found},
            }
            for epoch in range(1, self.epochs + 1)
        ]


@dataclass(frozen=True)
class Partial:
    """How far an epoch had come: steps done, sums of what they gave, what modules draw from."""

    steps: int
    totals: list[float]
    # one by one, those of the steps that have not been added up
    pending: list[list[float]]
    generators: dict[str, Tensor]


@dataclass
class Standing:
    """How far a run has come, beside model and optimisers: what a checkpoint says of it."""

    history: History = field(default_factory=History)
    # whether a callback has ended it
    stopped: bool = False
    # how far an epoch had come when it was broken off
    partial: Partial | None = None
    # values of a kl_weight that is a function, for the epochs that are planned
    kl_weights: list[float] = field(default_factory=list)

    @property
    def steps_broken_off(self) -> int:
        """Steps of the epoch that was broken off, 0 if none was."""
        return 0 if self.partial is None else self.partial.steps

    def where(self, epochs: int, steps_per_epoch: int) -> str:
        """In words, how far a run of so many epochs has come."""
        place = f"epoch {min(self.history.epochs + 1, epochs)} of {epochs}"
        if self.partial is not None:
            place += f", after {self.partial.steps} of {steps_per_epoch} steps"
        return place

    def steps_left(self, epochs: int, steps_per_epoch: int) -> int:
        """Steps to the end of the last of so many epochs; none where a callback has ended the run."""
        done = self.history.epochs * steps_per_epoch + self.steps_broken_off
        return 0 if self.stopped else max(0, epochs * steps_per_epoch - done)
