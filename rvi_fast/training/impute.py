"""Filling in missing entries."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from ..data import pixels as data_pixels
from ..functional import relay_sample
from ..layout import RowLayout
from ..models import LatentModel, alone
from ..posteriors.base import as_posterior
from ..posteriors.relay import RelayPosterior
from .infer import infer
from .inputs.fingerprint import fingerprint, same
from .inputs.prepare import open_source, plain
from .inputs.sources import Opened, convert
from .loop.seeds import MODULES, NOISE, stream
from .loop.step import drawing_of

# rows decoded at once
_CHUNK = 4096
# draws of which bounds are quantiles
_DRAWS = 200
# use of the seed: what is drawn around decoded latents
_AROUND = 8


@overload
def impute(
    model: LatentModel,
    x: Any,
    *,
    mask: Any = None,
    posterior: RelayPosterior | None = None,
    num_draws: None = None,
    estimate: Literal["mean", "mode"] | None = None,
    interval: None = None,
    seed: int = 0,
) -> Tensor: ...


@overload
def impute(
    model: LatentModel,
    x: Any,
    *,
    mask: Any = None,
    posterior: RelayPosterior | None = None,
    num_draws: int | None = None,
    estimate: None = None,
    interval: float | None = None,
    seed: int = 0,
) -> Tensor: ...


@torch.no_grad()
def impute(
    model: LatentModel,
    x: Any,
    *,
    mask: Any = None,
    posterior: RelayPosterior | None = None,
    num_draws: int | None = None,
    estimate: Literal["mean", "mode"] | None = None,
    interval: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Fills in the missing entries of x; observed entries come back as they are, value and dtype.

    Args:
        model: a trained model.
        x: data [N, D] as in `fit`.
        mask: bool [N, D], true = observed.
        posterior: the posteriors of these rows, from `infer`. Not needed for the training data, nor
            where the model has an encoder. Without it x and mask have to be those that `fit` was
            given, in the same order, which is checked; `model.posterior` says that the rows are
            those, whatever else has changed.
        num_draws: S: independent draws from the posterior predictive, z from its posterior and x
            from the likelihood around the decoded z; for multiple imputation. Both are those under the
            scale that the posterior was inferred with (`infer(scale_factor=)`). Without it each missing
            entry gets an estimate from the posterior mean.
        estimate: "mean", the expected x, or "mode", the most probable. Without it the mean for numbers
            and counts, and the mode for yes/no and classes, so that 0, 1 or a code comes back; of a
            class there is no mean, and "mean" gives its mode too. A row's size, where a likelihood of
            counts has one, is that of what was observed of the row.
        interval: bounds are given instead, between which a missing entry lies with this probability, for
            instance 0.9, as far as the model is right: quantiles of `num_draws` draws. If not given 200,
            and more where the interval needs them: at least 2 / (1 - interval) - 1, so that a draw may
            lie outside on each side.
        seed: of the draws: the same seed gives a row the same draws, to rounding, whatever rows stand
            beside it and however many draws are made.

    Returns:
        [N, D], or [S, N, D] draws, or [2, N, D] lower and upper bounds, in the units and the dtype of x,
        observed entries to the last digit; uint8 data come back as x / 255 in the model's dtype.

    Raises:
        ValueError, TypeError: as `fit`; x and posterior differ in their number of rows; without a
            posterior, x is not what the model was trained on; the likelihood does not say what mean its
            outputs stand for, or how to draw.
    """
    own = posterior is None
    if own:
        as_posterior(model.posterior).check_rows()
    if estimate not in (None, "mean", "mode"):
        raise ValueError(f"estimate: expected 'mean', 'mode' or None, got {estimate!r}")
    if estimate is not None and num_draws is not None:
        raise ValueError(f"estimate: expected None beside num_draws, got {estimate!r}")
    if interval is not None:
        if estimate is not None:
            raise ValueError(f"estimate: expected None beside interval, got {estimate!r}")
        if not 0 < _checks.check_positive_float("interval", interval) < 1:
            raise ValueError(f"interval: expected a number between 0 and 1, got {interval!r}")
        least = math.ceil(round(2.0 / (1.0 - interval), 6)) - 1
        num_draws = max(_DRAWS, least) if num_draws is None else num_draws
        if _checks.check_positive_int("num_draws", num_draws) < least:
            raise ValueError(
                f"num_draws: expected at least {least} for interval={interval}, got {num_draws}"
            )
    chunk = _CHUNK
    if num_draws is not None:
        num_draws = _checks.check_positive_int("num_draws", num_draws)
        # the draws that quantiles are taken of are made at once
        chunk = _CHUNK if interval is None else max(1, _CHUNK // num_draws)
    seed = _checks.check_seed(seed)
    x, mask = plain(model, x, mask)
    source = open_source(model, x, mask)
    # pixels beside a scale of other data are refused where they are read
    pixels = source.pixels() and model.scaler is not None
    if own and not (model.amortized or pixels) and model.trained_on is not None:
        print_ = fingerprint(x, mask, model.num_features, model.posterior.first_row)
        if print_["rows"] == model.num_data and not same(model.trained_on, print_):
            raise ValueError(
                "x: expected the rows that the model was trained on, in their order, with what was "
                "observed then; got others. For other rows pass posterior=infer(model, x) (on the "
                "command line: --data); for the same rows with other entries observed "
                "posterior=model.posterior"
            )
    if posterior is None:
        posterior = infer(model, x, mask=mask) if model.amortized else model.posterior
    if len(source) != posterior.num_data:
        raise ValueError(
            f"x: expected {posterior.num_data} rows, as the posterior has, got {len(source)}"
            + ("; for new data pass posterior=infer(model, x)" if own else "")
        )
    with alone(model), drawing_of(model, stream(seed, MODULES)):
        modes = [(part, part.training) for part in model.modules()]
        model.eval()
        try:
            filled = []
            for rows in np.split(np.arange(len(source)), range(chunk, len(source), chunk)):
                values = _filled(model, posterior, source, rows, num_draws, estimate, seed)
                filled.append(values if interval is None else _bounds(values, interval))
        finally:
            for part, training in modes:
                part.training = training
    return torch.cat(filled, dim=-2)


def _filled(
    model: LatentModel,
    posterior: RelayPosterior,
    source: Opened,
    rows: np.ndarray,
    num_draws: int | None,
    estimate: str | None,
    seed: int,
) -> Tensor:
    like = next(model.posterior.parameters())
    x, mask = source.read(rows)
    # says what should not be there
    shown, observed = convert(x, mask, like.dtype, rows, model.scaler, model.law)
    observed = None if observed is None else observed.to(like.device)
    factor = 1.0 if num_draws is None else getattr(posterior, "scale_factor", 1.0)
    law = model.widened(factor).law.of_rows(shown.to(like.device), observed)
    index = torch.from_numpy(rows).to(like.device)
    if num_draws is None:
        outputs = model.decode(posterior.mean(index))
        values = model.to_data(law.estimate(outputs, estimate))
    else:
        z = posterior(index, num_samples=num_draws, seed=stream(seed, NOISE)).z
        outputs, keys = model.decode(z), posterior.noise_index(index)
        keys = index if keys is None else keys
        noise = _noise(outputs, law.num_noise, keys, stream(seed, _AROUND))
        values = model.to_data(law.sample(outputs, noise=noise))
    mask = data_pixels.observed(x) if mask is None else mask
    x, mask = x.to(values.device), mask.to(values.device)
    x = data_pixels.fractions(x, values.dtype) if data_pixels.is_pixels(x) else x
    source.release(int(rows[0]), int(rows[-1]) + 1)
    return torch.where(mask, x, values.to(x.dtype))


def _bounds(drawn: Tensor, interval: float) -> Tensor:
    """Quantiles [2, B, D] of draws [S, B, D]; entries that are observed stay as they are."""
    count = len(drawn)
    ranked = drawn.sort(0).values
    # the k-th of n lies above a further draw with the probability k / (n + 1)
    low = (0.5 - interval / 2) * (count + 1)
    first = min(max(round(low) - 1, 0), count - 1)
    return torch.stack([ranked[first], ranked[count - 1 - first]])


def _noise(values: Tensor, size: int, keys: Tensor, seed: int) -> Tensor | None:
    """Standard normal draws [S, B, size] like `values`, of rows with these numbers [B]."""
    if not size:
        return None
    samples = len(values)
    layout = RowLayout.resolve(size, (), (), "linear")
    # the posterior of mean 0 and log standard deviation 0, which every row has
    row, relays = values.new_zeros(1, layout.width), values.new_zeros(0, size)
    index = torch.zeros_like(keys)
    return relay_sample(
        row, relays, index, seed, layout=layout, num_samples=samples, noise_index=keys
    ).z
