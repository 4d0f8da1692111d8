"""Training a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from ..models import LatentModel
from ..optim import Mode
from ..progress import progress_bar
from .loop.callback import AfterEpoch
from .loop.history import History
from .loop.interrupts import deferred
from .loop.run import Run
from .opening import opened
from .settings import KLWeight, ScaleUpdate, Settings


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
    optimizer: Mode = Settings.optimizer,
    kl_weight: KLWeight = Settings.kl_weight,
    decoder_weight_decay: float = Settings.decoder_weight_decay,
    scale_update: ScaleUpdate = Settings.scale_update,
    scale_annealing: Sequence[float] | None = Settings.scale_annealing,
    seed: int = Settings.seed,
    device: torch.device | str | None = Settings.device,
    progress: bool = Settings.progress,
    eval_every: int = Settings.eval_every,
    held_out: float = Settings.held_out,
    callbacks: Sequence[AfterEpoch] = Settings.callbacks,
    run_dir: str | os.PathLike[str] | None = Settings.run_dir,
    resume: bool = Settings.resume,
    checkpoint_every: float = Settings.checkpoint_every,
    checkpoint_async: bool = Settings.checkpoint_async,
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
    `training.distributed`. Ctrl-C, SIGTERM or SIGHUP to one of them then ends all with a checkpoint,
    after 64 steps at most.

    Args:
        model: changed in place. Its posterior has one row for each row of x.
            Where its decoder ends in a linear layer, biases of exactly 0 there are set to what yes/no,
            classes and counts are on the whole in x before the first step.
        x: data [N, D], tensor or numpy array; floating point with NaN for missing, or uint8 pixels,
            which count as x / 255. Masked entries of a masked array are missing. Or a pandas DataFrame
            of numeric columns; `model.columns` keeps their names, and `infer`, `impute` and further
            calls refuse a DataFrame with others. A memory map
            (`np.load(..., mmap_mode="r")`) is never read as a whole: the rows of a batch are read ahead
            of its step. So are those of a map-style `torch.utils.data.Dataset` whose items are x [D],
            (x,), (index, x) or a dict with "x", NaN for missing, the same whenever they are read. On
            CUDA they are copied beside the steps before, and take part in CUDA graphs. Of all rows
            or, for a shard, of its own. All of it is read once more before the first epoch,
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
        decoder_weight_decay: decoupled decay c of the decoder's weight matrices W, the parameters of
            `model.decoder` with two dimensions or more: each step of Adam also takes lr c W off them,
            as `torch.optim.AdamW` does. Biases, scale, relays and rows have none. Less than 1 / lr.
        scale_update: what moves the scale of a Gaussian likelihood. "adam" (the paper's) moves its
            logarithm by up to `lr` a step, so that it takes as many steps to arrive as it is far away;
            till then rows count for less than they will. "closed-form" sets it to the root mean square
            of the residuals of recent batches, see `optim.residual_scale`. Of one scale or one for each
            feature, also in Gaussian columns of `Mixed`; other laws keep Adam.
        scale_annealing: (factor, share): training begins as if the scale were `factor` times as large,
            and the factor falls geometrically to 1 over that share of the epochs, an epoch at a time. It
            is done by the weight of the KL divergence, times the factor squared, which is the same to
            rows and decoder of a Gaussian; so it works for every law. A resume compares the epoch in
            which it ends. None: there is none.
        seed: of order and noise.
        device: where to train; where the model is if not given.
        progress: show a progress bar.
        eval_every: epochs between evaluations of the elastic error over observed entries, from the
            posterior mean; 0 for none. The error of a class is 1 less the probability of the one that
            was observed.
        held_out: share of the observed entries, in up to 4,096 rows, that the likelihood never sees.
            Each evaluation finds them from the posterior mean of what is left of their rows, and
            `History` has the error as "held_out", which callbacks can go by. No row loses all that it
            shows. Which they are depends on table, share and seed; a table in memory is copied without
            them. The model counts as trained on x, so that `impute(model, x)` fills it in.
        callbacks: called with model and history after each epoch; a true result stops training. A
            function, or a `training.callbacks.Callback` (early stopping, learning rates, CSV,
            TensorBoard, files of the model), whose state lies in the checkpoints.
        run_dir: directory for checkpoints and `metrics.jsonl`; only one process can use it.
        resume: go on from the last checkpoint in `run_dir` if there is one, as if never interrupted.
            Data, settings and what the model is made of have to be as they were, but for more rows after
            those of then, which start as `RelayPosterior.extend` says; an epoch that was broken off
            then begins anew. Where there is no checkpoint the model must not have been trained.
        checkpoint_every: seconds between checkpoints, which are written at the end of an epoch; 0
            writes one after every epoch. The last epoch always has one.
        checkpoint_async: True writes checkpoints in a thread while training goes on, from a copy of what
            they hold, so that a step waits for the copy alone. It takes host memory of the size of the
            checkpoint (rows, moments, all that is shared) until that has its name. Tables in files are
            not copied: what a block held is written to the journals of both checkpoints meanwhile, for
            which the disk needs as much room as the tables once more. Where there is no room the
            checkpoint is written before the next step, with a `CheckpointWarning`. Bits, checksums and
            what a kill leaves are the same. What could not be written is warned of, or raised, when
            the next checkpoint is due, and before `fit` returns. The last checkpoint, that of a
            signal, and the first of a run with tables in files are waited for.
        capture: on CUDA, run whole steps from CUDA graphs; the result is the same. Where several
            processes train, models whose step is six launches alone (docs/kernels.md): each then makes
            room for the largest share of a batch, and the graph holds the sum of gradients too.
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

    Example:
        >>> import torch, rvi_fast
        >>> x = torch.linspace(-1, 1, 60)[:, None] * torch.tensor([1.0, -2.0, 3.0])
        >>> model = rvi_fast.models.rvi(60, 3, latent_dim=2, groups=(4,))
        >>> rvi_fast.fit(model, x, epochs=5, progress=False).epochs
        5

        A loop of your own: a `DataLoader` gives row numbers and data, `RowAdam` drives the rows and any
        optimiser of torch the rest. The folder examples of the repository has one that is resumed bit
        for bit, and the same under Lightning and accelerate.

        >>> from torch.utils.data import DataLoader
        >>> model = rvi_fast.models.rvi(60, 3, latent_dim=2, groups=(4,))
        >>> rows = rvi_fast.optim.RowAdam(model.posterior, lr=0.01)
        >>> shared = [p for p in model.parameters() if p is not model.posterior.rows]
        >>> others = torch.optim.Adam(shared, lr=0.001)
        >>> loader = DataLoader(list(enumerate(x)), batch_size=16, shuffle=True)
        >>> for index, batch in loader:
        ...     objective = model(index, batch)
        ...     for optimizer in (rows, others):
        ...         optimizer.zero_grad()
        ...     objective.loss.backward()
        ...     for optimizer in (rows, others):
        ...         optimizer.step()
        >>> bool(objective.loss.isfinite())
        True
    """
    settings = Settings(
        standardize=standardize,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        posterior_lr=posterior_lr,
        optimizer=optimizer,
        kl_weight=kl_weight,
        decoder_weight_decay=decoder_weight_decay,
        scale_update=scale_update,
        scale_annealing=scale_annealing,
        seed=seed,
        device=device,
        progress=progress,
        eval_every=eval_every,
        held_out=held_out,
        callbacks=callbacks,
        run_dir=run_dir,
        resume=resume,
        checkpoint_every=checkpoint_every,
        checkpoint_async=checkpoint_async,
        capture=capture,
        block_rows=block_rows,
        moment_dtype=moment_dtype,
    )
    with opened(model, x, mask, settings) as run:
        # a process that ended at once would take those down that train with it
        several = not run.ranks.alone
        with deferred(ending=several) as request, _bar_of(run) as bar:
            for _ in run.advance(request, bar):
                pass
            return run.history


def _bar_of(run: Run) -> Any:
    """A bar over the steps of a run, hidden where nobody asked for one or nothing is left to do."""
    left, total = run.steps_left, run.settings.epochs * run.steps_per_epoch
    shown = run.settings.progress and run.ranks.leads and left
    return progress_bar(total, initial=total - left, unit="step", shown=bool(shown))
