"""One run among several: a call of `fit` whose arguments are checked, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models import LatentModel
from ..loop.history import History
from ..loop.interrupts import Request
from ..opening import SharedInputs, opened
from ..places import directory_of
from ..settings import Settings

# told of steps that are done
Count = Callable[[int], object]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of `fit`."""

    model: LatentModel
    x: Any
    mask: Any
    settings: Settings

    @property
    def device(self) -> torch.device:
        """Where the model is trained."""
        own = next(self.model.posterior.parameters()).device
        return own if self.settings.device is None else torch.device(self.settings.device)

    @property
    def num_steps(self) -> int:
        """Steps of all epochs."""
        return self.settings.epochs * -(-self.model.num_data // self.settings.batch_size)

    @property
    def on_cpu(self) -> bool:
        """Whether another process can train it: all of it lies in the memory of the host."""
        given = [entry for entry in (self.x, self.mask) if isinstance(entry, Tensor)]
        places = [self.device, *(entry.device for entry in given)]
        return all(place.type == "cpu" for place in places) and directory_of(self.model) is None


@dataclass
class Outcome:
    """How a run has ended: with its history, or with an error."""

    history: History | None = None
    error: BaseException | None = None


class Share:
    """The part of a bar over all runs that one of them fills; to a `Run` it is the bar.

    Args:
        total: steps of the run.
        count: told of those that are done.
    """

    def __init__(self, total: int, count: Count) -> None:
        self._left, self._count = total, count

    def update(self, steps: int) -> None:
        """So many steps more are done."""
        self._left -= steps
        self._count(steps)

    def leave(self, steps: int) -> None:
        """So many steps are left to do."""
        self.update(self._left - steps)

    def set_description(self, text: str, refresh: bool = True) -> None:
        """Nothing is shown of a single run."""

    def set_postfix(self, values: Any, refresh: bool = True) -> None:
        """Nothing is shown of a single run."""


def steps_of(
    call: Call, request: Request, count: Count, shared: SharedInputs | None = None
) -> Generator[None, None, History]:
    """The run of a call, a step to each `next`; what it returns is what `fit` would."""
    share = Share(call.num_steps, count)
    with opened(call.model, call.x, call.mask, call.settings, shared=shared) as run:
        share.leave(run.steps_left)
        yield from run.advance(request, share)
        share.leave(0)
        return run.history
