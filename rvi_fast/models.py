"""Latent-variable models: a posterior, a decoder and a likelihood."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import _checks
from .drawing import drawing_from
from .encoder import EncoderPosterior
from .likelihood import GaussianLikelihood
from .posterior import RelayPosterior
from .storage import StrPath

# where the decoder's last layer and the likelihood are one op: autograd calls its two halves apart, at
# the price of a matrix product more, which on the CPU is more than the means cost
_ONE_OP = ("cuda",)
# rows decoded at once when a whole table is asked for
_CHUNK = 8192


class Objective(NamedTuple):
    """Loss and its two parts, each a mean over the batch, in nats."""

    loss: Tensor
    kl: Tensor
    log_prob: Tensor


class LatentModel(nn.Module):
    """p(z) p(x | z) with a posterior for each datapoint.

        loss = mean over the batch of (kl_weight * kl - log p(x | z))

    With kl_weight = 1 the loss is the negative evidence lower bound.

    Args:
        posterior: gives z and kl for row numbers, a `RelayPosterior`; or for row numbers and data, an
            `EncoderPosterior`.
        decoder: any module from z [..., T] to means [..., D].
        likelihood: gives log p(x | z) from x and the decoder's output.
        config: what `rvi_fast.load` needs to build the model again: {"builder": name, ...
            arguments}. The builders set it; None for a model of your own.

    Example:
        >>> import torch, rvi_fast
        >>> model = rvi_fast.models.LatentModel(
        ...     rvi_fast.RelayPosterior(100, 8),
        ...     torch.nn.Linear(8, 5),
        ...     rvi_fast.GaussianLikelihood(5),
        ... )
        >>> model(torch.tensor([0, 1]), torch.zeros(2, 5)).loss.shape
        torch.Size([])
    """

    # fingerprint of the data that `fit` has trained it on
    trained_on: dict[str, Any] | None = None

    def __init__(
        self,
        posterior: RelayPosterior | EncoderPosterior,
        decoder: nn.Module,
        likelihood: GaussianLikelihood,
        *,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.posterior: Any = posterior
        self.decoder = decoder
        self.likelihood = likelihood
        self.config = config

    @property
    def num_data(self) -> int:
        """N."""
        return self.posterior.num_data

    @property
    def num_features(self) -> int:
        """D."""
        return self.likelihood.num_features

    @property
    def amortized(self) -> bool:
        """Whether an encoder computes the posterior from the data; if not, each row owns its own."""
        return getattr(self.posterior, "amortized", False)

    def forward(
        self,
        index: Tensor,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        kl_weight: float | Tensor = 1.0,
        seed: Tensor | int | None = None,
    ) -> Objective:
        """The objective of a batch.

        Args:
            index: rows [B].
            x: data [B, D], NaN = missing.
            mask: bool [B, D], true = observed.
            kl_weight: factor of the KL divergence.
            seed: key of the noise, see `RelayPosterior.forward`.
        """
        given = (x, mask) if self.amortized else ()
        z, kl = self.posterior(index, *given, seed=seed)
        kl, log_prob = kl.mean(), self.log_prob(x, z, mask).mean()
        return Objective(kl_weight * kl - log_prob, kl, log_prob)

    def log_prob(self, x: Tensor, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | z) of the observed entries in nats, [B] or [S, B].

        On a GPU, where the decoder is an `nn.Sequential` that ends in an `nn.Linear` and nothing looks
        at that layer's output, likelihood and layer are one op and the means are not written down.

        Args:
            x: data [B, D], NaN = missing.
            z: latents [B, T] or [S, B, T].
            mask: bool [B, D], true = observed.
        """
        before, last = _split(self.decoder)
        alone = x.device.type not in _ONE_OP or not _plain(self.likelihood, GaussianLikelihood)
        if last is None or alone:
            return self.likelihood(x, self.decoder(z), mask)
        for layer in before:
            z = layer(z)
        return self.likelihood.of_linear(x, z, last, mask)

    @torch.no_grad()
    def reconstruct(
        self, index: Tensor | None = None, *, posterior: RelayPosterior | None = None
    ) -> Tensor:
        """Decodes posterior means: [B, D] for rows `index`, [N, D] for all rows.

        Args:
            index: rows [B]; all rows if not given.
            posterior: of which datapoints, for instance the result of `infer`; the model's own
                (the training data's) if not given, which an encoder has not.
        """
        if posterior is None and self.amortized:
            raise ValueError(
                "posterior: expected infer(model, x), got None: an encoder keeps no datapoints"
            )
        means = (self.posterior if posterior is None else posterior).mean(index)
        return torch.cat([self.decoder(part) for part in means.split(_CHUNK)])


