"""What the steps of an epoch gave, added up without waiting for a device in each of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._devices import beside, to_float64
from ..distributed.ranks import Alone
from .history import Partial

# steps between two looks at the losses: reading one back synchronises a GPU
CHECK_EVERY = 64


class Tally:
    """Sums over datapoints, of all processes, of loss, KL divergence and log-likelihood.

    Steps are added up in groups of 64, however often they are looked at: an epoch that is broken off
    and gone on with has the sums of one that was not.

    Args:
        ranks: who makes the steps.
        device: where they give their results.
        partial: how far the epoch had come before.
    """

    def __init__(self, ranks: Alone, device: torch.device, partial: Partial | None) -> None:
        self.ranks, self.device = ranks, beside(device)
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        # sums over all processes of steps whose group is not complete
        self.pending = torch.zeros((0, 3), dtype=torch.float64, device=self.device)
        self._unseen: list[Tensor] = []
        self._sizes: list[int] = []
        if partial is not None:
            totals, pending = (
                torch.tensor(held, dtype=torch.float64, device=self.device)
                for held in (partial.totals, partial.pending)
            )
            self.totals += totals
            self.pending = pending.reshape(-1, 3)

    def add(self, result: Tensor, size: int) -> bool:
        """Takes what a step on `size` rows gave, means [3]; whether its group is complete."""
        self._unseen.append(result)
        self._sizes.append(size)
        return len(self.pending) + len(self._unseen) == CHECK_EVERY

    def look(self) -> Tensor:
        """The sums [n, 3] of the steps since the last look, over all processes."""
        values = to_float64(torch.stack(self._unseen))
        weights = torch.tensor(self._sizes, dtype=torch.float64, device=self.device)[:, None]
        self._unseen.clear()
        self._sizes.clear()
        # the mean over no rows is not a number
        sums = self.ranks.sum(torch.where(weights > 0, values * weights, 0.0))
        self.pending = torch.cat((self.pending, sums))
        return sums

    def close_group(self) -> None:
        """Adds up the steps that have been looked at."""
        self.totals += self.pending.sum(0)
        self.pending = self.pending[:0]

    def partial(self, steps: int, generators: dict[str, Tensor]) -> Partial:
        """How far the epoch has come, for `Tally` to go on from: all steps have been looked at."""
        return Partial(steps, self.totals.tolist(), self.pending.tolist(), generators)
