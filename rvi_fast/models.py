"""Latent-variable models: a posterior, a decoder and a likelihood."""

from __future__ import annotations

import copy
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from . import _checks
from .drawing import drawing_from
from .files import StrPath
from .likelihoods.base import Likelihood, lacking
from .likelihoods.foreign import as_likelihood, lacks
from .likelihoods.named import described, make
from .memory.room import check_memory
from .posteriors.base import as_posterior
from .posteriors.encoder import EncoderPosterior
from .posteriors.relay import RelayPosterior
from .scaler import Scaler

# where the decoder's last layer and the likelihood are one op: autograd calls its two halves apart, at
# the price of a matrix product more, which on the CPU is more than the means cost
_ONE_OP = ("cuda",)
# rows decoded at once when a whole table is asked for
_CHUNK = 8192
# layers whose output is as wide as their input
_ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
    nn.Dropout,
)
# held by the thread that changes modes or scale of a model for a while
_LOCKS: weakref.WeakKeyDictionary[nn.Module, AbstractContextManager[bool]]
_LOCKS = weakref.WeakKeyDictionary()
if hasattr(os, "register_at_fork"):  # who held one in the parent is not in the child
    os.register_at_fork(after_in_child=_LOCKS.clear)
# the model that this thread talks to in the model's own units, see `LatentModel.own_units`
_OWN = threading.local()


class Objective(NamedTuple):
    """Loss and its two parts, each a mean over the batch, in nats."""

    loss: Tensor
    kl: Tensor
    log_prob: Tensor


_register_namedtuple(Objective, serialized_type_name="rvi_fast.models.Objective")


