"""Filling in missing entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..functional import relay_sample
from ..layout import RowLayout
from ..models import LatentModel
from ..posterior import RelayPosterior
from .fingerprint import fingerprint, same
from .infer import alone, infer
from .inputs import prepare
from .seeds import MODULES, NOISE, stream
from .step import drawing_of

# rows decoded at once
_CHUNK = 4096
# use of the seed: what is drawn around decoded latents
_AROUND = 8


@torch.no_grad()
def impute(
    model: LatentModel,
    x: Any,
    *,
    mask: Any = None,
    posterior: RelayPosterior | None = None,
    num_draws: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Fills in the missing entries of x; observed entries come back unchanged.

    Args:
        model: a trained model.
        x: data [N, D] as in `fit`.
        mask: bool [N, D], true = observed.
        posterior: the posteriors of these rows, from `infer`. Not needed for the training data, nor
            where the model has an encoder. Without it x and mask have to be those that `fit` was
            given, in the same order, which is checked; `model.posterior` says that the rows are
            those, whatever else has changed.
        num_draws: S: independent draws from the posterior predictive, z from its posterior and x
            around the decoded z with the model's scale; for multiple imputation. Without it each
            missing entry gets the reconstruction from the posterior mean.
        seed: of the draws: the same seed gives a row the same draws, to rounding, whatever rows stand
            beside it and however many draws are made.

    Returns:
        [N, D], or [S, N, D] draws, in the model's dtype; uint8 data come back as x / 255.

    Raises:
        ValueError, TypeError: as `fit`; x and posterior differ in their number of rows; without a
            posterior, x is not what the model was trained on.
    """
    own = posterior is None
    if num_draws is not None:
        _checks.check_positive_int("num_draws", num_draws)
    seed = _checks.check_seed(seed)
    inputs = prepare(model, x, mask)
    if own and not model.amortized and model.trained_on is not None:
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
    if inputs.num_data != posterior.num_data:
        raise ValueError(
            f"x: expected {posterior.num_data} rows, as the posterior has, got {inputs.num_data}"
            + ("; for new data pass posterior=infer(model, x)" if own else "")
        )
    with alone(model), drawing_of(model, stream(seed, MODULES)):
        modes = [(part, part.training) for part in model.modules()]
        model.eval()
        try:
            parts = [
                _filled(model, posterior, inputs.batch(index), index, num_draws, seed)
                for index in torch.arange(posterior.num_data, device=inputs.device).split(_CHUNK)
            ]
        finally:
            for part, training in modes:
                part.training = training
    return torch.cat(parts, dim=-2)


def _filled(
    model: LatentModel,
    posterior: RelayPosterior,
    batch: tuple[Tensor, Tensor | None],
    index: Tensor,
    num_draws: int | None,
    seed: int,
) -> Tensor:
    x, mask = batch
    if num_draws is None:
        values = model.reconstruct(index, posterior=posterior)
    else:
        z = posterior(index, num_samples=num_draws, seed=stream(seed, NOISE)).z
        mean, keys = model.decoder(z), posterior.noise_index(index)
        noise = _noise(mean, index if keys is None else keys, stream(seed, _AROUND))
        values = mean + model.likelihood.scale * noise
    if x.dtype == torch.uint8:
        observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        x = x.to(values.dtype) / 255
    else:
        observed = ~torch.isnan(x)
    return torch.where(observed, x, values)


def _noise(values: Tensor, keys: Tensor, seed: int) -> Tensor:
    """Standard normal draws [S, B, D] like `values`, of rows with these numbers [B]."""
    samples, _, size = values.shape
    layout = RowLayout.resolve(size, (), (), "linear")
    # the posterior of mean 0 and log standard deviation 0, which every row has
    row, relays = values.new_zeros(1, layout.width), values.new_zeros(0, size)
    index = torch.zeros_like(keys)
    return relay_sample(
        row, relays, index, seed, layout=layout, num_samples=samples, noise_index=keys
    ).z
