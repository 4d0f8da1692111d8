"""Training several models side by side."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .. import _checks
from ..models import LatentModel
from ..posteriors.base import as_posterior
from ..progress import progress_bar
from .fit import fit
from .loop.callback import Callback
from .loop.history import History
from .loop.interrupts import Interrupted, Request, deferred
from .many.call import Call, Count, Outcome
from .many.in_processes import train_in_processes
from .many.in_turn import train_in_turn
from .opening import checked
from .places import directory_of
from .settings import Settings
from .workers import available_cpus, check_picklable

_ARGUMENTS = frozenset(inspect.signature(fit).parameters) - {"progress"}


class FitManyError(RuntimeError):
    """Some runs of `fit_many` have failed, all others are done.

    Attributes:
        errors: what each of those has raised, by its number.
        histories: the `History` of each run, None for those.
    """

    def __init__(
        self, errors: Mapping[int, BaseException], histories: list[History | None]
    ) -> None:
        super().__init__(errors, histories)
        self.errors, self.histories = dict(errors), histories

    def __str__(self) -> str:
        lines = [f"\n{_said(number, error)}" for number, error in self.errors.items()]
        return f"{len(self.errors)} of {len(self.histories)} runs failed:{''.join(lines)}"


def fit_many(
    runs: Sequence[Mapping[str, Any]],
    *,
    jobs: int | None = None,
    progress: bool = True,
    **common: Any,
) -> list[History]:
    """Trains several models side by side, each as its own `fit` would, bit for bit.

    Models on the CPU are trained in processes, `jobs` at a time, each with one thread of torch, so that
    the result is that of `fit` after `torch.set_num_threads(1)`: with more threads torch may add up the
    products of large layers in another order. Data that several runs take (the same object) lie in
    memory once, in a file of the temporary directory that all processes map; models go there and come
    back by way of files as well. With `jobs=1` the runs advance in this process, a step each in turn,
    and so do those that no other process could train: on a GPU, where each run has a stream and CUDA
    graphs of its own, so that small steps of several models fill the device together; and of tables
    in files.

    A script needs `if __name__ == "__main__":` around what it does, as for every use of processes; and
    what processes are given (classes of models and likelihoods, callbacks, a function as `kl_weight`)
    has to be defined in a module or at the top of the script, see `pickle`. Callbacks are called
    where the run is: what they keep, and what a model keeps beside parameters and buffers, stays there.

    A run that fails leaves the others alone; once they are done a `FitManyError` names it. Its model is
    what `fit` would have left; where its process has died, what it was before. Ctrl-C ends every run
    after the step at hand, with a checkpoint where it has a `run_dir`, from which `resume=True` goes on
    bit for bit; a second one ends all processes at once.

    Args:
        runs: of each model the arguments of `fit` by their names, `model` and `x` among them. The
            models are changed in place, as by `fit`. Each run has a model of its own, and a `run_dir`
            of its own if any.
        jobs: processes at a time; as many as there are processors for this one if not given.
        progress: show a bar over the steps of all runs.
        **common: arguments of `fit` for those runs that do not name them.

    Returns:
        The `History` of each run, in the order of `runs`.

    Raises:
        ValueError, TypeError: an argument is out of its range or cannot be given to a process, or two
            runs share a model, parameters, tables or a `run_dir`; says which run. Nothing has been
            changed then.
        FitManyError: at the end, if runs failed, those that found something wrong with the entries of
            their data included; with `errors` and `histories`.
        KeyboardInterrupt: after Ctrl-C, see above; says how to go on.

    Example:
        >>> import torch, rvi_fast
        >>> x = torch.linspace(-1, 1, 60)[:, None] * torch.tensor([1.0, -2.0, 3.0])
        >>> models = [rvi_fast.models.rvi(60, 3, latent_dim=2, groups=(4,)) for _ in range(2)]
        >>> histories = rvi_fast.fit_many(
        ...     [{"model": model, "seed": seed} for seed, model in enumerate(models)],
        ...     x=x, epochs=3, jobs=1, progress=False,
        ... )
        >>> [history.epochs for history in histories]
        [3, 3]
    """
    progress = _checks.check_bool("progress", progress)
    jobs = None if jobs is None else _checks.check_positive_int("jobs", jobs)
    calls = [_call(number, {**common, **run}) for number, run in enumerate(_mappings(runs))]
    _check_apart(calls)
    plan = _plan(calls, jobs)
    outcomes = [Outcome() for _ in calls]
    total = sum(call.num_steps for call in calls)
    with progress_bar(total, unit="step", shown=progress) as bar, deferred() as request:
        for train, numbers in plan:
            ended = train([calls[number] for number in numbers], request, bar.update)
            for number, outcome in zip(numbers, ended, strict=True):
                outcomes[number] = outcome
    return _result(outcomes, request)


def _mappings(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    runs = list(runs)
    for number, run in enumerate(runs):
        if not isinstance(run, Mapping):
            raise TypeError(
                f"runs[{number}]: expected arguments of fit by their names, got {type(run).__name__}"
            )
    return runs


def _call(number: int, arguments: dict[str, Any]) -> Call:
    """The arguments of one run, checked as `fit` checks them."""
    for name in arguments.keys() - _ARGUMENTS:
        raise TypeError(f"runs[{number}]: expected arguments of fit, got {name}")
    for name in ("model", "x"):
        if name not in arguments:
            raise TypeError(
                f"runs[{number}]: expected {name}, got {', '.join(arguments) or 'none'}"
            )
    with _naming(number):
        model, x, mask = arguments.pop("model"), arguments.pop("x"), arguments.pop("mask", None)
        if not isinstance(model, LatentModel):
            raise TypeError(f"model: expected a LatentModel, got {type(model).__name__}")
        call = Call(model, x, mask, Settings(**arguments, progress=False))
        if not checked(model, x, mask, call.settings)[1].alone:
            raise ValueError("model: expected all rows of a table, got a shard")
    return call


@contextlib.contextmanager
def _naming(number: int) -> Any:
    """Errors of arguments say which run they are of."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            error.add_note(f"runs[{number}]")
            raise
        raise type(error)(f"runs[{number}]: {error}") from error


