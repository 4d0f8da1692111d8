"""Models by the names of the paper: RVI, VAD and the VAE."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from .. import _checks
from ..files import StrPath
from ..layout import Form
from ..likelihoods.base import Likelihood
from ..likelihoods.foreign import as_likelihood
from ..likelihoods.named import described, make
from ..likelihoods.parameters import set_scale
from ..posteriors.encoder import EncoderPosterior
from ..posteriors.relay import RelayPosterior
from .decoder import last_bias
from .latent import LatentModel
from .networks import Network, dense


def rvi(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    hidden: Sequence[int] | None = None,
    groups: Sequence[int] = (25, 50, 100),
    top: float | int | Sequence[float | int] = 0.5,
    form: Form = "linear",
    decoder: Literal["dense", "conv"] = "dense",
    image_shape: Sequence[int] | None = None,
    skip: bool = False,
    likelihood: Any = "gaussian",
    initial_log_std: float = RelayPosterior.initial_log_std,
    learn_std: bool = True,
    initial_scale: float = 1.0,
    storage: StrPath = "device",
    shard: range | None = None,
    generator: torch.Generator | None = None,
) -> LatentModel:
    """Relay Variational Inference with a ReLU decoder and, if not told otherwise, one learned scale.

    Args:
        num_data: N.
        num_features: D.
        latent_dim: T.
        hidden: widths of the decoder's hidden layers, (64, 64) if not given; channels of a convolutional
            one, from the smallest image on, (32, 16) if not given.
        groups: relay vectors in each group.
        top: coefficients kept in each group: a share, a count, or one of either per group.
        form: "linear", "cluster" or "mixture", see `RelayPosterior`.
        decoder: "dense", or "conv" for images, see `models.ConvDecoder`.
        image_shape: (height, width) or (channels, height, width) for "conv"; a square if not given.
        skip: the last layer of a dense decoder sees the latents too, beside what the hidden layers give,
            so that it holds a linear model, see `Skip` and `training.start_linear`.
        likelihood: the law of the data: a name that help(rvi_fast.likelihoods) lists, "gaussian" or
            "bernoulli" for instance, or ("categorical", k); a list of these, one for each column, see
            `likelihoods.Mixed`; or a `likelihoods.Likelihood` or a module of your own.
        initial_log_std: what each row's log standard deviations start at, see `RelayPosterior`.
        learn_std: false holds them there.
        initial_scale: where the scale of the likelihood starts, in the units of the model (of
            standardised data, and of pixels in [0, 1]), in every column that has one. 1 leaves the law
            as it is: those that are given by name start at 1.
        storage: where the rows lie, see `RelayPosterior`.
        shard: the rows that this process holds, see `training.distributed`.
        generator: what all first values are drawn from, `torch.Generator().manual_seed(0)` for
            instance; torch's default generator if not given, so that `torch.manual_seed` holds.

    Raises:
        ValueError, TypeError: an argument is out of its range, or the likelihood has no scale that
            could start at `initial_scale`.
    """
    network = Network.of(decoder, hidden, image_shape, num_features, skip)
    config = {
        "builder": "rvi",
        "num_data": num_data,
        "num_features": num_features,
        "latent_dim": latent_dim,
        **network.config(),
        "groups": list(groups),
        "top": list(top) if isinstance(top, Sequence) else top,
        "form": form,
        **_stored(storage, initial_log_std, learn_std),
    }
    posterior = RelayPosterior(
        num_data,
        latent_dim,
        groups=groups,
        top=top,
        form=form,
        storage=storage,
        shard=shard,
        generator=generator,
        initial_log_std=initial_log_std,
        learn_std=learn_std,
    )
    return _model(posterior, num_features, network, likelihood, initial_scale, config, generator)


def vad(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    hidden: Sequence[int] | None = None,
    decoder: Literal["dense", "conv"] = "dense",
    image_shape: Sequence[int] | None = None,
    skip: bool = False,
    likelihood: Any = "gaussian",
    initial_log_std: float = RelayPosterior.initial_log_std,
    learn_std: bool = True,
    initial_scale: float = 1.0,
    storage: StrPath = "device",
    shard: range | None = None,
    generator: torch.Generator | None = None,
) -> LatentModel:
    """Variational auto-decoder: `rvi` without groups, each datapoint's posterior stands alone."""
    network = Network.of(decoder, hidden, image_shape, num_features, skip)
    config = {
        "builder": "vad",
        "num_data": num_data,
        "num_features": num_features,
        "latent_dim": latent_dim,
        **network.config(),
        **_stored(storage, initial_log_std, learn_std),
    }
    posterior = RelayPosterior(
        num_data,
        latent_dim,
        groups=(),
        storage=storage,
        shard=shard,
        generator=generator,
        initial_log_std=initial_log_std,
        learn_std=learn_std,
    )
    return _model(posterior, num_features, network, likelihood, initial_scale, config, generator)


