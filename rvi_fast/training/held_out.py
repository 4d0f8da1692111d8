"""How well a model finds entries that were held out, and the scale of the likelihood that suits them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..data.pixels import fractions, is_pixels, observed
from ..likelihoods.gaussian import GaussianLikelihood
from ..models import LatentModel
from .inputs.prepare import Inputs
from .inputs.sources import HostInputs
from .loop.seeds import stream

FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
_SHARE = 0.1  # of the observed entries
_ROWS = 1024
_HIDE = 7  # use of the seed
# fewer entries do not tell a model that has learned nothing from one that was unlucky
_JUDGED = 100


class TooFewEntries(ValueError):
    """Data of so few observed entries that none can be held out."""


class HeldOut(NamedTuple):
    """The factor of the scale that predicts held-out entries best, and how well it does.

    `error` is the root mean square error over the entries, each divided by the standard deviation of
    its column, relative to that of the columns' means; NaN where less than 100 entries say nothing.
    """

    factor: float
    error: float


def find_held_out(
    model: LatentModel,
    inputs: Inputs | HostInputs,
    seed: int,
    decode: Callable[[Inputs], Tensor],
    factors: Sequence[float] = FACTORS,
) -> HeldOut:
    """Hides entries and looks for the factor of the scale with which they are predicted best.

    A tenth of the observed entries of up to 1,024 rows is held out of inference. The scale of the
    residuals on entries that were fitted is too small for those that were not, and a posterior under
    too small a scale follows its few observed entries too closely.

    Args:
        model: its likelihood is scaled while `decode` runs.
        inputs: checked data, in the model's units.
        seed: of the rows and entries.
        decode: infers the rows given to it and returns their reconstruction [n, D], in those units.
        factors: those to try.

    Raises:
        TooFewEntries: there are no observed entries to hold out.
    """
    device = inputs.device
    generator = torch.Generator(device).manual_seed(stream(seed, _HIDE))
    rows = torch.randperm(inputs.num_data, generator=generator, device=device)[:_ROWS]
    x, mask = inputs.batch(rows)
    known = observed(x) if mask is None else mask
    hidden = known & (torch.rand(x.shape, generator=generator, device=device) < _SHARE)
    if not bool(hidden.any()):
        raise TooFewEntries(
            f"scale_factor: expected a number, got 'held-out' with {int(known.sum())} observed "
            f"entries in {len(rows)} rows, too few to hold a tenth of them out"
        )
    if is_pixels(x):
        shown = Inputs(x, known & ~hidden)
    else:
        shown = Inputs(x.masked_fill(hidden, torch.nan), None)
    values = fractions(x, torch.float64)
    truth, wrong = values[hidden], {}
    for factor in factors:
        with scaled(model, factor):
            wrong[factor] = decode(shown)[hidden].double() - truth
    errors = {factor: float(part.square().mean()) for factor, part in wrong.items()}
    best = min(errors, key=errors.__getitem__)
    return HeldOut(best, _relative(wrong[best], values, hidden, known))


def _relative(wrong: Tensor, values: Tensor, hidden: Tensor, known: Tensor) -> float:
    """See `HeldOut`: errors [n] at the hidden entries of float64 values [N, D]."""
    shown = values.masked_fill(hidden | ~known, torch.nan)
    mean = shown.nanmean(0)
    variance = (shown - mean).square().nanmean(0)
    columns = hidden.nonzero()[:, 1]
    judged = variance[columns] > 0
    if int(judged.sum()) < _JUDGED:
        return math.nan
    columns, wrong = columns[judged], wrong[judged]
    of_means = values[hidden][judged] - mean[columns]
    found, expected = ((part.square() / variance[columns]).sum() for part in (wrong, of_means))
    return math.sqrt(float(found / expected)) if float(expected) > 0 else math.nan


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
