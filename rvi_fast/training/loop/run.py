"""What one call of `fit` goes through: epochs, evaluations, checkpoints."""

from __future__ import annotations

import contextlib
import secrets
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from ..._devices import beside, to_float64
from ...data.metrics import elastic
from ...drawing import Drawing
from ...models import LatentModel
from ...optim import RowAdam
from ...optim.shared_adam import SharedAdam, shared_adam
from ...posteriors.tables import MappedTables
from ..distributed.ranks import Alone
from ..inputs.fingerprint import same
from ..inputs.prepare import Inputs
from ..inputs.sources import HostInputs
from ..places.blocks import EpochOrder, Residence
from ..places.staging import StagedStep, Staging
from ..runs.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWarning,
    latest_epoch,
    save_checkpoint,
)
from ..runs.journal import Journal, discard
from ..runs.metrics import append_metrics, rewrite_metrics
from ..runs.state import State, name_of, row_adam
from ..runs.structure import structure_of
from .capture import BatchStep, CapturedStep
from .history import Callback, History
from .interrupts import Interrupted, Request
from .seeds import MODULES, NOISE, ORDER, stream
from .step import DirectStep, NoRows, draws, make_step

# steps between two looks at the losses: reading one back synchronises a GPU
_CHECK_EVERY = 64
# rows reconstructed at once in an evaluation
_CHUNK = 4096

KLWeight = float | Callable[[int], float]


def device_of(model: LatentModel) -> torch.device:
    """Where the model's posterior lies."""
    return next(model.posterior.parameters()).device


@dataclass(frozen=True)
class Partial:
    """How far an epoch had come: steps done, sums of what they gave, what modules draw from."""

    steps: int
    totals: list[float]
    # one by one, those of the steps that have not been added up
    pending: list[list[float]]
    generators: dict[str, Tensor]


