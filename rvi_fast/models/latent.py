"""A posterior, a decoder and a likelihood, as one module."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from ..drawing import drawing_from
from ..likelihoods.base import Likelihood, lacking
from ..likelihoods.foreign import as_likelihood, lacks
from ..posteriors.base import as_posterior
from ..posteriors.encoder import EncoderPosterior
from ..posteriors.relay import RelayPosterior
from ..scaler import Scaler
from .decoder import last_bias, plain, split_last, width_after

# where the decoder's last layer and the likelihood are one op: autograd calls its two halves apart, at
# the price of a matrix product more, which on the CPU is more than the means cost
_ONE_OP = ("cuda",)
# rows decoded at once when a whole table is asked for
_CHUNK = 8192
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
        columns: names of the features, if `fit` was given a DataFrame; others are refused then.

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
    # names of the features, where they came as a DataFrame
    columns: tuple[str, ...] | None = None

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
        self._check_width(width_after(decoder, getattr(posterior, "latent_dim", None)))

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

    if TYPE_CHECKING:  # nn.Module says of a call that it gives anything

        def __call__(
            self,
            index: Tensor,
            x: Tensor,
            mask: Tensor | None = None,
            *,
            kl_weight: float | Tensor = 1.0,
            seed: Tensor | int | None = None,
        ) -> Objective: ...

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
        before, last = split_last(self.decoder)
        law = self.likelihood
        one = x.device.type in _ONE_OP and isinstance(law, Likelihood) and law.fused
        if last is None or not one or not plain(law, type(law)):
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
        """The bias [K] that the decoder adds at the end, where its layers say so and it has one."""
        return last_bias(self.decoder)

    @torch.no_grad()
    def check_decoder(self) -> None:
        """Refuses a decoder that does not take latents [B, T], or does not give outputs [B, K].

        Where its layers do not say so, it is called with two rows of zeros, in eval mode.

        Raises:
            ValueError: names what was expected and what came.
        """
        latent_dim = getattr(self.posterior, "latent_dim", None)
        width = width_after(self.decoder, latent_dim)
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
