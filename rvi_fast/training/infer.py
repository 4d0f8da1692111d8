"""Posteriors for new datapoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .. import _checks
from ..models import LatentModel, alone
from ..optim import RowAdam
from ..posteriors.base import as_posterior
from ..posteriors.relay import RelayPosterior
from ..progress import progress_bar
from .held_out import check_scale_factor, find_held_out
from .inputs.feed import HostInputs
from .inputs.prepare import Inputs, prepare
from .loop.inference_step import inference_step
from .loop.row_steps import frozen, optimise_rows
from .loop.seeds import MODULES, stream
from .loop.step import decoder_step, drawing_of
from .loop.threads import one_thread_where_small

# rows optimised together if not told otherwise
_BATCH = 4096


def infer(
    model: LatentModel,
    x_new: Any,
    *,
    mask: Any = None,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    scale_factor: float | Literal["held-out"] = 1.0,
    shared_noise: bool = False,
    progress: bool = False,
) -> RelayPosterior:
    """Optimises the posteriors of new datapoints; relays, decoder and scale stay as they are.

    Rows start at the mean of the training rows. Three quarters of the steps decode the posterior
    mean, which finds the means faster than samples do; the rest decode samples, which fits the
    standard deviations. A model with an encoder computes the posteriors in one pass; with `steps` that
    is where rows of their own start, which then take the same steps (semi-amortised inference).
    Calls for one model from several threads wait for each other. The result depends on the arguments
    alone: torch's global random state is neither used nor changed.

    Args:
        model: a trained model.
        x_new: data [N, D] as in `fit`, in the same units: the model's own scale is applied, and entries
            further out than training has seen count as if they lay there.
        mask: bool [N, D], true = observed.
        steps: Adam steps for each row. If not given 100, and for a model with an encoder as many as it
            was trained with, none unless `models.vae(refine_steps=)` says so.
        lr: learning rate; 0.01 suits RVI, 0.03 a model without groups. If not given 0.01, and for a
            model with an encoder its `refine_lr`.
        batch_size: rows optimised together; each row's result does not depend on it, to rounding.
        seed: of the noise, of what a decoder draws, and of the entries that are held out.
        scale_factor: the likelihood's scale is taken so many times as large as training left it; only
            where there are steps. "held-out" takes, of a few factors, the one that best predicts a tenth
            of the observed entries of up to 1,024 rows, held out for that: for imputation where much is
            missing. The posterior keeps the factor, and draws of `impute` around it have noise as much
            larger.
        shared_noise: all rows draw the same noise. What a row gets then depends on the row alone, to
            rounding, and not on its place in x_new.
        progress: show a progress bar.

    Returns:
        A `RelayPosterior` of N rows; pass it to `impute` or `model.reconstruct`.

    Raises:
        ValueError, TypeError: as `fit`; steps for a posterior of your own whose `of` gives no
            `RelayPosterior`.

    Source:
        Paper section 4; for an encoder Kim et al. 2018.
    """
    own = as_posterior(model.posterior)
    if own.owns_rows:
        steps = 100 if steps is None else _checks.check_positive_int("steps", steps)
    else:
        steps = own.refine_steps if steps is None else _checks.check_count("steps", steps)
    lr = own.refine_lr if lr is None else _checks.check_positive_float("lr", lr)
    size = _BATCH if batch_size is None else _checks.check_positive_int("batch_size", batch_size)
    seed = _checks.check_seed(seed)
    inputs = prepare(model, x_new, mask)
    check_scale_factor(model, scale_factor, steps)

    def optimise(
        inputs: Inputs | HostInputs, factor: float, progress: bool = False
    ) -> RelayPosterior:
        wide = model.widened(factor)
        return _optimise(wide, inputs, steps, lr, size, seed, shared_noise, progress)

    encoder = () if own.owns_rows else (model.posterior,)
    with (
        alone(model),
        drawing_of(model, stream(seed, MODULES)),
        one_thread_where_small(model.decoder, min(size, inputs.num_data)),
        frozen(*encoder, model.decoder, model.likelihood),
    ):
        if scale_factor == "held-out":
            scale_factor = find_held_out(model, inputs, seed, optimise).factor
        posterior = optimise(inputs, float(scale_factor), progress)
        posterior.scale_factor = float(scale_factor)
        return posterior


def _optimise(
    model: LatentModel,
    inputs: Inputs | HostInputs,
    steps: int,
    lr: float,
    size: int,
    seed: int,
    shared_noise: bool,
    progress: bool,
) -> RelayPosterior:
    device, num_data = inputs.device, inputs.num_data
    posterior, start = _started(model, inputs)
    if not steps:
        return posterior
    if not isinstance(posterior, RelayPosterior):
        raise ValueError(
            f"steps: expected 0 for a posterior whose `of` gives no RelayPosterior, got {steps} and "
            f"{type(posterior).__name__}"
        )
    batches = torch.arange(num_data, device=device).split(size)
    # on the device beforehand: nothing is copied to it in a step
    seeds = torch.tensor([stream(seed, step) for step in range(steps)], device=device).split(1)
    with (
        frozen(model.decoder, model.likelihood),
        torch.no_grad(),
        progress_bar(len(batches) * steps, unit="step", shown=progress) as bar,
    ):
        decoder = decoder_step(model, learn=False)
        for index in batches:
            # a table of its own: the moments of one batch are needed at a time
            part = posterior.over(start(index))
            optimizer = RowAdam(part, lr=lr, mode="row")
            keys = torch.zeros_like(index) if shared_noise else index
            given = inputs.batch(index)
            run = inference_step(part, optimizer, decoder, given, keys, progress=progress)
            rows = optimise_rows(part, run, seeds, bar.update)
            posterior.rows[int(index[0]) : int(index[0]) + len(index)].copy_(rows)
    # the smallest and the largest are finite where all are, and no mask of the table is made
    if not bool(torch.isfinite(torch.stack(torch.aminmax(posterior.rows.detach()))).all()):
        row, column = _checks.first_entry(~torch.isfinite(posterior.rows))
        raise FloatingPointError(
            f"row {row} of the posterior became {posterior.rows[row, column].item()}; lr={lr} is too "
            "large, or the model is not finite"
        )
    return posterior


def _started(
    model: LatentModel, inputs: Inputs | HostInputs
) -> tuple[RelayPosterior, Callable[[Tensor], Tensor]]:
    """A posterior of the new rows, and where rows `index` of it start, [n, W] in memory of their own."""
    if not as_posterior(model.posterior).owns_rows:
        encoded = _encoded(model, inputs)
        return encoded, lambda index: encoded.rows.detach()[index]
    # all rows are found below: no matter what they are drawn from
    own = torch.Generator(inputs.device)
    posterior = model.posterior.for_new_data(inputs.num_data, generator=own)
    mean = model.posterior.mean_row()
    return posterior, lambda index: mean.repeat(len(index), 1)


def _encoded(model: LatentModel, inputs: Inputs | HostInputs) -> RelayPosterior:
    if isinstance(inputs, Inputs):
        return model.posterior.of(*inputs)
    parts = torch.arange(inputs.num_data, device=inputs.device).split(_BATCH)
    encoded = [model.posterior.of(*inputs.batch(index)) for index in parts]
    rows = torch.cat([part.rows.detach() for part in encoded])
    return RelayPosterior.from_rows(rows, encoded[0].relays, encoded[0].layout)