def vae(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    hidden: Sequence[int] | None = None,
    skip: bool = False,
    likelihood: Any = "gaussian",
    initial_scale: float = 1.0,
    mask_input: bool = False,
    refine_steps: int = 0,
    refine_lr: float = EncoderPosterior.refine_lr,
    shard: range | None = None,
    generator: torch.Generator | None = None,
) -> LatentModel:
    """Variational auto-encoder: the encoder mirrors the decoder, missing inputs are zeros.

    With `refine_steps` it is semi-amortised. For the rows of a batch, `fit` then

    1. encodes them: means and log standard deviations lambda_0;
    2. takes K steps lambda_k -> lambda_{k+1} of each row's own Adam (`RowAdam`, mode "row") that raise
       its evidence lower bound, decoder and scale fixed, as `infer` does: three quarters of the steps
       from the decoded mean, which leave the log standard deviations, the rest from samples;
    3. draws z from lambda_K and takes the gradient of the lower bound there: that of decoder and scale
       as it is, that of lambda_K for that of lambda_0, which goes on to the encoder.

    Kim et al. 2018 take steps of gradient ascent with momentum in 2, and in 3 differentiate through
    them, which takes Hessian-vector products; here d lambda_K / d lambda_0 counts as the identity.

    Args:
        num_data: N, rows of the training data.
        num_features: D.
        latent_dim: T.
        hidden: widths of the decoder's hidden layers, (64, 64) if not given; the encoder has them in
            reverse.
        likelihood: the law of the data, see `rvi`. The encoder sees x as it is.
        skip: see `rvi`.
        initial_scale: where the scale of the likelihood starts, see `rvi`.
        mask_input: the encoder sees the mask as well, as D more inputs.
        refine_steps: K; 0 is the VAE. `infer` takes as many if not told otherwise.
        refine_lr: learning rate of those steps.
        shard: the rows that this process trains, see `training.distributed`.
        generator: what all first values are drawn from, see `rvi`.
    """
    network = Network.of("dense", hidden, None, num_features, skip)
    config = {
        "builder": "vae",
        "num_data": num_data,
        "num_features": num_features,
        "latent_dim": latent_dim,
        **network.config(),
        "mask_input": mask_input,
    }
    for name, size in (("num_features", num_features), ("latent_dim", latent_dim)):
        _checks.check_positive_int(name, size)
    inputs = num_features * (2 if mask_input else 1)
    encoder = dense(inputs, network.hidden[::-1], 2 * latent_dim, generator)
    posterior = EncoderPosterior(
        encoder,
        num_data,
        num_features,
        latent_dim,
        mask_input=mask_input,
        refine_steps=refine_steps,
        refine_lr=refine_lr,
        shard=shard,
    )
    if refine_steps:
        config |= {"refine_steps": refine_steps, "refine_lr": refine_lr}
    return _model(posterior, num_features, network, likelihood, initial_scale, config, generator)


BUILDERS: dict[str, Callable[..., LatentModel]] = {"rvi": rvi, "vad": vad, "vae": vae}


def build(config: dict[str, Any], *, generator: torch.Generator | None = None) -> LatentModel:
    """Builds a model from `LatentModel.config`; first values are drawn as in `rvi`."""
    arguments = dict(config)
    name = arguments.pop("builder", None)
    if name not in BUILDERS:
        raise ValueError(f"builder: expected one of {', '.join(BUILDERS)}, got {name!r}")
    return BUILDERS[name](**arguments, generator=generator)


def _stored(storage: StrPath, initial_log_std: float, learn_std: bool) -> dict[str, Any]:
    """What `LatentModel.config` says of the rows: nothing of what is as usual."""
    found: dict[str, Any] = {} if storage == "device" else {"storage": os.fspath(storage)}
    if initial_log_std != RelayPosterior.initial_log_std:
        found["initial_log_std"] = initial_log_std
    if not learn_std:
        found["learn_std"] = False
    return found


def _model(
    posterior: RelayPosterior | EncoderPosterior,
    num_features: int,
    network: Network,
    likelihood: Any,
    initial_scale: float,
    config: dict[str, Any],
    generator: torch.Generator | None,
) -> LatentModel:
    _checks.check_positive_int("num_features", num_features)
    law = make(likelihood, num_features)
    if initial_scale != 1.0:
        set_scale(law, initial_scale)
        config["initial_scale"] = initial_scale
    # what takes another number of outputs than it has features, and does not say so, is found below
    outputs = as_likelihood(law).num_outputs or num_features
    decoder = network.make(posterior.latent_dim, outputs, generator)
    if not isinstance(posterior, EncoderPosterior):
        # beside a decoder that knows all columns an encoder learns nothing for a long while
        _start_at_zero(last_bias(decoder), as_likelihood(law))
    config = {name: _checks.plain(value) for name, value in config.items()}
    said = described(law)
    if said != {"law": "gaussian"}:  # that of all models of 0.1.0 and 0.2.0
        config["likelihood"] = said
    # a law without a name cannot be made again from a file
    return LatentModel(posterior, decoder, law, config=None if said is None else config)


@torch.no_grad()
def _start_at_zero(bias: nn.Parameter | None, law: Likelihood) -> None:
    """Leaves to `fit` where outputs start whose law knows that from data: it asks for zeros."""
    assert bias is not None
    known = ~torch.isnan(law.initial_outputs(bias.new_zeros(2, len(bias))))
    bias.masked_fill_(known, 0.0)
