"""The solution of a linear-Gaussian model as the start of one with relays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data.pixels import fractions, observed
from ..models import LatentModel, LinearGaussian, Skip
from ..models.decoder import split_last
from ..models.linear_em import Factors, latents
from ..models.linear_rows import Rows
from ..posteriors.base import as_posterior
from ..posteriors.relay import RelayPosterior
from ..scaler import Scaler
from .inputs.feed import HostInputs
from .inputs.prepare import Inputs, inputs_of
from .opening import checked, set_scale
from .settings import Settings

# rows written at a time
_CHUNK = 8192
# what is left of the coefficients as they were drawn: relays that say something before any was learned
# cost RVI an epoch (MNIST, half missing, 32 factors, error of observed pixels after 9 epochs: .0744 with
# all of it, .0743 with relays at posterior means, .0746 with relays that explain a fifth of them, .0737
# with none; VAD .0738)
_LEFT = 0.01


@torch.no_grad()
def start_linear(
    model: LatentModel,
    linear: LinearGaussian,
    x: Any,
    mask: Any = None,
    *,
    standardize: bool = Settings.standardize,
) -> None:
    """Puts a fitted linear-Gaussian model into a model, whose training then starts from it.

    Afterwards the model reconstructs what the linear one does: the linear path of its decoder and the
    bias are those of the linear model, turned so that latents are its principal axes; what hidden layers
    give is multiplied by 0; and the likelihood has its noise, if its scale is learned (that of another
    law than the Gaussian's is set to the standard deviation of the noise). Relay and deviation of a row
    together are the mean of its posterior; the relay is near 0 for now, its coefficients (but for a
    mixture's) a hundredth of what they were. The standard deviations are those of the independent
    Gaussians that are nearest to the posterior, 1 in dimensions that the linear model has not. Under a
    Gaussian likelihood the evidence lower bound of a row is then the linear model's log p(x) less

        1/2 (sum_t log M_tt - log |M|),    M = I + W_o^T psi_o^-1 W_o    (o: what the row shows)

    if one noise holds for all features, or the likelihood has one for each. An encoder is left as it is.

    Args:
        model: with `skip`, or without hidden layers; it has at least as many latent dimensions as the
            linear model. Rows, decoder and scale are overwritten.
        linear: fitted to data in the units of x.
        x: data [N, D] as `fit` takes them, of all rows of the model.
        mask: bool [N, D], true = observed.
        standardize: as in `fit`, which is then to be called with the same: a model that has no scale
            gets that of the data.

    Raises:
        ValueError, TypeError: x and mask are none that `fit` takes; the decoder has no linear path, or
            too few latents; the likelihood is none of shifted and scaled data; the model bends columns.

    Example:
        >>> import torch, rvi_fast
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> linear = rvi_fast.models.ppca(3, latent_dim=2).fit(x)
        >>> model = rvi_fast.models.rvi(50, 3, latent_dim=2, groups=(4,), skip=True)
        >>> rvi_fast.training.start_linear(model, linear, x)
        >>> bool(torch.allclose(model.reconstruct(), linear.predictive(x)[0], atol=1e-4))
        True
    """
    settings, ranks, source = checked(model, x, mask, Settings(standardize=standardize))
    last, log_scale = _linear_path(model, linear), model.likelihood.log_scale
    if settings.standardize:
        set_scale(model, source, ranks, settings)
    found = _in_units_of(model.scaler, linear)
    noise = found.noise if log_scale.dim() else found.noise.mean().expand(len(found.noise))
    # principal axes: what a whole row says of one latent does not depend on the others
    strength = found.weight.T @ (found.weight / noise[:, None])
    turn = torch.linalg.eigh(strength)[1].flip(1)
    first = last.in_features - model.posterior.latent_dim
    last.weight.zero_()
    last.weight[:, first : first + linear.latent_dim] = (found.weight @ turn).to(last.weight)
    last.bias.copy_(found.bias)
    if isinstance(log_scale, nn.Parameter):
        log_scale.copy_(0.5 * (noise if log_scale.dim() else noise[0]).log())
    if as_posterior(model.posterior).owns_rows:
        inputs = inputs_of(model, source, checked=settings.standardize)
        _start_rows(model.posterior, inputs, found, turn, noise)


def _linear_path(model: LatentModel, linear: LinearGaussian) -> nn.Linear:
    """The decoder's last layer, which sees the latents behind what hidden layers give."""
    before, last = split_last(model.decoder)
    direct = not before or (len(before) == 1 and isinstance(before[0], Skip))
    if last is None or last.bias is None or not direct:
        raise ValueError(
            "model: expected a decoder with a linear path from latents to outputs (skip=True, or "
            f"hidden=()), got {model.decoder}"
        )
    if not model.law.location_scale or not hasattr(model.likelihood, "log_scale"):
        raise ValueError(
            "model: expected a likelihood of shifted and scaled data, got "
            f"{type(model.likelihood).__name__}"
        )
    if linear.num_features != model.num_features:
        raise ValueError(
            f"linear: expected {model.num_features} features, got {linear.num_features}"
        )
    if linear.latent_dim > model.posterior.latent_dim:
        raise ValueError(
            f"linear: expected at most {model.posterior.latent_dim} factors, which the model has "
            f"latents for, got {linear.latent_dim}"
        )
    return last


def _in_units_of(scaler: Scaler | None, linear: LinearGaussian) -> Factors:
    """The linear model of data in the units of the model."""
    own = linear.factors()
    if scaler is None:
        return own
    if scaler.knots is not None:
        raise ValueError("model: expected a scale alone, got one that bends columns")
    spread = torch.where(scaler.std == 0, 1.0, scaler.std).to(own.bias)
    mean = scaler.mean.to(own.bias)
    noise = own.noise / spread.square()
    return Factors((own.bias - mean) / spread, own.weight / spread[:, None], noise)


def _start_rows(
    posterior: RelayPosterior,
    inputs: Inputs | HostInputs,
    found: Factors,
    turn: Tensor,
    noise: Tensor,
) -> None:
    """Writes deviations and log standard deviations of all rows.

    Args:
        posterior: whose rows they are.
        inputs: data in the units of the model.
        found: the linear model in these units.
        turn: [R, R], from its latents to the posterior's.
        noise: variances [D] of the likelihood.
    """
    layout, rank = posterior.layout, turn.shape[1]
    squares = (found.weight @ turn).square() / noise[:, None]
    posterior.tables.before_rewrite()
    for index in torch.arange(len(posterior.rows), device="cpu").split(_CHUNK):
        x, mask = inputs.batch(index.to(inputs.device))
        known = observed(x, mask).to(found.bias.device)
        values = fractions(x, torch.float64).to(found.bias.device)
        rows = Rows(torch.where(known, values, 0.0), known.to(torch.float64))
        part = slice(int(index[0]), int(index[-1]) + 1)
        own = posterior.rows[part]
        if layout.form != "mixture":  # whose coefficients are logarithms of shares
            own[:, : layout.deviation_offset] *= _LEFT
        relay = posterior.mean(index.to(posterior.relays.device), deviation=False)
        mean = relay.new_zeros(relay.shape, dtype=torch.float64)
        mean[:, :rank] = latents(found, rows).mean @ turn
        own[:, layout.deviation_slice] = (mean - relay).to(own)
        log_std = torch.zeros_like(mean)
        log_std[:, :rank] = -0.5 * (rows.known @ squares).log1p()
        own[:, layout.log_std_slice] = log_std.to(own)
        posterior.tables.release(part.start, part.stop)
