"""What `fit` checks before it changes anything, and what it opens around a run."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .._devices import wait_for
from ..data.frames import columns_of
from ..drawing import Drawing
from ..likelihoods.base import observed_of
from ..likelihoods.foreign import lacks
from ..models import LatentModel
from ..posteriors.base import as_posterior
from ..posteriors.encoder import EncoderPosterior
from ..progress import logger
from ..scaler import Scaler
from .distributed.ranks import Alone, ranks_of
from .inputs.feed import HostInputs
from .inputs.fingerprint import Fingerprint, fingerprint, first_fingerprint
from .inputs.prepare import Inputs, inputs_of, open_source, plain
from .inputs.sources import Opened, chunks, moments_of
from .inputs.withheld import Withheld
from .loop.checks import warn_of_prior
from .loop.run import Run
from .loop.seeds import WITHHELD, stream
from .loop.shared import Observed
from .loop.threads import one_thread_where_small
from .places import directory_of, settled
from .runs.checkpoints import CheckpointError, checkpoints, read_manifest
from .runs.directory import RunDirectory
from .settings import Settings


def checked(
    model: LatentModel, x: Any, mask: Any, settings: Settings
) -> tuple[Settings, Alone, Opened]:
    """Checks all of a call of `fit` but the entries of the data; nothing is changed.

    Returns:
        The settings with a value for each None, who trains, and the data.

    Raises:
        ValueError, TypeError: as `fit`.
    """
    as_posterior(model.posterior).check_rows()
    _check_evaluation(model, settings)
    settings = settled(model, settings)
    ranks = ranks_of(model)
    source = open_source(model, *ranks.own(x, mask), num_data=model.num_data)
    standardize = settings.standardize and not source.pixels() and _standardizable(model)
    settings = replace(settings, standardize=standardize)
    _check_standardize(model, settings.standardize, pixels=source.pixels())
    _check_batch_of_one(model, ranks.num_data, settings.batch_size)
    return settings, ranks, source


@contextlib.contextmanager
def opened(
    model: LatentModel, x: Any, mask: Any, settings: Settings, *, shared: SharedInputs | None = None
) -> Iterator[Run]:
    """Within it a run is ready for its steps; afterwards the model is the user's again.

    Args:
        model, x, mask: as `fit` takes them.
        settings: the other arguments of `fit`.
        shared: inputs of other runs of this process, for those that take the same.
    """
    _check_model(model)
    if settings.device is not None:
        _check_evaluation(model, settings)
        model.to(settings.device)
    given, columns = (x, mask), columns_of(x)
    x, mask = plain(model, x, mask)
    settings, ranks, source = checked(model, x, mask, settings)
    kind = source.kind(next(model.posterior.parameters()).dtype)
    ranks.begin(model, kind, settings.called())
    first_row = as_posterior(model.posterior).first_row
    own = fingerprint(*ranks.own(x, mask), model.num_features, first_row)
    data = ranks.added(own)
    ranks.of_first = partial(_of_first, model, ranks, ranks.own(x, mask))
    with contextlib.ExitStack() as stack:
        # a model that no step has changed has no scale either
        unbegun = stack.enter_context(contextlib.ExitStack())
        unbegun.callback(setattr, model, "scaler", model.scaler)
        entries = withheld_of(source, ranks, settings)
        source = source if entries is None else entries.left()
        if settings.standardize:
            set_scale(model, source, ranks, settings)
        made = SharedInputs() if shared is None else shared
        hidden = (settings.held_out, settings.seed) if settings.held_out else None
        inputs = made.of(model, source, (*given, hidden), checked=settings.standardize)
        _hold_directories(model, ranks, settings, stack)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(one_thread_where_small(model.decoder, settings.batch_size))
        stack.enter_context(_unchanged(model))
        closed = settings.scale_update == "closed-form"
        observed = _observed(model, source, ranks, settings) if closed else None
        run = Run(model, inputs, ranks, settings, data, observed, entries)
        stack.callback(run.callbacks.close)
        stack.callback(run.detach)
        stack.callback(run.archive.close)
        if run.archive.found is None:
            _start_outputs(model, source, ranks, unbegun)
        run.start()
        model.trained_on = own
        model.columns = model.columns if columns is None else columns
        unbegun.pop_all()
        if ranks.leads:
            shape = ranks.num_data, model.num_features, run.device
            logger.info("training on %d rows of %d features on %s", *shape)
        yield run
        if ranks.leads and run.history.epochs and not run.steps_left:
            warn_of_prior(run.history["kl"][-1], settings.lr)
        if ranks.leads and run.standing.stopped:
            logger.info("a callback has ended training after %d epochs", run.history.epochs)
        run.end()


class SharedInputs:
    """What steps take batches of, once for all runs that take the same."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Inputs] = {}

    def of(
        self, model: LatentModel, source: Opened, given: tuple[Any, Any, Any], *, checked: bool
    ) -> Inputs | HostInputs:
        """See `inputs_of`; `given` are x and mask as the user has passed them, and keeps them.

        What is beside them says which of their entries are left out, equal where the same are.
        """
        like, scaler = next(model.posterior.parameters()), model.scaler
        scale = None if scaler is None else repr(scaler.to_dict())
        key = (*map(id, given[:2]), given[2], like.device, like.dtype, scale)
        # a law that restricts its data has to look at them
        if key in self._made and not model.law.restricted:
            return self._made[key]
        inputs = inputs_of(model, source, checked=checked)
        if isinstance(inputs, Inputs):  # what reads ahead serves one run
            wait_for(like.device)  # others may read them on other streams
            self._made[key] = inputs
        return inputs


