"""Whether losses and parameters are numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..._devices import to_float64
from ..distributed.ranks import Alone
from ..places.base import Place


class Finite:
    """Looks for NaN and infinity, and says what is left of the run.

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

    def table(self, name: str, table: Tensor, epoch: int) -> None:
        """One table, or a part of it."""
        if not bool(torch.isfinite(torch.stack(torch.aminmax(table))).all()):
            raise FloatingPointError(
                f"{name} became nan or inf in epoch {epoch + 1}; {self.kept()}"
            )
