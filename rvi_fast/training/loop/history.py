"""What a training run has been through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ...models import LatentModel


class History(dict[str, list[float]]):
    """What a training run has been through, a list for each quantity.

    "loss", "kl" and "log_prob" have one number per epoch, means over the datapoints in nats;
    "elastic" has one per evaluation, "evaluated" the epochs (counted from 1) of those. All are in the
    units of the model: of standardised data, where `fit` standardises, and of pixels in [0, 1].
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

    def records(self) -> list[dict[str, float]]:
        """One record per epoch, as `metrics.jsonl` holds them."""
        scores = dict(zip(self["evaluated"], self["elastic"], strict=True))
        return [
            {
                "epoch": epoch,
                "loss": self["loss"][epoch - 1],
                "kl": self["kl"][epoch - 1],
                "log_prob": self["log_prob"][epoch - 1],
                **({"elastic": scores[epoch]} if epoch in scores else {}),
            }
            for epoch in range(1, self.epochs + 1)
        ]


Callback = Callable[[LatentModel, History], bool | None]


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

    def steps_left(self, epochs: int, steps_per_epoch: int) -> int:
        """Steps to the end of the last of so many epochs; none where a callback has ended the run."""
        done = self.history.epochs * steps_per_epoch + self.steps_broken_off
        return 0 if self.stopped else max(0, epochs * steps_per_epoch - done)