def _of_first(model: LatentModel, ranks: Alone, own: tuple[Any, Any], num_data: int) -> Fingerprint:
    """The fingerprint of the first rows of the data of all processes."""
    first_row = as_posterior(model.posterior).first_row
    return ranks.added(first_fingerprint(*own, model.num_features, num_data, first_row))


def withheld_of(source: Opened, ranks: Alone, settings: Settings) -> Withheld | None:
    """The entries that a run is not shown; None where it is shown all."""
    if not settings.held_out:
        return None
    seed = stream(settings.seed, WITHHELD)
    return Withheld.drawn(
        source, settings.held_out, seed, ranks.first_row, ranks.num_data, ranks.gather
    )


def _check_model(model: Any) -> None:
    """Raises for a model that something is wrapped around, which hides its parts."""
    if not isinstance(model, LatentModel):
        raise TypeError(
            f"model: expected a LatentModel, got a {type(model).__name__}; what compiles a module "
            "belongs around model.decoder, and fit synchronises gradients itself"
        )


def _check_evaluation(model: LatentModel, settings: Settings) -> None:
    """Raises where the data are to be reconstructed by a likelihood that does not say how."""
    if settings.eval_every and lacks(model.likelihood, "mean"):
        raise ValueError(
            f"eval_every: expected 0 for a {type(model.likelihood).__name__}, which has no method "
            f"mean(outputs), got {settings.eval_every}"
        )


def _hold_directories(
    model: LatentModel, ranks: Alone, settings: Settings, stack: contextlib.ExitStack
) -> None:
    """Locks the run directory and that of tables in files: two runs must not share them."""
    run_dir, tables = settings.directory, directory_of(model)

    def hold() -> None:
        if run_dir is not None:
            stack.enter_context(RunDirectory(run_dir))

    ranks.first(hold)
    if tables is not None and (run_dir is None or run_dir.resolve() != tables.resolve()):
        stack.enter_context(RunDirectory(tables))


@torch.no_grad()
def _check_batch_of_one(model: LatentModel, num_data: int, batch_size: int) -> None:
    """Refuses a batch of one row where batch normalisation needs more, before anything is trained."""
    if min(batch_size, num_data) != 1 and num_data % batch_size != 1:
        return
    networks = {model.decoder: model.posterior.latent_dim}
    if isinstance(model.posterior, EncoderPosterior):
        networks[model.posterior.encoder] = model.num_features * (
            2 if model.posterior.mask_input else 1
        )
    for network, inputs in networks.items():
        if not any(isinstance(part, _BatchNorm) for part in network.modules()):
            continue
        parameter = next(model.posterior.parameters())
        one = torch.zeros(1, inputs, device=parameter.device, dtype=parameter.dtype)
        try:
            with Drawing(0):
                # a copy: running means are the model's
                copy.deepcopy(network).train()(one)
        except ValueError as error:
            raise ValueError(
                f"batch_size: expected one that leaves no batch of one row, got {batch_size} for "
                f"{num_data} rows, with batch normalisation: {error}"
            ) from error


