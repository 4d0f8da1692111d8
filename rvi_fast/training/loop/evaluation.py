"""How well a model reconstructs what it is trained on, and what it is not shown of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..._devices import beside
from ...data.metrics import elastic
from ...data.pixels import observed
from ...drawing import Drawing
from ...models import LatentModel
from ...posteriors.base import as_posterior
from ..distributed.ranks import Alone
from ..inputs.feed import HostInputs
from ..inputs.prepare import Inputs
from ..inputs.sources import Batch
from ..inputs.withheld import Withheld
from ..places.base import Place
from .history import History
from .refined_step import refined
from .step import draws

# rows reconstructed at once
_CHUNK = 4096


class Evaluation:
    """Elastic errors from the posterior mean, in the model's units: what a history has of them.

    Args:
        model: in training mode, before and after.
        inputs: what it is trained on.
        ranks: who else has rows of it.
        place: where its rows lie.
        drawing: what its modules draw from.
        every: epochs between evaluations, 0 for none.
        entries: what it is not shown, if anything.
    """

    def __init__(
        self,
        model: LatentModel,
        inputs: Inputs | HostInputs,
        ranks: Alone,
        place: Place,
        drawing: Drawing,
        every: int,
        entries: Withheld | None = None,
    ) -> None:
        self.model, self.inputs, self.ranks, self.place = model, inputs, ranks, place
        self.drawing, self.every, self.entries = drawing, every, entries

    def after(self, epoch: int, history: History) -> None:
        """Adds the errors after an epoch, counted from 1, where they are due."""
        if not self.every or epoch % self.every:
            return
        history["elastic"].append(self.observed())
        if self.entries is not None:
            history.setdefault("held_out", []).append(self.held_out(self.entries))
        history["evaluated"].append(epoch)

    def observed(self) -> float:
        """Over the observed entries of all processes that it is shown; NaN where there are none."""
        device = self.inputs.device
        parts = (
            torch.arange(start, min(start + _CHUNK, self.model.num_data), device=device)
            for start in range(0, self.model.num_data, _CHUNK)
        )

        def shown(position: int, x: Tensor, mask: Tensor | None) -> tuple[Batch, Tensor | None]:
            return (x, mask), mask

        return self._mean(parts, shown)

    def held_out(self, entries: Withheld) -> float:
        """Over the entries of all processes that it is not shown; what it is shown says the latents."""
        like = next(self.model.posterior.parameters())
        rows = torch.from_numpy(entries.rows).to(like.device)

        def truth(position: int, x: Tensor, mask: Tensor | None) -> tuple[Batch, Tensor | None]:
            part = slice(position * _CHUNK, position * _CHUNK + len(x))
            whole, known = entries.truth(part, like.dtype, self.model.scaler)
            known = None if known is None else known.to(like.device)
            return (whole.to(like.device), known), entries.hidden[part].to(like.device)

        return self._mean(iter(rows.split(_CHUNK) if len(rows) else ()), truth)

    def _mean(
        self,
        parts: Iterator[Tensor],
        wanted: Callable[[int, Tensor, Tensor | None], tuple[Batch, Tensor | None]],
    ) -> float:
        """The elastic error over all processes, of rows in parts.

        Args:
            parts: their numbers.
            wanted: from a part's number and what is shown of it to data and the entries that count,
                None for all that are observed.
        """
        model = self.model
        model.eval()
        posterior = as_posterior(model.posterior)
        drawn = self.drawing if draws(model, training=False) else None
        within = contextlib.nullcontext() if drawn is None else drawn
        device = self.inputs.device
        seed = torch.zeros(1, dtype=torch.int64, device=device)
        total, count = 0.0, 0
        for position, index in enumerate(parts):
            x, mask = self.inputs.batch(index)
            (truth, known), scored = wanted(position, x, mask)
            number = int((observed(truth) if scored is None else scored).sum())
            if number:
                with within:
                    own, rows = posterior.rows_of(index, x, mask)
                    if posterior.refine_steps:
                        keys = index + posterior.first_row
                        own = refined(model, own, keys, (x, mask), seed)
                with within:
                    found = model.scored(truth, known, rows, posterior=own, shown=(x, mask))
                total += elastic(*found, scored) * number
            count += number
            self.place.release(int(index[0]), int(index[-1]) + 1, self.inputs)
        model.train()
        both = torch.tensor([total, count], dtype=torch.float64, device=beside(device))
        total, count = self.ranks.sum(both).tolist()
        return total / count if count else float("nan")
