"""The optimiser of everything that the rows share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...likelihoods.residuals import residual_scales
from ...models import LatentModel
from ...optim.residual_scale import ResidualScale
from ...optim.shared_adam import SharedAdam, shared_adam
from ...posteriors.base import as_posterior
from ..settings import Settings


class Observed(NamedTuple):
    """How much is observed, for a scale that comes from residuals.

    Attributes:
        share: of all rows, in which each column is observed, [D].
        batch: rows of a batch.
    """

    share: Tensor
    batch: int


@contextmanager
def shared_optimizer(
    model: LatentModel, settings: Settings, observed: Observed | None = None
) -> Iterator[torch.optim.Optimizer]:
    """Within it Adam drives relays or encoder, decoder and scale; afterwards they are free of it.

    Args:
        model: whose parameters they are.
        settings: of the run.
        observed: given where scales are to come from residuals.
    """
    others = [
        parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("posterior.") and parameter.requires_grad
    ]
    decay, decayed = settings.decoder_weight_decay, []
    if decay:
        matrices = {id(weight) for weight in model.decoder.parameters() if weight.dim() >= 2}
        decayed = [parameter for parameter in others if id(parameter) in matrices]
        others = [parameter for parameter in others if id(parameter) not in matrices]
    scales = [] if observed is None else residual_scales(model.law, observed.share)
    from_residuals = {id(scale) for scale, _ in scales}
    others = [parameter for parameter in others if id(parameter) not in from_residuals]
    groups: list[dict[str, Any]] = [
        {
            "params": as_posterior(model.posterior).shared_parameters(),
            "lr": settings.inference_lr,
        },
        {"params": decayed, "lr": settings.lr, "weight_decay": decay},
        {"params": others, "lr": settings.lr},
    ]
    if observed is not None and scales:
        rule = ResidualScale([count for _, count in scales], observed.batch)
        found = [scale for scale, _ in scales]
        groups.append({"params": found, "lr": 0.0, "residual_scale": rule})
    optimizer = shared_adam(groups)
    try:
        yield optimizer
    finally:
        if isinstance(optimizer, SharedAdam):
            optimizer.detach()
