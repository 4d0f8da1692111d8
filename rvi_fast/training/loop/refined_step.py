"""Semi-amortised posteriors: rows that an encoder starts and steps of their own move on."""

from __future__ import annotations

import torch
from torch import Tensor

from ...drawing import Drawing
from ...models import LatentModel, Objective
from ...optim import RowAdam
from ...posteriors.relay import RelayPosterior
from ..places.base import NoRows
from .row_steps import InferenceStep, frozen, optimise_rows
from .step import AutogradStep, decoder_step


def refined(
    model: LatentModel,
    started: RelayPosterior,
    index: Tensor,
    data: tuple[Tensor, Tensor | None],
    seed: Tensor,
    kl_weight: Tensor | None = None,
) -> RelayPosterior:
    """Rows after the `refine_steps` of a model's posterior; the model stays as it is.

    Args:
        model: its decoder says what rows are good for.
        started: the rows of the batch as they start; they are not changed.
        index: row numbers [B] that key the noise.
        data: x [B, D] in the model's units, and the mask.
        seed: int64 [1]; the noise of the steps is that of the numbers after it.
        kl_weight: factor of the KL divergence [], 1 if not given.
    """
    own = model.posterior
    part = started.over(started.rows.detach().clone())
    seeds = [seed + number for number in range(1, own.refine_steps + 1)]
    with frozen(model.decoder, model.likelihood), torch.no_grad():
        decoder = decoder_step(model, learn=False)
        rows = RowAdam(part, lr=own.refine_lr, mode="row")
        step = InferenceStep(part, rows, decoder, data, index)
        if kl_weight is not None:
            step.grad_kl.copy_(kl_weight.expand(len(index)))
        optimise_rows(part, step, seeds)
    return part


class RefinedStep(AutogradStep):
    """A step of a model whose posterior has `refine_steps`, see `models.vae`.

    Raises:
        ValueError: the model has a `forward` of its own, which says nothing of rows that are refined.
    """

    def __init__(
        self,
        model: LatentModel,
        rows: RowAdam | NoRows,
        shared: torch.optim.Optimizer,
        drawing: Drawing | None = None,
    ) -> None:
        if type(model).forward is not LatentModel.forward:
            raise ValueError(
                f"refine_steps: expected 0 for a model with a forward of its own, {type(model).__name__}"
            )
        super().__init__(model, rows, shared, drawing)

    def objective(
        self, index: Tensor, x: Tensor, mask: Tensor | None, seed: Tensor, kl_weight: Tensor
    ) -> Objective:
        """What the model's own `forward` gives, at the rows after their steps."""
        model, posterior = self.model, self.model.posterior
        start = posterior.encode(x, mask)
        layout, relays = posterior.layout, start.new_empty((0, posterior.latent_dim))
        started = RelayPosterior.from_rows(start.detach(), relays, layout)
        keys = posterior.noise_index(index)
        found = refined(model, started, keys, (x, mask), seed, kl_weight).rows.detach()
        # in value the rows that were found, in gradient those that the encoder gave
        rows = start + (found - start.detach())
        z, kl = posterior.sample(rows, index, seed=seed)
        kl, log_prob = kl.mean(), model.log_prob(x, z, mask).mean()
        return Objective(kl_weight * kl - log_prob, kl, log_prob)
