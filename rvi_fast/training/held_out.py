"""How well a model finds entries that were held out, and the scale of the likelihood that suits them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._devices import beside, to_float64
from ..data.pixels import fractions, is_pixels, observed
from ..likelihoods.base import Likelihood
from ..models import LatentModel
from ..posteriors.relay import RelayPosterior
from .inputs.feed import HostInputs
from .inputs.prepare import Inputs
from .loop.seeds import stream

FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
_SHARE = 0.1  # of the observed entries
_ROWS = 1024
_HIDE = 7  # use of the seed
# fewer entries do not tell a model that has learned nothing from one that was unlucky
JUDGED = 100


class TooFewEntries(ValueError):
    """Data of so few observed entries that none can be held out."""


class HeldOut(NamedTuple):
    """The factor of the scale that predicts held-out entries best, and how well it does.

    `error` is the root mean square error over the entries, each divided by the standard deviation of
    its column, relative to that of the columns' means; NaN where less than 100 entries say nothing.
    The error of a class is what the probability of the one that was observed lacks to 1, and what it is
    compared with is what that class's share of its column lacks.
    """

    factor: float
    error: float


def find_held_out(
    model: LatentModel,
    inputs: Inputs | HostInputs,
    seed: int,
    infer: Callable[[Inputs, float], RelayPosterior],
    factors: Sequence[float] = FACTORS,
) -> HeldOut:
    """Hides entries and looks for the factor of the scale with which they are predicted best.

    A tenth of the observed entries of up to 1,024 rows is held out of inference. The scale of the
    residuals on entries that were fitted is too small for those that were not, and a posterior under
    too small a scale follows its few observed entries too closely.

    Args:
        model: says what is reconstructed.
        inputs: checked data, in the model's units.
        seed: of the rows and entries.
        infer: gives the posterior of the rows given to it, under a scale so many times as large.
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
    values = _values(x)
    counted, wrong = hidden.to(values.device), {}
    for factor in factors:
        truth, found = model.scored(x, mask, posterior=infer(shown, factor), shown=shown)
        wrong[factor] = to_float64(found[hidden]) - _values(truth)[counted]
    of_means = _of_means(model.law, x, shown, values, known.to(values.device) & ~counted)
    # standardised columns have one scale, counts in the thousands have another
    own = torch.tensor(model.law.standardizable, device=values.device) | ~(of_means.spread > 0)
    spread = torch.where(own, 1.0, of_means.spread)[counted.nonzero()[:, 1]]
    errors = {factor: float((part.square() / spread).mean()) for factor, part in wrong.items()}
    best = min(errors, key=errors.__getitem__)
    return HeldOut(best, _relative(wrong[best], of_means, counted))


def _values(x: Tensor) -> Tensor:
    """Entries in float64, pixels as fractions, where the device or else the CPU has float64."""
    return fractions(x.to(beside(x.device)), torch.float64)


class _OfMeans(NamedTuple):
    """What knows a column's mean alone: errors [N, D], and the mean of their squares [D] where shown."""

    errors: Tensor
    spread: Tensor


def _of_means(law: Likelihood, x: Tensor, shown: Inputs, values: Tensor, seen: Tensor) -> _OfMeans:
    """Columns' means, and shares of classes, as estimates of float64 values [N, D]."""
    errors = values - values.masked_fill(~seen, torch.nan).nanmean(0)
    codes = ~torch.tensor(law.numeric, device=values.device)
    if bool(codes.any()):
        outputs = law.initial_outputs(law.totals(*shown))
        truth, found = law.scored(x, outputs.expand(len(x), -1))
        errors = torch.where(codes, _values(found) - _values(truth), errors)
    return _OfMeans(errors, errors.masked_fill(~seen, torch.nan).square().nanmean(0))


def _relative(wrong: Tensor, of_means: _OfMeans, hidden: Tensor) -> float:
    """See `HeldOut`: errors [n] at the hidden entries."""
    spread = of_means.spread[hidden.nonzero()[:, 1]]
    judged = spread > 0
    if int(judged.sum()) < JUDGED:
        return math.nan
    parts = (wrong[judged], of_means.errors[hidden][judged])
    found, expected = ((part.square() / spread[judged]).sum() for part in parts)
    return math.sqrt(float(found / expected)) if float(expected) > 0 else math.nan


def check_scale_factor(model: LatentModel, factor: float | str, steps: int) -> None:
    """Raises what `infer` says about its argument; without steps there is nothing that it changes."""
    if isinstance(factor, str) and factor != "held-out":
        raise ValueError(f"scale_factor: expected a number or 'held-out', got {factor!r}")
    if not isinstance(factor, str):
        _checks.check_positive_float("scale_factor", factor)
    if factor == 1:
        return
    if not steps:
        raise ValueError(
            f"scale_factor: expected 1 for a model with an encoder, which computes posteriors "
            f"without a likelihood where there are no steps, got {factor!r}"
        )
    try:
        model.law.widened(2.0)
    except ValueError as error:
        raise ValueError(
            "scale_factor: expected 1, or a model whose likelihood has a scale, got "
            f"{factor!r} with {type(model.likelihood).__name__}"
        ) from error
