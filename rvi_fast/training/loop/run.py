"""What one call of `fit` goes through: epochs, evaluations, checkpoints."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Generator, Iterator
from functools import partial
from itertools import islice
from typing import Any, NoReturn

import torch

from ...drawing import Drawing
from ...models import LatentModel
from ..distributed.ranks import Alone
from ..inputs.feed import HostInputs
from ..inputs.fingerprint import Fingerprint
from ..inputs.prepare import Inputs
from ..inputs.withheld import Withheld
from ..places import place_of
from ..settings import Settings
from .archive import archive_of
from .callback import Callbacks
from .capture import bound_step
from .checks import Finite
from .evaluation import Evaluation
from .history import History, Partial, Standing
from .interrupts import Request
from .rates import Rates
from .seeds import MODULES, NOISE, ORDER, stream
from .shared import Observed, shared_optimizer
from .tally import Tally


class Run:
    """One call of `fit`: the optimisers, and how far they have come.

    Args:
        model: changed in place.
        inputs: its data.
        ranks: those who train the rows.
        settings: what `places.settled` has returned.
        data: fingerprint of the data of all processes.
        observed: see `shared_optimizer`.
        entries: what it is not shown of the data, if anything.
    """

    def __init__(
        self,
        model: LatentModel,
        inputs: Inputs | HostInputs,
        ranks: Alone,
        settings: Settings,
        data: Fingerprint,
        observed: Observed | None = None,
        entries: Withheld | None = None,
    ) -> None:
        self.model, self.inputs, self.ranks, self.settings = model, inputs, ranks, settings
        self.device = next(model.posterior.parameters()).device
        self.steps_per_epoch = -(-ranks.num_data // settings.batch_size)
        self.standing, self.callbacks = Standing(), Callbacks(settings.callbacks)
        self.place = place_of(model, settings)
        self.archive = archive_of(model, inputs, data, ranks, self.place, settings, self.callbacks)
        self.finite = Finite(ranks, self.place, self.archive.kept)
        # the optimisers let go of the model in it, those made last first
        self._optimizers = contextlib.ExitStack()
        try:
            self._set_up(observed, entries)
        except BaseException:
            self.detach()
            raise

    def _set_up(self, observed: Observed | None, entries: Withheld | None) -> None:
        """Makes the optimisers, and the step they take."""
        model, inputs, ranks, settings = self.model, self.inputs, self.ranks, self.settings
        self._optimizers.callback(self.place.close)
        self.place.open(self.archive.found)
        self.shared = self._optimizers.enter_context(shared_optimizer(model, settings, observed))
        self._optimizers.callback(ranks.attach(self.shared))
        self.rates = Rates(self.shared, self.place.rows)
        self.drawing, on = Drawing(settings.seed), (model, inputs, ranks, self.place)
        self.step = bound_step(*on, self.shared, self.drawing, settings)
        self._optimizers.callback(self.step.close)
        self.evaluation = Evaluation(*on, self.drawing, settings.eval_every, entries)

    def detach(self) -> None:
        """The model is the user's again, up to date and without optimisers."""
        self._optimizers.close()

    @property
    def history(self) -> History:
        """What the run has been through."""
        return self.standing.history

    def start(self) -> None:
        """Goes on from the last checkpoint if there is one."""
        self.archive.start(self.shared, self.standing)
        self.ranks.first(partial(self.callbacks.begin, self.model, self.history))

    def end(self) -> None:
        """Hands the model over, trained, and tells the callbacks."""
        self.detach()
        self.ranks.first(partial(self.callbacks.end, self.model, self.history))

    @property
    def steps_left(self) -> int:
        """Steps to the end of the last epoch; none where a callback has ended the run."""
        return self.standing.steps_left(self.settings.epochs, self.steps_per_epoch)

    def advance(self, request: Request, bar: Any) -> Iterator[None]:
        """The epochs that are left, unless a callback or a signal ends them; a step to each `next`."""
        epochs = self.settings.epochs
        for epoch in range(self.history.epochs, epochs):
            if self.standing.stopped:
                break
            bar.set_description(f"epoch {epoch + 1}/{epochs}", refresh=False)
            started = time.monotonic()
            if not (yield from self._train_epoch(epoch, bar, request)):
                self.finite.parameters(epoch)
                self._interrupt(request)
            self.evaluation.after(epoch + 1, self.history)
            self.place.settle()
            self.finite.parameters(epoch)
            record = self.history.records()[-1]
            errors = {k: f"{v:.4g}" for k, v in record.items() if k in ("loss", "elastic")}
            bar.set_postfix(errors, refresh=False)
            self.standing.stopped, due = self.ranks.first(partial(self._finish_epoch, started))
            last = self.standing.stopped or epoch + 1 == epochs
            if self.ranks.any(request.signum is not None):
                self._interrupt(request)
            if due or last:
                error = self.archive.save(later=not last)
                if error is not None and last:
                    raise error

    def _train_epoch(self, epoch: int, bar: Any, request: Request) -> Generator[None, None, bool]:
        """Trains an epoch to its end, or to where a signal has asked for the end: false then."""
        num_data, size = self.ranks.num_data, self.settings.batch_size
        # in a short last batch rows weigh as in a full one, or Adam remembers large gradients for long
        full_size = min(size, num_data)
        done = self.standing.steps_broken_off
        broken_off, self.standing.partial = self.standing.partial, None
        order = self._begin_epoch(epoch, broken_off)
        tally = Tally(self.ranks, self.device, broken_off)
        visits = self.ranks.visits(order.visits(size))
        with contextlib.ExitStack() as stack:
            check = partial(self.finite.table, epoch=epoch)
            windows = stack.enter_context(self.place.epoch(order, self.inputs, check, done))
            for _, window, _ in islice(visits, done):  # blocks come and go as they did
                windows.before(window)
                windows.after(window)
            fed = stack.enter_context(self.inputs.feed(visits))
            for step, (index, window, _) in enumerate(self.step.ahead(fed), start=done + 1):
                windows.before(window)
                complete = tally.add(self.step(index, full_size), len(index))
                windows.after(window)
                yield
                complete |= step == self.steps_per_epoch
                # several processes agree on where to end, which takes an exchange
                if not (complete or (request.signum is not None and self.ranks.alone)):
                    continue
                sums = tally.look()
                before = epoch * self.steps_per_epoch + step - len(sums)
                self.finite.losses(sums[:, 0], epoch, before)
                bar.update(len(sums))
                if complete:
                    tally.close_group()
                if step < self.steps_per_epoch and self.ranks.any(request.signum is not None):
                    self.standing.partial = tally.partial(step, self.drawing.state(self.device))
                    return False
        self.place.visited()
        for name, total in zip(("loss", "kl", "log_prob"), tally.totals.tolist(), strict=True):
            self.history[name].append(total / num_data)
        return True

    def _begin_epoch(self, epoch: int, broken_off: Partial | None) -> Any:
        """Sets all that an epoch draws from, or goes on with what it drew from; gives its order."""
        seed = self.settings.seed
        self.model.train()
        self.drawing.reseed(stream(seed, MODULES, epoch, *self.ranks.counters))
        if broken_off is not None:
            self.drawing.restore(broken_off.generators)
        self.rates.scale(self.ranks.first(partial(self.callbacks.lr_factor, self.history)))
        self.step.seed.fill_(stream(seed, NOISE, epoch))
        self.step.kl_weight.fill_(self.settings.kl_weight_in(epoch))
        generator = torch.Generator(self.device).manual_seed(stream(seed, ORDER, epoch))
        return self.place.order(self.ranks.num_data, generator)

    def _finish_epoch(self, started: float) -> tuple[bool, bool]:
        """Calls callbacks and writes metrics; whether to stop, and whether a checkpoint is due."""
        stopped = self.callbacks.stop(self.model, self.history)
        return stopped, self.archive.record(self.standing, time.monotonic() - started)

    def _interrupt(self, request: Request) -> NoReturn:
        """Leaves a checkpoint and ends the run."""
        signum = signal.SIGTERM if request.signum is None else request.signum
        where = self.standing.where(self.settings.epochs, self.steps_per_epoch)
        self.archive.interrupted(signum, f"stopped by {signal.Signals(signum).name} in {where}")
