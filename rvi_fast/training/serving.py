"""Rows in, imputations out: inference and imputation of new rows as one module without state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from .. import _checks
from .._devices import beside
from ..data.pixels import observed
from ..layout import RowLayout
from ..likelihoods.foreign import as_likelihood
from ..models import LatentModel
from ..ops import ops
from ..posteriors.base import as_posterior
from ..posteriors.encoder import EncoderPosterior
from ..posteriors.relay import RelayPosterior
from ..reference import HISTORY_COLUMNS
from ..scaler import Scaler
from .loop.seeds import stream
from .loop.step import LinearChain, decoder_step

# of `RowAdam`
_ADAM = (0.9, 0.999, 1e-8, 0.0, "row")


class RowImputer(nn.Module):
    """Fills in rows that a trained model has not seen, in a fixed number of steps.

    `forward(x)` is `impute(model, x, posterior=infer(model, x, shared_noise=True, ...))`: the missing
    entries of each row get the estimate of its own posterior. Nothing is kept between calls, and nothing
    is changed by them, so that threads may call it at once. It is made of torch's ops and those of this
    package alone, so that it can be exported, see `program`.

    What a row gets depends on that row, not on those beside it nor on its place among them: all draw the
    same noise. In `forward` that holds to rounding, as libraries of matrix products round by the number
    of rows. `in_batches` computes every row in a batch of the same size, where on a CPU it held to the
    last digit wherever it was measured.

    Args:
        model: a trained model, one loaded with `rows=False` for instance. What it shares is copied, so
            that training it further changes nothing here.
        steps: Adam steps for each row; as in `infer` if not given.
        lr: learning rate; as in `infer` if not given.
        seed: of the noise.

    Raises:
        ValueError, TypeError: an argument is out of its range; the posterior is one of the user's own.

    Note:
        What `impute` looks at is not looked at here: infinite numbers, and what the likelihood cannot
        give, go through as they are; what a decoder of one's own draws in eval mode comes from torch's
        default generator. A program of `torch.export` needs `import rvi_fast` where it runs. A model
        whose columns are bent (`data.ColumnTransform`) serves here, and cannot be exported.

    Example:
        >>> import torch, rvi_fast
        >>> from rvi_fast.training import RowImputer
        >>> model = rvi_fast.models.rvi(100, 3, latent_dim=2, groups=(4,))
        >>> serve = RowImputer(model, steps=10)
        >>> x = torch.tensor([[0.5, torch.nan, 1.0], [torch.nan, 2.0, 0.0]])
        >>> program = serve.program(x).module()
        >>> bool(torch.isfinite(program(x)).all()), torch.allclose(program(x), serve(x))
        (True, True)
    """

    def __init__(
        self,
        model: LatentModel,
        *,
        steps: int | None = None,
        lr: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        own = as_posterior(model.posterior)
        if not isinstance(own, RelayPosterior | EncoderPosterior):
            raise TypeError(
                "model: expected a RelayPosterior or an EncoderPosterior, got "
                f"{type(model.posterior).__name__}"
            )
        least = _checks.check_positive_int if own.owns_rows else _checks.check_count
        usual = 100 if own.owns_rows else own.refine_steps
        self.steps = least("steps", usual if steps is None else steps)
        self.rate = _checks.check_positive_float("lr", own.refine_lr if lr is None else lr)
        seed = _checks.check_seed(seed)
        self.layout: RowLayout = model.posterior.layout
        self.learn_std: bool = getattr(model.posterior, "learn_std", True)
        self.log_prob = _LogProb(*map(copy.deepcopy, (model.decoder, model.likelihood)))
        # the gradient of it as a graph of torch's ops, while a program is made
        self._traced: Callable[..., tuple[Tensor, Tensor]] | None = None
        self.scaler = copy.deepcopy(model.scaler)
        self.encoder: EncoderPosterior | None = None
        like = next(model.posterior.parameters()).detach()
        if isinstance(own, RelayPosterior):
            start, relays = own.mean_row(), own.relays.detach().clone()
        else:
            self.encoder = copy.deepcopy(model.posterior)
            start, relays = like.new_empty(0), like.new_empty((0, own.latent_dim))
        self.register_buffer("start", start)
        self.register_buffer("relays", relays)
        seeds = [stream(seed, step) for step in range(self.steps)]
        self.register_buffer("seeds", torch.tensor(seeds, dtype=torch.int64, device=like.device))
        self.requires_grad_(False).eval()

    start: Tensor
    relays: Tensor
    seeds: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fills in the missing entries; observed ones come back as they are.

        Args:
            x: rows [B, D], floating point, in the units of the training data; NaN = missing.
            mask: bool [B, D], true = observed.

        Returns:
            [B, D] in the dtype of x. There is no gradient.
        """
        with torch.no_grad():
            mask = observed(x) if mask is None else mask
            own = x.to(self.relays.dtype)
            if self.scaler is not None:
                self._check_exportable(self.scaler)
                own = self.scaler.to_model(x, self.relays.dtype)
            own = torch.where(mask, own, torch.nan)
            rows = self._inferred(own)
            z = self._sample(rows, rows.new_zeros((1, len(rows), self.layout.latent_dim)))[0]
            outputs = self.log_prob.decoder(z[0])
            law = as_likelihood(self.log_prob.likelihood)
            values = law.of_rows(own, None).estimate(outputs)
            if self.scaler is not None:
                values = self.scaler.to_data(values)
            return torch.where(mask, x, values.to(x.dtype))

    def in_batches(self, x: Tensor, mask: Tensor | None = None, *, batch_size: int = 64) -> Tensor:
        """`forward` of any number of rows, in batches that are filled up to `batch_size` rows each.

        What a row gets depends, on a CPU to the last digit, on that row and on `batch_size` alone.

        Args:
            x, mask: as in `forward`.
            batch_size: rows computed together.
        """
        _checks.check_positive_int("batch_size", batch_size)
        mask = observed(x) if mask is None else mask
        filled = []
        for rows, known in zip(x.split(batch_size), mask.split(batch_size), strict=True):
            short = (0, 0, 0, batch_size - len(rows))
            padded = nn.functional.pad(rows, short), nn.functional.pad(known, short)
            filled.append(self(*padded)[: len(rows)])
        return torch.cat(filled)

    def program(self, x: Tensor) -> torch.export.ExportedProgram:
        """`forward` of as many rows as x has, as `torch.export.export` gives it.

        Where derivatives come from autograd they are traced first, which `torch.export.export` itself
        cannot do: called directly it takes dense decoders under a likelihood that is an op, such as a
        Gaussian, Laplace or Bernoulli one, and refuses others.

        Args:
            x: rows [B, D] like those that the program is for, in their number and dtype.

        Raises:
            ValueError: the model bends columns, which is counted outside torch.
        """
        if isinstance(self._decoder_step(), LinearChain) or not self.steps:
            return torch.export.export(self, (x,))
        dtype = self.relays.dtype
        z, data = self.relays.new_zeros((len(x), self.layout.latent_dim)), x.to(dtype)
        uphill = z.new_full((1, len(x)), -1.0)
        gradient = partial(_gradient, self.log_prob)
        self._traced = make_fx(gradient)(self._values(), z, data, uphill)
        try:
            return torch.export.export(self, (x,))
        finally:
            self._traced = None

    def _check_exportable(self, scaler: Scaler) -> None:
        if scaler.knots is not None and torch.compiler.is_exporting():
            raise ValueError(
                "model: expected a scale alone for torch.export, got one with a ColumnTransform"
            )

    def _inferred(self, x: Tensor) -> Tensor:
        """Rows [B, W] after their steps, from data [B, D] in the model's units."""
        count = len(x)
        rows = self.start.repeat(count, 1) if self.encoder is None else self.encoder.encode(x)
        moments = torch.zeros_like(rows), torch.zeros_like(rows)
        visits = torch.zeros(count, dtype=torch.int32, device=x.device)
        place = torch.arange(count, device=x.device)
        lr = torch.full((), self.rate, dtype=torch.float64, device=beside(x.device))
        clock = torch.zeros(2, dtype=torch.int64, device=lr.device)
        history = lr.new_zeros((1, HISTORY_COLUMNS))
        zeros = rows.new_zeros((1, count, self.layout.latent_dim))
        uphill = rows.new_full((1, count), -1.0)
        decoder = self._decoder_step()
        for step in range(self.steps):
            sampled = 4 * step >= 3 * self.steps
            noise = None if sampled else zeros
            seed = self.seeds[step : step + 1]
            z, kl, *saved = self._sample(rows, noise, seed)
            _, grad_z = decoder(z[0], x, None, uphill)
            batch = (grad_z[None], torch.ones_like(kl), rows, self.relays, place, seed, noise)
            grad, _ = ops.relay_sample_bwd(
                *batch, *saved, *self._constants(), True, False, torch.zeros_like(place)
            )
            if not (sampled and self.learn_std):
                grad[:, self.layout.log_std_slice] = 0.0
            tables = (rows, *moments, visits)
            ops.row_adam_step(*tables, place, grad, clock, history, lr, *_ADAM)
        return rows

    def _sample(
        self, rows: Tensor, noise: Tensor | None, seed: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        place = torch.arange(len(rows), device=rows.device)
        # noise that is given has no seed
        seed = self.seeds.new_zeros(1) if seed is None else seed
        batch = (rows, self.relays, place, seed, noise)
        found: tuple[Tensor, ...] = ops.relay_sample_fwd(
            *batch, *self._constants(), 1, torch.zeros_like(place)
        )
        return found

    def _constants(self) -> tuple[Any, ...]:
        return self.layout.groups, self.layout.kept, self.layout.form

    def _decoder_step(self) -> Callable[..., tuple[Tensor, Tensor]]:
        # of a model it asks for these two
        found = decoder_step(cast(LatentModel, self.log_prob), learn=False)
        return found if isinstance(found, LinearChain) else self._by_autograd

    def _by_autograd(
        self, z: Tensor, x: Tensor, mask: Tensor | None, grad_log_prob: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `DecoderStep`, of any decoder and any likelihood."""

        gradient: Callable[..., tuple[Tensor, Tensor]] = partial(_gradient, self.log_prob)
        if torch.compiler.is_exporting():
            if self._traced is None:
                raise ValueError(
                    "torch.export: expected RowImputer.program(x), which knows the derivatives of this "
                    "decoder and likelihood, got torch.export.export"
                )
            gradient = self._traced
        return gradient(self._values(), z, x, grad_log_prob)

    def _values(self) -> dict[str, Tensor]:
        return {**dict(self.log_prob.named_parameters()), **dict(self.log_prob.named_buffers())}


class _LogProb(nn.Module):
    """log p(x | z) [B] of the observed entries."""

    def __init__(self, decoder: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.decoder, self.likelihood = decoder, likelihood

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        found: Tensor = self.likelihood(x, self.decoder(z), None)
        return found


def _gradient(
    log_prob: _LogProb, values: dict[str, Tensor], z: Tensor, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(x | z) [1, B] and its gradient at z [B, T], given that of the former [1, B]."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = torch.func.functional_call(log_prob, values, (z, x))
        (grad_z,) = torch.autograd.grad(value, z, grad[0].to(value.dtype))
    return value.detach()[None], grad_z