def _check_apart(calls: Sequence[Call]) -> None:
    """Raises where two runs would write to the same."""
    owners: dict[Any, int] = {}
    for number, call in enumerate(calls):
        found: dict[Any, str] = {id(call.model): "model: expected one of its own"}
        for parameter in call.model.parameters():
            found[id(parameter)] = "model: expected parameters of its own"
        if (tables := directory_of(call.model)) is not None:
            found[tables.resolve()] = f"model: expected tables of its own, got {tables}"
        if (run_dir := call.settings.directory) is not None:
            found[Path(run_dir).resolve()] = f"run_dir: expected one of its own, got {run_dir}"
        for callback in call.settings.callbacks:
            if isinstance(callback, Callback) and not callback.shared:
                found[id(callback)] = f"callbacks: expected a {type(callback).__name__} of its own"
        for key, text in found.items():
            if owners.setdefault(key, number) != number:
                raise ValueError(f"runs[{number}]: {text}, which runs[{owners[key]}] has")


def _plan(
    calls: Sequence[Call], jobs: int | None
) -> list[tuple[Callable[[Sequence[Call], Request, Count], list[Outcome]], list[int]]]:
    """How runs are trained, and which."""
    apart = [number for number, call in enumerate(calls) if call.on_cpu]
    # a process that belongs to another one's pool may not start any
    most = 1 if multiprocessing.current_process().daemon else jobs or available_cpus()
    jobs = min(most, len(apart))
    if jobs < 2:
        return [(train_in_turn, list(range(len(calls))))]
    for number in apart:
        call, settings = calls[number], calls[number].settings
        with _naming(number):
            check_picklable(
                {
                    "model": call.model,
                    "x": call.x if isinstance(call.x, Dataset) else None,
                    "callbacks": list(settings.callbacks),
                    "kl_weight": settings.kl_weight,
                }
            )
    for number in apart:
        # what `fit` does to a model before it trains: it is where it is to be, driven by nobody
        model = calls[number].model.to("cpu")
        if as_posterior(model.posterior).owns_rows and (driver := model.posterior._row_optimizer):
            driver.detach()
    rest = sorted({*range(len(calls))} - {*apart})

    def processes(calls: Sequence[Call], request: Request, count: Count) -> list[Outcome]:
        return train_in_processes(calls, jobs, request, count)

    return [(processes, apart), (train_in_turn, rest)]


def _said(number: int, error: BaseException) -> str:
    return f"runs[{number}]: {type(error).__name__}: {error}"


def _result(outcomes: Sequence[Outcome], request: Request) -> list[History]:
    histories = [outcome.history for outcome in outcomes]
    errors = {number: o.error for number, o in enumerate(outcomes) if o.error is not None}
    if request.signum is not None:
        left = "".join(f"\nruns[{number}]: {error}" for number, error in errors.items())
        raise Interrupted(request.signum, f"{len(errors)} of {len(outcomes)} runs not done:{left}")
    if errors:
        raise FitManyError(errors, histories) from next(iter(errors.values()))
    return [history for history in histories if history is not None]
