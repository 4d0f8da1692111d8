"""Where the rows of a posterior lie while it is trained: what a run asks of any place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models import LatentModel, Objective
from ...optim import RowAdam
from ..inputs.feed import HostInputs
from ..inputs.prepare import Inputs
from ..runs.checkpoints import Checkpoint
from .order import EpochOrder

# from row numbers and data of a batch to its objective
Step = Callable[..., Objective]


class NoRows:
    """Stands where `RowAdam` stands, for a posterior that owns no rows: it has nothing to do."""

    num_steps = 0
    param_groups: tuple[dict[str, Any], ...] = ()

    def zero_grad(self) -> None:
        """There are no gradients."""

    def step(self) -> None:
        """There is nothing to step."""

    def detach(self) -> None:
        """There is nothing to let go of."""


class Windows:
    """Windows of an epoch that come and go by themselves: all rows are where the steps need them."""

    def before(self, window: int) -> None:
        """To be called before a step that reaches into this window."""

    def after(self, window: int) -> None:
        """To be called after it: no step will reach into the windows before this one."""


def _as_it_is(values: Tensor) -> Tensor:
    return values


class Place:
    """Where rows lie while an epoch runs, and how they get into checkpoints and back.

    This one is for a posterior that owns no rows. Its methods are called in this order: `open`;
    `restore` or `start`, then `watch`; in each epoch `epoch`, `visited`, `settle`; around each
    checkpoint `tensors`, `before_saving`, perhaps `fork`, `sync` and `saved` or `failed`; `close`.

    Args:
        model: what is trained.

    Attributes:
        stepped: the model as a step sees it.
        total: the sum of a tensor over all processes, in place.
        rows: what drives the rows.
        epochs_behind: rows are up to date with the beginning of so many epochs at least.
        left_out: names of tensors of the model that its checkpoints do not hold.
        parts: how many processes have begun the run: see `order.Blocks`.
    """

    epochs_behind = 1
    parts = 1
    left_out: tuple[str, ...] = ()

    def __init__(self, model: LatentModel) -> None:
        self.model = self.stepped = model
        self.rows: RowAdam | NoRows = NoRows()
        self.total: Callable[[Tensor], Tensor] = _as_it_is

    @property
    def landing(self) -> torch.device:
        """Where the tensors of a checkpoint are wanted."""
        return next(self.model.posterior.parameters()).device

    @property
    def older(self) -> dict[str, Any]:
        """What settings were in checkpoints that do not say so."""
        return {"moment_dtype": None}

    def open(self, found: Checkpoint | None) -> None:
        """Makes the optimiser of the rows.

        Args:
            found: the checkpoint to go on from, if there is one.
        """

    def close(self) -> None:
        """The rows are the user's again, up to date and without optimiser."""
        self.rows.detach()

    def bind(self, step: Step) -> Step:
        """A step of `stepped`, to be asked for by numbers of rows of the whole table."""
        return step

    @property
    def slots_of(self) -> Callable[[Tensor], Tensor] | None:
        """From numbers of rows of the table to those of `stepped`; None where they are the same."""
        return None

    # epochs

    def order(self, num_data: int, generator: torch.Generator) -> EpochOrder:
        """The order in which an epoch visits rows."""
        return EpochOrder(num_data, num_data, generator)

    @contextmanager
    def epoch(
        self,
        order: EpochOrder,
        inputs: Inputs | HostInputs,
        check: Callable[[str, Tensor], None],
        done: int,
    ) -> Iterator[Any]:
        """Within it steps may be made in this order; gives the `Windows` to tell of them.

        Args:
            order: from `order`.
            inputs: the data, of which the same rows are needed.
            check: looks at tables that are put away, by name.
            done: steps of the epoch that were made before.
        """
        yield Windows()

    def visited(self) -> None:
        """Every row has been in a batch of the epoch."""

    def settle(self) -> None:
        """An epoch and its evaluation are over."""

    def release(self, start: int, stop: int, inputs: Inputs | HostInputs) -> None:
        """Rows [start, stop), and their data, have been looked at by an evaluation."""

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """What is to be looked at after an epoch: parameters of the model as they are."""
        yield from ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    # checkpoints

    def start(self, token: str) -> bool:
        """A run of that name begins; whether it needs a checkpoint before its first step."""
        return False

    @property
    def part(self) -> str | None:
        """The name of tables in files that are a part of checkpoints, see `runs.parts`."""
        return None

    @property
    def moved(self) -> bool:
        """Whether rows lie in other files than those of the checkpoint that was restored."""
        return False

    def remove(self, parts: Iterable[str]) -> None:
        """Removes tables that no checkpoint goes back to; see `parts.remove_parts`."""

    def watch(self) -> None:
        """From now on rows are written to."""

    def tensors(self, midway: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The model's tensors by their names, and those of the optimiser of the rows.

        Args:
            midway: within an epoch, where to bring rows up to date would change what follows.
        """
        return self.model.state_dict(), {}

    def before_saving(
        self, token: str, tensors: dict[str, dict[str, Tensor]], metadata: dict[str, Any]
    ) -> None:
        """A checkpoint of that name is about to be written; adds what it needs beside `tensors`."""

    def lacks_room(self) -> str | None:
        """Why training cannot go on while the checkpoint is written, in words; None where it can."""
        return None

    def fork(self) -> None:
        """Training goes on while the checkpoint is written."""

    def sync(self) -> None:
        """Returns when all is on disk that the checkpoint relies on; on any thread."""

    def saved(self) -> None:
        """The checkpoint has its name; on any thread."""

    def failed(self, run_dir: Path) -> None:
        """The checkpoint could not be written."""

    def held(self) -> dict[str, Tensor]:
        """The model's tensors that checkpoints hold, for their names and shapes."""
        return self.model.state_dict()

    def restore(self, checkpoint: Checkpoint, others: Callable[[], None]) -> None:
        """Takes rows and their optimiser back to a checkpoint.

        Args:
            checkpoint: of this model.
            others: takes back all else, once the optimiser of the rows has looked at its part.
        """
        others()
