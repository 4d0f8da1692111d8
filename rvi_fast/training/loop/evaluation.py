"""How well a model reconstructs what it is trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._devices import beside
from ...data.metrics import elastic
from ...drawing import Drawing
from ...models import LatentModel
from ...posteriors.base import as_posterior
from ..distributed.ranks import Alone
from ..inputs.feed import HostInputs
from ..inputs.prepare import Inputs
from ..places.base import Place
from .refined_step import refined
from .step import draws

# rows reconstructed at once
_CHUNK = 4096


def observed_elastic(
    model: LatentModel,
    inputs: Inputs | HostInputs,
    ranks: Alone,
    place: Place,
    drawing: Drawing,
) -> float:
    """Elastic error over the observed entries, from the posterior mean, in the model's units.

    Args:
        model: in training mode, before and after.
        inputs: what it is trained on.
        ranks: who else has rows of it.
        place: where its rows lie.
        drawing: what its modules draw from.

    Returns:
        The mean over all processes; NaN where nothing is observed.
    """
    model.eval()
    posterior = as_posterior(model.posterior)
    within = drawing if draws(model, training=False) else contextlib.nullcontext()
    device = next(model.posterior.parameters()).device
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    total, count = 0.0, 0
    for index in _chunks(model.num_data, device):
        x, mask = inputs.batch(index)
        observed = ~torch.isnan(x) if x.is_floating_point() else mask
        scored = x.numel() if observed is None else int(observed.sum())
        if scored:
            with within:
                own, rows = posterior.rows_of(index, x, mask)
                if posterior.refine_steps:
                    own = refined(model, own, index, (x, mask), seed)
            with within:
                found = model.scored(x, mask, rows, posterior=own)
            total += elastic(*found, mask) * scored
        count += scored
        place.release(int(index[0]), int(index[-1]) + 1, inputs)
    model.train()
    both = torch.tensor([total, count], dtype=torch.float64, device=beside(device))
    sums = ranks.sum(both)
    total, count = sums.tolist()
    return total / count if count else float("nan")


def _chunks(num_data: int, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, num_data, _CHUNK):
        yield torch.arange(start, min(start + _CHUNK, num_data), device=device)
