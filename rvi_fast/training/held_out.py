"""How far the scale learned in training has to be raised for rows that it was not learned on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import _checks
from ..likelihood import GaussianLikelihood
from ..models import LatentModel
from .inputs import Inputs
from .seeds import stream
from .sources import HostInputs

FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
_SHARE = 0.1  # of the observed entries
_ROWS = 1024
_HIDE = 7  # use of the seed


class TooFewEntries(ValueError):
    """Data of so few observed entries that none can be held out."""


def held_out_factor(
    model: LatentModel,
    inputs: Inputs | HostInputs,
    seed: int,
    decode: Callable[[Inputs], Tensor],
) -> float:
    """The factor of the scale with which entries held out of the likelihood are predicted best.

    A tenth of the observed entries of up to 1,024 rows is held out. The scale of the residuals on
    entries that were fitted is too small for those that were not, and a posterior under too small
    a scale follows its few observed entries too closely.

    Args:
        model: its likelihood is scaled while `decode` runs.
        inputs: checked data, in the model's units.
        seed: of the rows and entries.
        decode: infers the rows given to it and returns their reconstruction [n, D], in those units.

    Raises:
        TooFewEntries: there are no observed entries to hold out.
    """
    device = inputs.device
    generator = torch.Generator(device).manual_seed(stream(seed, _HIDE))
    rows = torch.randperm(inputs.num_data, generator=generator, device=device)[:_ROWS]
    x, mask = inputs.batch(rows)
    known = ~torch.isnan(x.float()) if mask is None else mask
    hidden = known & (torch.rand(x.shape, generator=generator, device=device) < _SHARE)
    if not bool(hidden.any()):
        raise TooFewEntries(
            f"scale_factor: expected a number, got 'held-out' with {int(known.sum())} observed "
            f"entries in {len(rows)} rows, too few to hold a tenth of them out"
        )
    truth = x[hidden].double()
    if x.dtype == torch.uint8:
        truth, shown = truth / 255, Inputs(x, known & ~hidden)
    else:
        shown = Inputs(x.masked_fill(hidden, torch.nan), None)
    errors = {}
    for factor in FACTORS:
        with scaled(model, factor):
            errors[factor] = float((decode(shown)[hidden].double() - truth).square().mean())
    return min(errors, key=errors.__getitem__)


@contextmanager
def scaled(model: LatentModel, factor: float) -> Iterator[None]:
    """Within it the scale of the likelihood is `factor` times as large."""
    if factor == 1.0:
        yield
        return
    log_scale = model.likelihood.log_scale
    kept = log_scale.detach().clone()
    with torch.no_grad():
        log_scale += math.log(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            log_scale.copy_(kept)


def check_scale_factor(model: LatentModel, factor: float | str) -> None:
    """Raises what `infer` says about its argument."""
    if isinstance(factor, str) and factor != "held-out":
        raise ValueError(f"scale_factor: expected a number or 'held-out', got {factor!r}")
    if not isinstance(factor, str):
        _checks.check_positive_float("scale_factor", factor)
    if factor == 1:
        return
    if model.amortized:
        raise ValueError(
            f"scale_factor: expected 1 for a model with an encoder, which computes posteriors "
            f"without a likelihood, got {factor!r}"
        )
    if not isinstance(model.likelihood, GaussianLikelihood):
        raise ValueError(
            "scale_factor: expected 1, or a model with a GaussianLikelihood, got "
            f"{factor!r} with {type(model.likelihood).__name__}"
        )
