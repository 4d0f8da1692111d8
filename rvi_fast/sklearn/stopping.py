"""Training that ends when held-out entries are found no better."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..likelihoods import Likelihood
from ..models import LatentModel
from .deadline import Deadline, now
from .entries import HeldOutEntries
from .estimator import without_rows

# so many looks without a gain end a training
_PATIENCE = 5


class HeldOutStopping:
    """A callback of `fit` that stops by entries which the likelihood does not see.

    The posteriors of the rows in training say what stands there.

    Args:
        entries: observed entries of the table that `fit` is given without them, or their codes.
        every: epochs between looks.
        read: what law and outputs say of the rows that hold entries, [m, D] or codes [m, K].
        deadline: when training ends in any case, with a look.

    Attributes:
        epochs: of the best look, 0 before the first.
        error: mean squared error then.
        model: as it was then, over one row.
        seconds: how long training had taken by then.
        cut: whether the deadline has ended it.
        looks: of every look the epoch and the mean squared error.
    """

    def __init__(
        self,
        entries: HeldOutEntries,
        every: int,
        read: Callable[[Likelihood, Tensor], Tensor],
        deadline: Deadline,
    ) -> None:
        self.entries, self.every, self.read, self.deadline = entries, every, read, deadline
        self.epochs, self.error = 0, math.inf
        self.looks: list[tuple[int, float]] = []
        self.model: LatentModel
        self.seconds, self.cut = 0.0, False
        self._since, self._begun = 0, now()

    def __call__(self, model: LatentModel, history: Any) -> bool:
        """True when it is time to stop."""
        epoch = history.epochs
        self.cut = self.deadline.over
        if epoch % self.every and not self.cut:
            return False
        index = torch.from_numpy(self.entries.rows).to(next(model.decoder.parameters()).device)
        with torch.no_grad():
            found = self.read(model.law, model.decode(model.posterior.mean(index)))
        wrong = self.entries.of(found.cpu().numpy()) - self.entries.truth
        error = self.entries.mean(wrong**2)
        self.looks.append((epoch, error))
        self._since += 1
        # the first look is the best so far, whatever it sees
        if error < self.error or not self.epochs:
            self.epochs, self.error, self._since = epoch, error, 0
            self.seconds = now() - self._begun
            # rows stay where they are: what they share is copied
            other = copy.copy(model)
            other.__dict__["_modules"] = dict(model._modules)
            self.model = copy.deepcopy(without_rows(other)).eval()
        return self.cut or self._since >= _PATIENCE
