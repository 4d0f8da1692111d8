"""Training a model."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .. import _checks
from ..drawing import Drawing
from ..likelihoods.foreign import lacks
from ..models import LatentModel
from ..posteriors.base import as_posterior
from ..posteriors.encoder import EncoderPosterior
from ..scaler import Scaler
from .distributed.ranks import Alone, ranks_of
from .inputs.fingerprint import fingerprint
from .inputs.prepare import inputs_of, open_source
from .inputs.sources import Opened, chunks, moments_of
from .loop.history import Callback, History
from .loop.interrupts import deferred
from .loop.run import Run
from .loop.threads import one_thread_where_small
from .places import directory_of, settled
from .runs.checkpoints import CheckpointError, checkpoints, read_manifest
from .runs.directory import RunDirectory
from .settings import KLWeight, Settings


class EarlyStopping:
    """A callback that stops when a quantity has not fallen for `patience` of its values.

    Args:
        patience: values without a new minimum after which training stops.
        quantity: "loss" or "elastic".
        min_delta: by how much a value must fall below the minimum to count.
    """

    def __init__(
        self, patience: int = 10, *, quantity: str = "loss", min_delta: float = 0.0
    ) -> None:
        self.patience = _checks.check_positive_int("patience", patience)
        self.min_delta = _checks.check_non_negative("min_delta", min_delta)
        if quantity not in History():
            raise ValueError(f"quantity: expected one of {sorted(History())}, got {quantity!r}")
        self.quantity = quantity

    def __call__(self, model: LatentModel, history: History) -> bool:
        """True when it is time to stop. Looks at nothing but the history, so it survives a resume."""
        best, since = float("inf"), 0
        for value in history[self.quantity]:
            best, since = (value, 0) if value < best - self.min_delta else (best, since + 1)
        return since >= self.patience


def fit(
    model: LatentModel,
    x: Any,
    *,
    mask: Any = None,
    standardize: bool = Settings.standardize,
    epochs: int = Settings.epochs,
    batch_size: int = Settings.batch_size,
    lr: float = Settings.lr,
    posterior_lr: float | None = Settings.posterior_lr,
    optimizer: str = Settings.optimizer,
    kl_weight: KLWeight = Settings.kl_weight,
    seed: int = Settings.seed,
    device: torch.device | str | None = Settings.device,
    progress: bool = Settings.progress,
    eval_every: int = Settings.eval_every,
    callbacks: Sequence[Callback] = Settings.callbacks,
    run_dir: str | os.PathLike[str] | None = Settings.run_dir,
    resume: bool = Settings.resume,
    checkpoint_every: float = Settings.checkpoint_every,
    capture: bool = Settings.capture,
    block_rows: int | None = Settings.block_rows,
    moment_dtype: torch.dtype | None = Settings.moment_dtype,
) -> History:
    """Trains a model on all rows of a table, missing entries and all.

    Every epoch visits each row once, in a new random order. The last batch may be smaller; its loss
    is a sum over its rows divided by the size of a full batch, so that all rows weigh the same; where
    batch normalisation needs more rows than one, a last batch of one row is refused. The
    result depends on the model's parameters, the data and the arguments alone: neither does it
    depend on torch's global random state nor change it.

    Floating-point data are standardised: the model is trained on (x - mean) / std of each feature's
    observed entries, counted in float64 from the data as they came, and keeps that scale
    (`model.scaler`, in checkpoints and exports too). `impute`, `model.reconstruct`, `infer`, draws and
    `model.log_prob` then speak the units of the data. A feature that is always one number comes back as
    that number, one that was never observed as 0. A feature with an entry beyond all others (see
    `data.scaling`) is scaled by median and quartiles, with a warning, and such entries count as nearer
    in training. A model that has a scale keeps it, also when it is fitted again to other data. Columns
    whose law is no matter of location and scale (yes/no, classes, counts) stay as they are. There the
    bias of the decoder's last layer, where it is 0 as the builders make it for posteriors of rows,
    starts at what the law of the column as a whole says: the logarithm of a mean count, of the share of
    a class.

    Ctrl-C ends the step at hand, leaves a checkpoint where there is a `run_dir`, from which a resume
    goes on bit for bit, and is then raised as KeyboardInterrupt, the model up to date; a second one is
    raised at once. A disk that is full does not end a run: a `CheckpointWarning` says what could not
    be written, the checkpoint before stays, and the next is tried when it is due.

    Several processes train one model where each of them calls this with a shard of it, see
    `training.distributed`.

    Args:
        model: changed in place. Its posterior has one row for each row of x.
            Where its decoder ends in a linear layer, biases of exactly 0 there are set to what yes/no,
            classes and counts are on the whole in x before the first step.
        x: data [N, D], tensor or numpy array; floating point with NaN for missing, or uint8 pixels,
            which count as x / 255. Masked entries of a masked array are missing. A memory map
            (`np.load(..., mmap_mode="r")`) is never read as a whole: the rows of a batch are read ahead
            of its step. So are those of a map-style `torch.utils.data.Dataset` whose items are x [D],
            (x,), (index, x) or a dict with "x", NaN for missing, the same whenever they are read. Of
            all rows or, for a shard, of its own. All of it is read once more before the first epoch,
            for the fingerprint that a resume and `impute` compare, once to standardise, and once for
            where the outputs of yes/no, classes and counts start.
        mask: bool [N, D], true = observed.
        standardize: False trains on floating-point data as they are; pixels always are, and columns of
            laws without location and scale.
        epochs: epochs in all, those before a resume included.
        batch_size: rows in a batch.
        lr: learning rate of decoder and scale.
        posterior_lr: learning rate of rows and relays, or of an encoder; `lr` if not given (paper
            section 6.4).
        optimizer: mode of `RowAdam` for the rows: "dense", "lazy" or "row". Everything else is
            driven by Adam, and an encoder has no rows.
        kl_weight: factor of the KL divergence, or a function from the epoch (from 0) to it; with a
            `run_dir` it is asked for all epochs beforehand as well, and a resume compares the values.
        seed: of order and noise.
        device: where to train; where the model is if not given.
        progress: show a progress bar.
        eval_every: epochs between evaluations of the elastic error over observed entries, from the
            posterior mean; 0 for none. The error of a class is 1 less the probability of the one that
            was observed.
        callbacks: called with model and history after each epoch; a true result stops training.
        run_dir: directory for checkpoints and `metrics.jsonl`; only one process can use it.
        resume: go on from the last checkpoint in `run_dir` if there is one, as if never interrupted.
            Data, settings and what the model is made of have to be as they were; where there is no
            checkpoint the model must not have been trained.
        checkpoint_every: seconds between checkpoints, which are written at the end of an epoch; 0
            writes one after every epoch. The last epoch always has one.
        capture: on CUDA, run whole steps from CUDA graphs; the result is the same. Not where several
            processes train: a graph cannot hold what they exchange.
        block_rows: rows that lie together in an epoch: it visits blocks of that many rows in random
            order and shuffles four of them together. What is in memory at a time is then a few
            blocks, where the posterior's storage is a directory, and on a GPU also where it is "host";
            those have blocks of 64 MB if not told otherwise. The result does not depend on where the
            tables lie. None elsewhere: the order is a permutation of all rows. In blocks, what "dense"
            rows have missed is applied when they are next read, not at the end of each epoch, so that
            a callback that reads rows changes the rounding of what follows.
        moment_dtype: of the moments of the rows, see `RowAdam`; `torch.bfloat16` makes tables of
            float32 rows a third smaller. None is the dtype of the rows. Where a GPU trains tables that
            lie elsewhere, the random bits of their rounding are others than on the device.

    Returns:
        The `History`, that of the epochs before a resume included.

    Raises:
        ValueError, TypeError: an argument is out of its range; x or mask hold what they should not; the
            likelihood allows no standardising, or no evaluation.
        FloatingPointError: the loss became NaN or infinite; names step and last good checkpoint.
        RunDirectoryInUse: another process trains in `run_dir`.
        RankError: another process of those that train this model has failed, died or hangs.
        CheckpointError: no checkpoint in `run_dir` can be read, it is that of another model, or the
            last one cannot be written; the model is trained all the same then.
        KeyboardInterrupt: after Ctrl-C, see above; says how to go on.
    """
    settings = Settings(
        standardize=standardize,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        posterior_lr=posterior_lr,
        optimizer=optimizer,
        kl_weight=kl_weight,
        seed=seed,
        device=device,
        progress=progress,
        eval_every=eval_every,
        callbacks=callbacks,
        run_dir=run_dir,
        resume=resume,
        checkpoint_every=checkpoint_every,
        capture=capture,
        block_rows=block_rows,
        moment_dtype=moment_dtype,
    )
    _check_evaluation(model, settings)
    if settings.device is not None:
        model.to(settings.device)
    settings = settled(model, settings)
    ranks = ranks_of(model)
    _check_shard(model, ranks, settings)
    source = open_source(model, *ranks.own(x, mask), num_data=model.num_data)
    standardize = settings.standardize and not source.pixels() and _standardizable(model)
    settings = replace(settings, standardize=standardize)
    _check_standardize(model, settings.standardize, pixels=source.pixels())
    _check_batch_of_one(model, ranks.num_data, settings.batch_size)
    kind = source.kind(next(model.posterior.parameters()).dtype)
    ranks.begin(model, kind, settings.called())
    first_row = as_posterior(model.posterior).first_row
    own = fingerprint(*ranks.own(x, mask), model.num_features, first_row)
    data = ranks.added(own)
    with contextlib.ExitStack() as stack:
        # a model that no step has changed has no scale either
        unbegun = stack.enter_context(contextlib.ExitStack())
        unbegun.callback(setattr, model, "scaler", model.scaler)
        if settings.standardize:
            _set_scale(model, source, ranks, settings)
        inputs = inputs_of(model, source, checked=settings.standardize)
        _hold_directories(model, ranks, settings, stack)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(one_thread_where_small(model.decoder, settings.batch_size))
        stack.enter_context(_unchanged(model))
        run = Run(model, inputs, ranks, settings, data)
        stack.callback(run.detach)
        if run.archive.found is None:
            _start_outputs(model, source, ranks, unbegun)
        run.start()
        model.trained_on = own
        unbegun.pop_all()
        run.train(stack.enter_context(deferred()))
        return run.history


def _check_evaluation(model: LatentModel, settings: Settings) -> None:
    """Raises where the data are to be reconstructed by a likelihood that does not say how."""
    if settings.eval_every and lacks(model.likelihood, "mean"):
        raise ValueError(
            f"eval_every: expected 0 for a {type(model.likelihood).__name__}, which has no method "
            f"mean(outputs), got {settings.eval_every}"
        )


def _check_shard(model: LatentModel, ranks: Alone, settings: Settings) -> None:
    """Raises where rows that several processes share out lie elsewhere than on the device."""
    if ranks.alone:
        return
    if model.posterior.staged:
        raise ValueError("storage: expected 'device' for a shard on a GPU, got rows in host memory")
    if settings.block_rows is not None:
        raise ValueError(f"block_rows: expected None for a shard, got {settings.block_rows}")


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


def _set_scale(model: LatentModel, source: Opened, ranks: Alone, settings: Settings) -> None:
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
    wanted &= ~torch.isnan(model.law.initial_outputs(torch.zeros(2, len(bias))))
    if not bool(wanted.any()):
        return
    own = torch.zeros(2, len(bias), dtype=torch.float64)
    for rows in chunks(len(source)):
        x, mask = source.read(rows)
        model.law.check(x, mask, rows=rows)
        own += model.law.totals(x, mask).cpu()
        source.release(int(rows[0]), int(rows[-1]) + 1)
    found = model.law.initial_outputs(sum(ranks.gather(own), torch.zeros_like(own)))
    before = bias.clone()
    unbegun.callback(lambda: bias.data.copy_(before))
    bias.copy_(torch.where(wanted, found.to(bias.dtype), bias.cpu()))


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