class LatentModel(nn.Module):
    """p(z) p(x | z) with a posterior for each datapoint.

        loss = mean over the batch of (kl_weight * kl - log p(x | z))

    With kl_weight = 1 the loss is the negative evidence lower bound.

    A model that `fit` has standardised carries the scale of its data, and speaks their units: x goes in
    and comes out in the units of the data, and densities are densities there. Posterior and decoder
    themselves see and give standardised numbers.

    Args:
        posterior: gives z and kl for row numbers, a `RelayPosterior`; or for row numbers and data, an
            `EncoderPosterior`.
        decoder: any module from z [..., T] to the likelihood's outputs [..., K]: means [..., D] for a
            Gaussian one, see `likelihoods`.
        likelihood: gives log p(x | z) from x and the decoder's output, see `likelihoods.Likelihood`. A
            module of your own that has `num_features` and `forward(x, outputs, mask)` will do;
            `reconstruct` and `impute` then need its `mean(outputs)`, the expected x, and draws its
            `sample(outputs)`.
        config: what `rvi_fast.load` needs to build the model again: {"builder": name, ...
            arguments}. The builders set it; None for a model of your own.

    Attributes:
        scaler: a `Scaler`, the data's scale, in `state_dict` too; None until `fit` sets it, and for
            pixels.

    Raises:
        ValueError: the decoder's layers say that it does not take T latents, or does not give K outputs.
            Those of another decoder are counted where they are first made.

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

    scaler: Scaler | None
    # fingerprint of the data that `fit` has trained it on
    trained_on: dict[str, Any] | None = None

    def __init__(
        self,
        posterior: RelayPosterior | EncoderPosterior,
        decoder: nn.Module,
        likelihood: nn.Module,
        *,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # Any: whoever reads rows or relays of it knows that it owns them
        self.posterior: Any = posterior
        self.decoder = decoder
        self.likelihood: Any = likelihood
        self.config = config
        self.register_module("scaler", None)
        self._check_width(_width_after(decoder, getattr(posterior, "latent_dim", None)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # pickles of 0.1.0 have no scale
        self._modules.setdefault("scaler", None)

    @property
    def num_data(self) -> int:
        """Number of datapoints N that the posterior has."""
        return self.posterior.num_data

    @property
    def num_features(self) -> int:
        """Number of features D that the likelihood has."""
        return self.likelihood.num_features

    @property
    def law(self) -> Likelihood:
        """The likelihood as `likelihoods.Likelihood`, whatever module it is."""
        return as_likelihood(self.likelihood)

    @property
    def amortized(self) -> bool:
        """Whether an encoder computes the posterior from the data; if not, each row owns its own."""
        return not as_posterior(self.posterior).owns_rows

    def forward(
        self,
        index: Tensor,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        kl_weight: float | Tensor = 1.0,
        seed: Tensor | int | None = None,
    ) -> Objective:
        """The objective of a batch of rows, and its two parts.

        Args:
            index: rows [B].
            x: data [B, D], NaN = missing, in the data's units.
            mask: bool [B, D], true = observed.
            kl_weight: factor of the KL divergence.
            seed: key of the noise, see `RelayPosterior.forward`.

        Returns:
            The `Objective`; log_prob is a density in the data's units.
        """
        if (scaler := self._between_units()) is None:
            given = (x, mask) if self.amortized else ()
            z, kl = self.posterior(index, *given, seed=seed)
            kl, log_prob = kl.mean(), self.log_prob(x, z, mask).mean()
            return Objective(kl_weight * kl - log_prob, kl, log_prob)
        own, volume = self._from_data(scaler, x), scaler.log_volume(x, mask).mean()
        with self.own_units():
            loss, kl, log_prob = LatentModel.forward(
                self, index, own, mask, kl_weight=kl_weight, seed=seed
            )
        volume = volume.to(log_prob.device, log_prob.dtype)
        return Objective(loss + volume, kl, log_prob - volume)

    def log_prob(self, x: Tensor, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x | z) of the observed entries in nats, [B] or [S, B], a density in the data's units.

        On a GPU, where the decoder is an `nn.Sequential` that ends in an `nn.Linear` and nothing looks
        at that layer's output, likelihood and layer are one op and the means are not written down.

        Args:
            x: data [B, D], NaN = missing, in the data's units.
            z: latents [B, T] or [S, B, T].
            mask: bool [B, D], true = observed.
        """
        if (scaler := self._between_units()) is not None:
            own, volume = self._from_data(scaler, x), scaler.log_volume(x, mask)
            with self.own_units():
                log_prob = LatentModel.log_prob(self, own, z, mask)
            return log_prob - volume.to(log_prob.device, log_prob.dtype)
        before, last = _split(self.decoder)
        law = self.likelihood
        one = x.device.type in _ONE_OP and isinstance(law, Likelihood) and law.fused
        if last is None or not one or not _plain(law, type(law)):
            return law(x, self.decode(z), mask)
        for layer in before:
            z = layer(z)
        return law.of_linear(x, z, last, mask)

    def decode(self, z: Tensor) -> Tensor:
        """The decoder's output [..., D] for latents [..., T].

        Raises:
            ValueError: it has another width than the likelihood.
        """
        outputs = self.decoder(z)
        self._check_width(outputs.shape[-1])
        return outputs

    def _check_width(self, width: int | None) -> None:
        expected = self.law.num_outputs
        # a likelihood of the user's own need not say
        if None not in (width, expected) and width != expected:
            raise ValueError(
                f"decoder: expected {expected} outputs, which the likelihood takes, got {width}"
            )

    @property
    def last_bias(self) -> nn.Parameter | None:
        """The bias [K] of the decoder's last layer, where that is a plain linear one and has one."""
        last = _split(self.decoder)[1]
        return None if last is None else last.bias

    @torch.no_grad()
    def check_decoder(self) -> None:
        """Refuses a decoder that does not take latents [B, T], or does not give outputs [B, K].

        Where its layers do not say so, it is called with two rows of zeros, in eval mode.

        Raises:
            ValueError: names what was expected and what came.
        """
        latent_dim = getattr(self.posterior, "latent_dim", None)
        width = _width_after(self.decoder, latent_dim)
        if width is None and latent_dim is not None:
            like = next(self.posterior.parameters())
            with alone(self), drawing_from(0):
                modes = [(part, part.training) for part in self.decoder.modules()]
                self.decoder.eval()
                try:
                    outputs = self.decoder(like.new_zeros((2, latent_dim)))
                except RuntimeError as error:
                    raise ValueError(
                        f"decoder: expected a module that takes latents [B, {latent_dim}], got one "
                        f"that fails: {error}"
                    ) from error
                finally:
                    for part, training in modes:
                        part.training = training
            width = outputs.shape[-1]
        self._check_width(width)

    @torch.no_grad()
    def reconstruct(
        self, index: Tensor | None = None, *, posterior: RelayPosterior | None = None
    ) -> Tensor:
        """Decodes posterior means to the data's units: [B, D] for rows `index`, [N, D] for all rows.

        Args:
            index: rows [B]; all rows if not given.
            posterior: of which datapoints, for instance the result of `infer`; the model's own
                (the training data's) if not given, which an encoder has not.

        Returns:
            In the model's dtype, and float64 where the model has a scale.

        Raises:
            ValueError: the model has an encoder and no posterior is given, or its likelihood does not
                say what mean its outputs stand for.
        """
        return self.to_data(self.reconstruct_standardized(index, posterior=posterior))

    @torch.no_grad()
    def reconstruct_standardized(
        self, index: Tensor | None = None, *, posterior: RelayPosterior | None = None
    ) -> Tensor:
        """As `reconstruct`, in the units of the model: standardised, where it has a scale."""
        if posterior is None and self.amortized:
            raise ValueError(
                "posterior: expected infer(model, x), got None: an encoder keeps no datapoints"
            )
        return self.ability("mean")(self._outputs(index, posterior))

    @torch.no_grad()
    def scored(
        self,
        x: Tensor,
        mask: Tensor | None,
        index: Tensor | None = None,
        *,
        posterior: RelayPosterior | None = None,
        shown: tuple[Tensor, Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What an error of the reconstruction compares, both [B, D], in the units of the model.

        Args:
            x, mask: the data of these rows, in the units of the model.
            index, posterior: as in `reconstruct`.
            shown: x and mask as the posterior has seen them, if others.
        """
        law = self.law.of_rows(*((x, mask) if shown is None else shown))
        return law.scored(x, self._outputs(index, posterior))

    def _outputs(self, index: Tensor | None, posterior: RelayPosterior | None) -> Tensor:
        """The decoder's, of posterior means."""
        means = (self.posterior if posterior is None else posterior).mean(index)
        return torch.cat([self.decode(part) for part in means.split(_CHUNK)])

    def to_data(self, values: Tensor) -> Tensor:
        """[..., D] in the units of the model -> the data's units, float64 where there is a scale."""
        return values if self.scaler is None else self.scaler.to_data(values)

    def ability(self, name: str) -> Callable[..., Tensor]:
        """A method that a likelihood need not have: "mean", "mode" or "sample", of the outputs.

        Raises:
            ValueError: the likelihood has none.
        """
        if lacks(self.likelihood, name):
            raise ValueError(lacking(self.likelihood, name))
        return getattr(self.law, name)

    def widened(self, factor: float) -> LatentModel:
        """A view of the model whose likelihood has a scale `factor` times as large.

        Parameters and modules are the model's; the model itself is not changed.

        Raises:
            ValueError: the likelihood has no scale.
        """
        if factor == 1.0:
            return self
        other = copy.copy(self)
        other.__dict__["_modules"] = {**self._modules, "likelihood": self.law.widened(factor)}
        return other

    @contextmanager
    def own_units(self) -> Iterator[None]:
        """Within it `forward` and `log_prob`, called by this thread, take x in the model's units."""
        before = getattr(_OWN, "model", None)
        _OWN.model = self
        try:
            yield
        finally:
            _OWN.model = before

    def _between_units(self) -> Scaler | None:
        """What x has to go through, None where it is in the model's units already."""
        own = self.scaler is None or getattr(_OWN, "model", None) is self
        return None if own else self.scaler

    def _from_data(self, scaler: Scaler, x: Tensor) -> Tensor:
        return scaler.to_model(x, next(self.posterior.parameters()).dtype, cut=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # the scale is part of what the other weights mean: it comes and goes with them
        mean = state_dict.get(f"{prefix}scaler.mean")
        if mean is None and any(key.startswith(f"{prefix}decoder.") for key in state_dict):
            self.scaler = None
        elif mean is not None and self.scaler is None:
            own = f"{prefix}scaler."
            parts = {k.removeprefix(own): v for k, v in state_dict.items() if k.startswith(own)}
            device = next(self.posterior.parameters()).device
            self.scaler = Scaler.like(parts).to(device)
        super()._load_from_state_dict(state_dict, prefix, *others)


def alone(model: LatentModel) -> AbstractContextManager[bool]:
    """Within it no other thread works on the model: modes and scale are changed for a while."""
    return _LOCKS.setdefault(model, threading.RLock())


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


def _width_after(module: nn.Module, width: int | None) -> int | None:
    """Features after a decoder, or a part of one, that is given `width`; None where it does not say.

    Raises:
        ValueError: a linear layer takes another number.
    """
    if _plain(module, nn.Sequential):
        for layer in module.children():
            width = _width_after(layer, width)
        return width
    if _plain(module, nn.Linear):
        if width not in (None, module.in_features):
            raise ValueError(f"decoder: expected a layer of {width} inputs, got {module}")
        return int(module.out_features)  # type: ignore[arg-type]
    return width if any(_plain(module, kind) for kind in _ELEMENTWISE) else None


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
    likelihood: Any = "gaussian",
    storage: StrPath = "device",
    shard: range | None = None,
    generator: torch.Generator | None = None,
) -> LatentModel:
    """Relay Variational Inference with a ReLU decoder and, if not told otherwise, one learned scale.

    Args:
        num_data: N.
        num_features: D.
        latent_dim: T.
        hidden: widths of the decoder's hidden layers.
        groups: relay vectors in each group.
        top: coefficients kept in each group: a share, a count, or one of either per group.
        form: "linear", "cluster" or "mixture", see `RelayPosterior`.
        likelihood: the law of the data: "gaussian", "student_t", "bernoulli", "poisson",
            "negative_binomial", ("categorical", k); a list of these, one for each column, see
            `likelihoods.Mixed`; or a `likelihoods.Likelihood` or a module of your own.
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
    return _model(posterior, num_features, hidden, likelihood, config, generator)


def vad(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    hidden: Sequence[int] = (64, 64),
    likelihood: Any = "gaussian",
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
    return _model(posterior, num_features, hidden, likelihood, config, generator)


def vae(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    hidden: Sequence[int] = (64, 64),
    likelihood: Any = "gaussian",
    mask_input: bool = False,
    generator: torch.Generator | None = None,
) -> LatentModel:
    """Variational auto-encoder: the encoder mirrors the decoder, missing inputs are zeros.

    Args:
        num_data: N, rows of the training data.
        num_features: D.
        latent_dim: T.
        hidden: widths of the decoder's hidden layers; the encoder has them in reverse.
        likelihood: the law of the data, see `rvi`. The encoder sees x as it is.
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
    return _model(posterior, num_features, hidden, likelihood, config, generator)


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


def _model(
    posterior: RelayPosterior | EncoderPosterior,
    num_features: int,
    hidden: Sequence[int],
    likelihood: Any,
    config: dict[str, Any],
    generator: torch.Generator | None,
) -> LatentModel:
    _checks.check_positive_int("num_features", num_features)
    law = make(likelihood, num_features)
    # what takes another number of outputs than it has features, and does not say so, is found below
    outputs = as_likelihood(law).num_outputs or num_features
    decoder = _layers(posterior.latent_dim, hidden, outputs, generator)
    if not isinstance(posterior, EncoderPosterior):
        # beside a decoder that knows all columns an encoder learns nothing for a long while
        _start_at_zero(decoder[-1].bias, as_likelihood(law))  # type: ignore[arg-type]
    config = {name: _checks.plain(value) for name, value in config.items()}
    said = described(law)
    if said != {"law": "gaussian"}:  # that of all models of 0.1.0 and 0.2.0
        config["likelihood"] = said
    # a law without a name cannot be made again from a file
    return LatentModel(posterior, decoder, law, config=None if said is None else config)


@torch.no_grad()
def _start_at_zero(bias: nn.Parameter, law: Likelihood) -> None:
    """Leaves to `fit` where outputs start whose law knows that from data: it asks for zeros."""
    known = ~torch.isnan(law.initial_outputs(bias.new_zeros(2, len(bias))))
    bias.masked_fill_(known, 0.0)


def _layers(
    inputs: int, hidden: Sequence[int], outputs: int, generator: torch.Generator | None
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        _checks.check_positive_int("hidden", width)
    widths = [inputs, *map(int, hidden), outputs]
    weights = sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(widths))
    size = weights * torch.get_default_dtype().itemsize
    advice = "lower latent_dim, hidden or num_features"
    check_memory(torch.get_default_device(), "network", size, advice)
    with drawing_from(generator):
        for width in widths[1:-1]:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, outputs))
