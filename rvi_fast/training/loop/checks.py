"""Whether losses and parameters are numbers, and whether rows say anything."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..._devices import to_float64
from ..distributed.ranks import Alone
from ..places.base import Place

# nats of a row that are none
_NOTHING = 0.1


class Finite:
    """Looks for NaN, infinity and what processes no longer share, and says what is left of the run.

    Args:
        ranks: who trains.
        place: where rows lie.
        kept: says which checkpoint is good.
    """

    def __init__(self, ranks: Alone, place: Place, kept: Callable[[], str]) -> None:
        self.ranks, self.place, self.kept = ranks, place, kept

    def losses(self, losses: Tensor, epoch: int, first_step: int) -> None:
        """Those of steps from `first_step` of the run on, in epoch `epoch` counted from 0.

        Raises:
            FloatingPointError: names the first step that gave no number.
        """
        finite = torch.isfinite(losses)
        if bool(finite.all()):
            return
        position = int((~finite).to(torch.uint8).argmax())
        raise FloatingPointError(
            f"the loss became {losses[position].item()} at step {first_step + position} "
            f"(epoch {epoch + 1}); {self.kept()}"
        )

    def parameters(self, epoch: int) -> None:
        """Those of all processes: the last step of an epoch can break them after a finite loss.

        Raises:
            FloatingPointError: names the first that holds something else.
            ValueError: a module remembers other things than the same one in another process.
        """
        named = [(name, table) for name, table in self.place.parameters() if table.numel()]
        finite = torch.stack(
            [torch.isfinite(torch.stack(torch.aminmax(table))).all() for _, table in named]
        )
        broken = self.ranks.sum(1.0 - to_float64(finite.all()))
        if not bool(finite.all()):
            self.table(*named[int((~finite).to(torch.uint8).argmax())], epoch)
        if bool(broken):
            raise FloatingPointError(
                f"rows of another process became nan or inf in epoch {epoch + 1}; {self.kept()}"
            )
        self.ranks.check_buffers(self.place.model)

    def table(self, name: str, table: Tensor, epoch: int) -> None:
        """One table, or a part of it."""
        if not bool(torch.isfinite(torch.stack(torch.aminmax(table))).all()):
            raise FloatingPointError(
                f"{name} became nan or inf in epoch {epoch + 1}; {self.kept()}"
            )


class CollapseWarning(UserWarning):
    """A trained model has learned no more than the means of columns.

    `fit` says so where the rows say nothing, which the KL divergence tells; estimators and the command
    line also where entries that were hidden are found no better than by the means of their columns.
    Training was too short (more epochs, or a smaller `batch_size`), has collapsed (a smaller `lr` may
    help, see `recipe`), or the columns say nothing about each other. See `held_out_error`.
    """


def warn_of_prior(kl: float, lr: float) -> None:
    """Warns where the posteriors of a trained model are the prior.

    Args:
        kl: KL divergence of a row on average, in nats.
        lr: learning rate of the decoder.
    """
    if kl < _NOTHING:
        warnings.warn(
            f"the posteriors of all rows are the prior, as if no row differed from any other: their KL "
            f"divergence is {kl:.2g} nats on average. Training has collapsed, or the columns say "
            f"nothing about each other. Try a smaller lr, which is {lr}, or a smaller kl_weight; "
            "rvi_fast.training.recipe says what suits a table of so many rows",
            CollapseWarning,
            stacklevel=3,
        )