def _standardizable(model: LatentModel) -> bool:
    """Whether there are columns to standardise.

    Raises:
        ValueError: the likelihood is one of the user's own that does not say.
    """
    found = any(model.law.standardizable)
    if not found and model.law is not model.likelihood:
        raise ValueError(
            f"standardize: expected False for a {type(model.likelihood).__name__}, whose law need not "
            "hold for shifted and scaled data (it says so with location_scale = True), got True"
        )
    return found


def _check_standardize(model: LatentModel, standardize: bool, *, pixels: bool) -> None:
    """Raises where data must be standardised."""
    if not standardize and model.scaler is not None and not pixels:
        raise ValueError(
            "standardize: expected True for a model that has the scale of its data, got False"
        )


def set_scale(model: LatentModel, source: Opened, ranks: Alone, settings: Settings) -> None:
    """Gives the model a scale: that of the checkpoint to go on from, its own, or that of the data."""
    resumed = settings.directory if settings.resume else None
    stored = None if resumed is None else ranks.first(lambda: _stored_scale(resumed))
    own = None if model.scaler is None else model.scaler.to_dict()
    if stored is not None and own is not None and stored != own:
        raise ValueError(
            f"model: expected the scale of the checkpoint in {resumed}, or none, got another"
        )
    if own is not None:
        return
    if stored is None:
        moments, *others = ranks.gather(
            moments_of(source, model.num_features, ranks.first_row, ranks.num_data, model.law)
        )
        for other in others:
            moments.merge(other)
        scaler = Scaler(moments.standardizer(columns=np.array(model.law.standardizable)))
        if ranks.leads:
            moments.warn()
    else:
        scaler = Scaler.from_dict(stored)
    model.scaler = scaler.to(next(model.posterior.parameters()).device).train(model.training)


@torch.no_grad()
def _start_outputs(
    model: LatentModel, source: Opened, ranks: Alone, unbegun: contextlib.ExitStack
) -> None:
    """Where the last bias is 0 and the law knows better, every row gets the law of all rows."""
    bias = model.last_bias
    if bias is None:
        return
    wanted = bias.cpu() == 0
    nothing = torch.zeros(2, len(bias), device="cpu")
    wanted &= ~torch.isnan(model.law.initial_outputs(nothing))
    if not bool(wanted.any()):
        return
    own = torch.zeros(2, len(bias), dtype=torch.float64, device="cpu")
    for rows in chunks(len(source)):
        x, mask = source.read(rows)
        model.law.check(x, mask, rows=rows)
        own += model.law.totals(x, mask).cpu()
        source.release(int(rows[0]), int(rows[-1]) + 1)
    found = model.law.initial_outputs(sum(ranks.gather(own), torch.zeros_like(own)))
    before = bias.clone()
    unbegun.callback(lambda: bias.data.copy_(before))
    bias.copy_(torch.where(wanted, found.to(bias.dtype), bias.cpu()))


def _observed(model: LatentModel, source: Opened, ranks: Alone, settings: Settings) -> Observed:
    """How much is observed of the rows of all processes."""
    own = torch.zeros(model.num_features, dtype=torch.float64, device="cpu")
    for rows in chunks(len(source)):
        own += observed_of(*source.read(rows)).sum(0).cpu()
        source.release(int(rows[0]), int(rows[-1]) + 1)
    total = sum(ranks.gather(own), torch.zeros_like(own))
    return Observed(total / ranks.num_data, min(settings.batch_size, ranks.num_data))


def _stored_scale(run_dir: Path) -> dict[str, Any] | None:
    """The scale of the model in the last good checkpoint."""
    for epoch, path in checkpoints(run_dir):
        with contextlib.suppress(CheckpointError):
            return read_manifest(path, epoch)["metadata"].get("scale")
    return None


@contextlib.contextmanager
def _unchanged(model: LatentModel) -> Iterator[None]:
    """Afterwards modes and gradients are as they were."""
    modes = [(part, part.training) for part in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