def _plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """The class itself, without hooks: a call of it does what the class says and nothing else.

    A parametrized module has a class of its own.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) is kind and "forward" not in vars(module) and not any(hooks)


def _split(decoder: nn.Module) -> tuple[list[nn.Module], nn.Linear | None]:
    """The layers of a sequence that ends in a linear one, and that one; no layers and None else."""
    layers = list(decoder) if isinstance(decoder, nn.Sequential) else []
    last = layers[-1] if layers else None
    if isinstance(last, nn.Linear) and _plain(last, nn.Linear) and _plain(decoder, nn.Sequential):
        return layers[:-1], last
    return [], None


def rvi(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    hidden: Sequence[int] = (64, 64),
    groups: Sequence[int] = (25, 50, 100),
    top: float | int | Sequence[float | int] = 0.5,
    form: str = "linear",
    storage: StrPath = "device",
    shard: range | None = None,
    generator: torch.Generator | None = None,
) -> LatentModel:
    """Relay Variational Inference with a ReLU decoder and one learned observation scale.

    Args:
        num_data: N.
        num_features: D.
        latent_dim: T.
        hidden: widths of the decoder's hidden layers.
        groups: relay vectors in each group.
        top: coefficients kept in each group: a share, a count, or one of either per group.
        form: "linear", "cluster" or "mixture", see `RelayPosterior`.
        storage: where the rows lie, see `RelayPosterior`.
        shard: the rows that this process holds, see `training.distributed`.
        generator: what all first values are drawn from, `torch.Generator().manual_seed(0)` for
            instance; torch's default generator if not given, so that `torch.manual_seed` holds.
    """
    config = {
        "builder": "rvi",
        "num_data": num_data,
        "num_features": num_features,
        "latent_dim": latent_dim,
        "hidden": list(hidden),
        "groups": list(groups),
        "top": list(top) if isinstance(top, Sequence) else top,
        "form": form,
        **_stored(storage),
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
    )
    return _gaussian_model(posterior, num_features, hidden, config, generator)


def vad(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    hidden: Sequence[int] = (64, 64),
    storage: StrPath = "device",
    shard: range | None = None,
    generator: torch.Generator | None = None,
) -> LatentModel:
    """Variational auto-decoder: `rvi` without groups, each datapoint's posterior stands alone."""
    config = {
        "builder": "vad",
        "num_data": num_data,
        "num_features": num_features,
        "latent_dim": latent_dim,
        "hidden": list(hidden),
        **_stored(storage),
    }
    posterior = RelayPosterior(
        num_data, latent_dim, groups=(), storage=storage, shard=shard, generator=generator
    )
    return _gaussian_model(posterior, num_features, hidden, config, generator)


def vae(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    hidden: Sequence[int] = (64, 64),
    mask_input: bool = False,
    generator: torch.Generator | None = None,
) -> LatentModel:
    """Variational auto-encoder: the encoder mirrors the decoder, missing inputs are zeros.

    Args:
        num_data: N, rows of the training data.
        num_features: D.
        latent_dim: T.
        hidden: widths of the decoder's hidden layers; the encoder has them in reverse.
        mask_input: the encoder sees the mask as well, as D more inputs.
        generator: what all first values are drawn from, see `rvi`.
    """
    config = {
        "builder": "vae",
        "num_data": num_data,
        "num_features": num_features,
        "latent_dim": latent_dim,
        "hidden": list(hidden),
        "mask_input": mask_input,
    }
    for name, size in (("num_features", num_features), ("latent_dim", latent_dim)):
        _checks.check_positive_int(name, size)
    inputs = num_features * (2 if mask_input else 1)
    encoder = _layers(inputs, hidden[::-1], 2 * latent_dim, generator)
    posterior = EncoderPosterior(encoder, num_data, num_features, latent_dim, mask_input=mask_input)
    return _gaussian_model(posterior, num_features, hidden, config, generator)


BUILDERS: dict[str, Callable[..., LatentModel]] = {"rvi": rvi, "vad": vad, "vae": vae}


def build(config: dict[str, Any], *, generator: torch.Generator | None = None) -> LatentModel:
    """Builds a model from `LatentModel.config`; first values are drawn as in `rvi`."""
    arguments = dict(config)
    name = arguments.pop("builder", None)
    if name not in BUILDERS:
        raise ValueError(f"builder: expected one of {', '.join(BUILDERS)}, got {name!r}")
    return BUILDERS[name](**arguments, generator=generator)


def _stored(storage: StrPath) -> dict[str, str]:
    """What `LatentModel.config` says of the storage: nothing where it is the usual one."""
    return {} if storage == "device" else {"storage": os.fspath(storage)}


def _gaussian_model(
    posterior: RelayPosterior | EncoderPosterior,
    num_features: int,
    hidden: Sequence[int],
    config: dict[str, Any],
    generator: torch.Generator | None,
) -> LatentModel:
    _checks.check_positive_int("num_features", num_features)
    decoder = _layers(posterior.latent_dim, hidden, num_features, generator)
    return LatentModel(posterior, decoder, GaussianLikelihood(num_features), config=config)


def _layers(
    inputs: int, hidden: Sequence[int], outputs: int, generator: torch.Generator | None
) -> nn.Sequential:
    layers: list[nn.Module] = []
    with drawing_from(generator):
        for width in hidden:
            _checks.check_positive_int("hidden", width)
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, outputs))