class Run:
    """One call of `fit`: the optimisers and everything a checkpoint holds."""

    def __init__(
        self,
        model: LatentModel,
        inputs: Inputs | HostInputs,
        ranks: Alone,
        settings: dict[str, Any],
        kl_weight: KLWeight,
        run_dir: Path | None,
        checkpoint_every: float,
        capture: bool,
        resume: bool,
    ) -> None:
        self.model, self.inputs, self.settings = model, inputs, settings
        # those who train the rows, and how many rows they all have
        self.ranks, self.num_data = ranks, ranks.num_data
        self.steps_per_epoch = -(-self.num_data // settings["batch_size"])
        self.kl_weight = kl_weight
        self.run_dir, self.checkpoint_every = run_dir, checkpoint_every
        self.history = History()
        self.stopped = False
        self.last_checkpoint: Path | None = None
        # values of a kl_weight that is a function, for the epochs that are planned
        self.kl_weights: list[float] = []
        # how far an epoch had come when it was broken off
        self.partial: Partial | None = None
        self.metrics_lack = False
        # rows in a block where the epochs go block by block
        self.block_rows: int | None = settings["block_rows"]
        self.rows: RowAdam | NoRows = NoRows()
        self.journal: Journal | None = None
        # what to go on from; read before the tables of another run are opened
        self.found = self._found(resume)
        # the optimisers let go of the model in it, those made last first
        self._optimizers = contextlib.ExitStack()
        try:
            self._set_up(capture)
        except BaseException:
            self.detach()
            raise

    def _set_up(self, capture: bool) -> None:
        """Makes the optimisers, and the step they take."""
        model, inputs, settings, ranks = self.model, self.inputs, self.settings, self.ranks
        if not model.amortized:
            model.posterior.sparse = True
            self._make_row_optimizer(self.found is not None)
        # the relays, or an encoder
        inference = [p for name, p in model.posterior.named_parameters() if name != "rows"]
        others = [
            parameter
            for name, parameter in model.named_parameters()
            if not name.startswith("posterior.") and parameter.requires_grad
        ]
        self.shared = shared_adam(
            [
                {"params": inference, "lr": settings["posterior_lr"]},
                {"params": others, "lr": settings["lr"]},
            ]
        )
        if isinstance(self.shared, SharedAdam):
            self._optimizers.callback(self.shared.detach)
        ranks.attach(self.shared)
        lagging = self.block_rows is not None
        self.state = State(model, self.rows, self.shared, self.journal, lagging)
        self.staging: Staging | None = None
        if isinstance(self.rows, RowAdam) and model.posterior.staged:
            assert self.block_rows is not None
            self.staging = Staging(model, self.rows, self.block_rows, settings["batch_size"])
        stepped = model if self.staging is None else self.staging.model
        self.drawing = Drawing(settings["seed"])
        step = make_step(stepped, self.rows, self.shared, self.drawing)
        self.step: BatchStep | CapturedStep = BatchStep(
            step if self.staging is None else StagedStep(self.staging, step),
            inputs,
            device_of(model),
            next(model.posterior.parameters()).dtype,
        )
        if (
            capture
            and ranks.alone  # a graph cannot hold the exchange between processes
            and isinstance(inputs, Inputs)
            and device_of(model).type == "cuda"
            and isinstance(step, DirectStep)
        ):
            assert isinstance(self.rows, RowAdam)
            # steps that rows can lag behind: those of an epoch, or of two where nothing is flushed
            epochs = 1 if self.block_rows is None else 2
            drawing = self.drawing if draws(model, training=True) else None
            self.step = CapturedStep(self.step, self.rows, epochs * self.steps_per_epoch, drawing)

    def _make_row_optimizer(self, found: bool) -> None:
        """A new one, or that of the tables in files that the run to go on with has left."""
        posterior, settings = self.model.posterior, self.settings
        mapped = posterior.tables if isinstance(posterior.tables, MappedTables) else None
        if mapped is not None and not found:
            discard(mapped.directory)
        with mapped.kept() if mapped is not None and found else contextlib.nullcontext():
            self.rows = rows = row_adam(posterior, settings)
        self._optimizers.callback(rows.detach)
        if mapped is not None and self.run_dir is not None:
            assert self.block_rows is not None
            self.journal = Journal(mapped.directory, rows.raw_tables(), self.block_rows)

    def detach(self) -> None:
        """The model is the user's again, up to date and without optimisers."""
        self._optimizers.close()

    def _found(self, resume: bool) -> Checkpoint | None:
        """The last checkpoint if there is one, of a run with these settings."""
        if (run_dir := self.run_dir) is None:
            return None
        epoch = self.ranks.first(lambda: latest_epoch(run_dir))
        if epoch is None:
            if resume and self.model.trained_on is not None:
                raise ValueError(
                    f"resume: expected a checkpoint in {self.run_dir}, or a model as it was made, got "
                    "one that has been trained; make it anew, or train it further with resume=False"
                )
            return None
        if not resume:
            raise ValueError(
                f"run_dir: {self.run_dir} holds a run of {epoch} epochs; resume=True goes on with it"
            )
        # tables that have no room on the device must not be loaded there
        staged = getattr(self.model.posterior, "staged", False)
        device = torch.device("cpu") if staged else device_of(self.model)
        checkpoint = self.ranks.load(run_dir, device)
        rows = getattr(self.model.posterior, "rows", None)
        # older checkpoints have moments in the dtype of the rows, data as they came, and do not say so
        older = {
            "moment_dtype": None if rows is None else name_of(rows.dtype),
            "standardize": False,
        }
        stored: dict[str, Any] = older
        stored |= checkpoint.metadata.get("settings", {})
        self._check_data(checkpoint, stored.get("data"))
        for name, value in self.settings.items():
            if name != "data" and stored.get(name) != value:
                raise ValueError(
                    f"{name}: expected {stored.get(name)!r} as in {checkpoint.path}, got {value!r}"
                )
        return checkpoint

    def _check_data(self, checkpoint: Checkpoint, stored: Any) -> None:
        # 0.1.0 wrote a hash of the numbers as the model has them
        if isinstance(stored, str):
            alike = stored == self.ranks.fingerprint(self.inputs)
        else:
            alike = isinstance(stored, dict) and same(stored, self.settings["data"])
        if not alike:
            raise ValueError(
                f"data: expected those of {checkpoint.path}, row for row in the same order and with the "
                "same entries observed, got others"
            )

    def start(self, epochs: int) -> None:
        """Goes on from the last checkpoint if there is one."""
        if self.run_dir is None:
            return
        if callable(self.kl_weight):
            self.kl_weights = [float(self.kl_weight(epoch)) for epoch in range(epochs)]
        if self.found is not None:
            self._restore(self.found)
            self.found = None
        elif self.journal is not None:
            # what a run that is killed in its first epoch goes back to
            self.journal.begin(f"{secrets.token_hex(8)}-start")
            if (error := self._try_to_save()) is not None:
                raise error
        if self.ranks.leads:
            self._write_metrics(self.run_dir)
        if self.journal is not None and isinstance(self.rows, RowAdam):
            self.rows.before_write = self.journal.before_write

    def train(
        self,
        epochs: int,
        eval_every: int,
        callbacks: Sequence[Callback],
        progress: bool,
        request: Request,
    ) -> None:
        """The epochs that are left, unless a callback or a signal ends them."""
        first, saved_at = self.history.epochs, time.monotonic()
        if self.stopped or first >= epochs:
            return
        steps = self.steps_per_epoch
        quiet = not (progress and self.ranks.leads)
        done = first * steps + (0 if self.partial is None else self.partial.steps)
        bar = tqdm(total=epochs * steps, initial=done, unit="step", disable=quiet)
        with bar:
            for epoch in range(first, epochs):
                bar.set_description(f"epoch {epoch + 1}/{epochs}", refresh=False)
                started = time.monotonic()
                if not self._train_epoch(epoch, bar, request):
                    self._check_parameters(epoch)
                    self._interrupt(request, epochs)
                if eval_every and (epoch + 1) % eval_every == 0:
                    self.history["elastic"].append(self._evaluate())
                    self.history["evaluated"].append(epoch + 1)
                if self.block_rows is None:
                    self.rows.flush()
                self._check_parameters(epoch)
                record = self.history.records()[-1]
                bar.set_postfix({k: f"{record[k]:.4g}" for k in record if k in ("loss", "elastic")})

                finish = partial(self._finish_epoch, callbacks, started, saved_at)
                self.stopped, due = self.ranks.first(finish)
                last = self.stopped or epoch + 1 == epochs
                if self.ranks.any(request.signum is not None):
                    self._interrupt(request, epochs)
                if self.run_dir is not None and (due or last):
                    error = self._try_to_save()
                    saved_at = time.monotonic()
                    if error is not None and last:
                        raise error
                if self.stopped:
                    break

    def _interrupt(self, request: Request, epochs: int) -> NoReturn:
        """Leaves a checkpoint and ends the run."""
        signum = signal.SIGTERM if request.signum is None else request.signum
        place = f"epoch {min(self.history.epochs + 1, epochs)} of {epochs}"
        if self.partial is not None:
            place += f", after {self.partial.steps} of {self.steps_per_epoch} steps"
        text = f"stopped by {signal.Signals(signum).name} in {place}"
        if self.run_dir is None:
            raise Interrupted(signum, f"{text}; without a run_dir nothing was saved")
        error = self._try_to_save()
        if error is not None:
            raise Interrupted(signum, f"{text}; {error}; {self._kept()}")
        raise Interrupted(
            signum, f"{text}; resume=True (--resume) goes on from {self.last_checkpoint}"
        )

    def _finish_epoch(
        self, callbacks: Sequence[Callback], started: float, saved_at: float
    ) -> tuple[bool, bool]:
        """Calls callbacks and writes metrics; whether to stop, and whether a checkpoint is due."""
        stopped = self.stopped
        for callback in callbacks:
            stopped = bool(callback(self.model, self.history)) or stopped
        if self.run_dir is not None:
            seconds = round(time.monotonic() - started, 3)
            self._write_metrics(self.run_dir, {**self.history.records()[-1], "seconds": seconds})
        return stopped, time.monotonic() - saved_at >= self.checkpoint_every

    def _write_metrics(self, run_dir: Path, record: dict[str, float] | None = None) -> None:
        """Appends a record, or writes them all: none is given, or some are not there."""
        try:
            if record is None or self.metrics_lack:
                rewrite_metrics(run_dir, self.history.records())
            else:
                append_metrics(run_dir, record)
        except (OSError, CheckpointError) as error:
            message = f"metrics.jsonl could not be written: {error}; the next epoch tries again"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
            self.metrics_lack = True
        else:
            self.metrics_lack = False

    def _train_epoch(self, epoch: int, bar: Any, request: Request) -> bool:
        """Trains an epoch to its end, or to where a signal has asked for the end: false then."""
        device, seed = device_of(self.model), self.settings["seed"]
        self.model.train()
        self.drawing.reseed(stream(seed, MODULES, epoch, *self.ranks.counters))
        generator = torch.Generator(device).manual_seed(stream(seed, ORDER, epoch))
        num_data, size = self.num_data, self.settings["batch_size"]
        order = EpochOrder(num_data, self.block_rows or num_data, generator)
        self.step.seed.fill_(stream(seed, NOISE, epoch))
        self.step.kl_weight.fill_(
            self.kl_weight(epoch) if callable(self.kl_weight) else self.kl_weight
        )
        counted = beside(device)
        totals = torch.zeros(3, dtype=torch.float64, device=counted)
        # sums over all processes of steps whose group is not complete
        pending = torch.zeros((0, 3), dtype=torch.float64, device=counted)
        unchecked: list[Tensor] = []
        sizes: list[int] = []
        done, partial = 0, self.partial
        if partial is not None:
            done, self.partial = partial.steps, None
            totals += torch.tensor(partial.totals, dtype=torch.float64)
            pending = torch.tensor(partial.pending, dtype=torch.float64).reshape(-1, 3).to(counted)
            self.drawing.restore(partial.generators)
        first_step = self.rows.num_steps - done if isinstance(self.rows, RowAdam) else 0
        visits = self.ranks.visits(order.visits(size))
        with contextlib.ExitStack() as stack:
            residence = stack.enter_context(self._resident(order, epoch))
            for _, window in islice(visits, done):  # blocks come and go as they did
                if residence is not None:
                    residence.before(window)
                    residence.after(window)
            fed = stack.enter_context(self.inputs.feed(visits))
            for step, (index, window) in enumerate(fed, start=done):
                if residence is not None:
                    residence.before(window)
                # in a short last batch every row keeps the weight it has in a full one, or Adam would
                # remember its large gradients for a thousand steps
                unchecked.append(self.step(index, min(size, num_data)))
                sizes.append(len(index))
                if residence is not None:
                    residence.after(window)
                full = len(pending) + len(unchecked) == _CHECK_EVERY
                last = step + 1 == self.steps_per_epoch
                # several processes agree on where to end, which takes an exchange
                ends = request.signum is not None and self.ranks.alone
                if full or last or ends:
                    values = to_float64(torch.stack(unchecked))
                    weights = torch.tensor(sizes, dtype=torch.float64, device=counted)[:, None]
                    # the mean over no rows is not a number
                    sums = self.ranks.sum(torch.where(weights > 0, values * weights, 0.0))
                    self._check_finite(sums[:, 0], epoch, step + 1 - len(unchecked))
                    bar.update(len(unchecked))
                    unchecked.clear()
                    sizes.clear()
                    pending = torch.cat((pending, sums))
                    if full or last:
                        totals += pending.sum(0)
                        pending = pending[:0]
                    if not last and self.ranks.any(request.signum is not None):
                        self.partial = Partial(
                            step + 1,
                            totals.tolist(),
                            pending.tolist(),
                            self.drawing.state(device),
                        )
                        return False
        if self.block_rows is not None and isinstance(self.rows, RowAdam):  # all have been visited
            self.rows.forget_before(first_step)
        for name, total in zip(("loss", "kl", "log_prob"), totals.tolist(), strict=True):
            self.history[name].append(total / num_data)
        return True

    @contextlib.contextmanager
    def _resident(self, order: EpochOrder, epoch: int) -> Iterator[Residence | None]:
        """Moves the blocks of an epoch in and out, where it has blocks."""
        if self.block_rows is None:
            yield None
            return
        assert isinstance(self.rows, RowAdam)
        rows, tables = self.rows.table(), self.model.posterior.tables
        staging = self.staging

        def enter(start: int, stop: int) -> None:
            tables.prefetch(start, stop)
            tables.enter(start, stop)
            if self.journal is not None:
                self.journal.keep(start // order.block_rows)
            self.inputs.prefetch(start, stop)
            if staging is not None:
                staging.enter(start, stop)

        def check(part: Tensor) -> None:
            self._check_table("posterior.rows", part, epoch)

        def leave(start: int, stop: int, mark: Any) -> None:
            if staging is None:
                check(rows[start:stop])
            else:
                staging.leave(start, stop, mark, check)
            tables.leave(start, stop)
            tables.release(start, stop)
            self.inputs.release(start, stop)

        with contextlib.ExitStack() as stack:
            if staging is not None:
                stack.enter_context(staging.epoch(order))
            mark = _no_mark if staging is None else staging.mover.mark
            residence = Residence(order, enter, leave, mark)
            try:
                yield residence
            except BaseException:
                residence.abandon()
                raise
            residence.close()

    def _check_finite(self, losses: Tensor, epoch: int, first_step: int) -> None:
        finite = torch.isfinite(losses)
        if bool(finite.all()):
            return
        position = int((~finite).to(torch.uint8).argmax())
        step = epoch * self.steps_per_epoch + first_step + position
        raise FloatingPointError(
            f"the loss became {losses[position].item()} at step {step} "
            f"(epoch {epoch + 1}); {self._kept()}"
        )

    def _check_parameters(self, epoch: int) -> None:
        """The last step of an epoch can break them after a finite loss."""
        # in blocks the rows are looked at as they are put away
        passed = "posterior.rows" if self.block_rows is not None else None
        parameters = self.model.named_parameters()
        # rows as they are: to bring them up to date within an epoch would change its rounding
        own = {"posterior.rows": self.rows.table()} if isinstance(self.rows, RowAdam) else {}
        named = [(n, own.get(n, p).detach()) for n, p in parameters if p.numel() and n != passed]
        finite = torch.stack(
            [torch.isfinite(torch.stack(torch.aminmax(p))).all() for _, p in named]
        )
        broken = self.ranks.sum(1.0 - to_float64(finite.all()))
        if not bool(finite.all()):
            self._check_table(*named[int((~finite).to(torch.uint8).argmax())], epoch)
        if bool(broken):
            raise FloatingPointError(
                f"rows of another process became nan or inf in epoch {epoch + 1}; {self._kept()}"
            )

    def _check_table(self, name: str, table: Tensor, epoch: int) -> None:
        if not bool(torch.isfinite(torch.stack(torch.aminmax(table))).all()):
            raise FloatingPointError(
                f"{name} became nan or inf in epoch {epoch + 1}; {self._kept()}"
            )

    def _kept(self) -> str:
        if self.last_checkpoint is None:
            return "no checkpoint has been written"
        return f"the last good checkpoint is {self.last_checkpoint}"

    def _evaluate(self) -> float:
        """Elastic error over the observed entries, from the posterior mean, in the model's units."""
        self.model.eval()
        drawing = self.drawing if draws(self.model, training=False) else contextlib.nullcontext()
        total, count = 0.0, 0
        for index in self._chunks():
            x, mask = self.inputs.batch(index)
            observed = ~torch.isnan(x) if x.is_floating_point() else mask
            scored = x.numel() if observed is None else int(observed.sum())
            if scored:
                # an encoder keeps no rows: those of the batch are encoded anew
                with drawing:
                    encoded = self.model.posterior.of(x, mask) if self.model.amortized else None
                rows = index if encoded is None else None
                with drawing:
                    found = self.model.scored(x, mask, rows, posterior=encoded)
                total += elastic(*found, mask) * scored
            count += scored
            if self.block_rows is not None:
                ends = int(index[0]), int(index[-1]) + 1
                self.model.posterior.tables.release(*ends)
                self.inputs.release(*ends)
        self.model.train()
        device = beside(device_of(self.model))
        sums = self.ranks.sum(torch.tensor([total, count], dtype=torch.float64, device=device))
        total, count = sums.tolist()
        return total / count if count else float("nan")

    def _chunks(self) -> Iterator[Tensor]:
        device, num_data = device_of(self.model), self.model.num_data
        for start in range(0, num_data, _CHUNK):
            yield torch.arange(start, min(start + _CHUNK, num_data), device=device)

    def _try_to_save(self) -> CheckpointError | None:
        """Writes a checkpoint, or warns and returns why not; the one before stays then.

        Raises:
            CheckpointError: nothing may be written to the tables any more, the disk has to be mended.
        """
        assert self.run_dir is not None
        try:
            self._save()
            return None
        except OSError as error:
            failure = CheckpointError(self.run_dir, f"no checkpoint could be written: {error}")
        if self.journal is not None:
            self.journal.settle(self.run_dir)
        warnings.warn(f"{failure}; {self._kept()}", CheckpointWarning, stacklevel=2)
        return failure

    def _save(self) -> None:
        assert self.run_dir is not None
        metadata: dict[str, Any] = {
            "config": self.model.config,
            "settings": self.settings,
            "history": dict(self.history),
            "stopped": self.stopped,
            "scale": None if self.model.scaler is None else self.model.scaler.to_dict(),
            "structure": structure_of(self.model),
            "kl_weights": self.kl_weights,
        }
        partial, epochs = self.partial, self.history.epochs
        tensors = self.state.tensors(midway=partial is not None)
        if partial is not None:
            metadata["partial"] = {
                "steps": partial.steps,
                "totals": partial.totals,
                "pending": partial.pending,
            }
            # each process has generators of its own
            rank = "".join(f".{counter}" for counter in self.ranks.counters)
            tensors["generators"] = {f"{n}{rank}": t for n, t in partial.generators.items()}
        if self.journal is None:
            self.last_checkpoint = self.ranks.save(self.run_dir, epochs, tensors, metadata)
            return
        tables = self.model.posterior.tables
        assert isinstance(tables, MappedTables)
        tensors["checksums"] = tables.checksums.settle()
        tables.sync()
        token = f"{secrets.token_hex(8)}-{epochs}"
        metadata["journal"] = {"token": token, "previous": self.journal.token}
        self.journal.pending = token
        self.last_checkpoint = save_checkpoint(self.run_dir, epochs, tensors, metadata)
        self.journal.begin(token)

    def _restore(self, checkpoint: Checkpoint) -> None:
        metadata = checkpoint.metadata
        for epoch, (stored, own) in enumerate(
            zip(metadata.get("kl_weights", []), self.kl_weights, strict=False)
        ):
            if stored != own:
                raise ValueError(
                    f"kl_weight: expected {stored} in epoch {epoch} as in {checkpoint.path}, got {own}"
                )
        self.state.restore(checkpoint)
        if "partial" in metadata:
            rank = "".join(f".{counter}" for counter in self.ranks.counters)
            held = checkpoint.tensors["generators"]
            names = {name.partition(".")[0] for name in held}
            generators = {name: held[name + rank] for name in names if name + rank in held}
            self.partial = Partial(**metadata["partial"], generators=generators)
        self.history = History(checkpoint.metadata["history"])
        self.stopped = checkpoint.metadata["stopped"]
        self.last_checkpoint = checkpoint.path


def _no_mark() -> None:
    """Where no device has to be waited for."""
