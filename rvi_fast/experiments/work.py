"""Runs that train models: what they ask for, and who trains them.

The work of a run is a generator. It yields the arguments of `fit` for each model that it trains, with
`progress` and `device` left to whoever trains; is sent the `History`, or has the error raised where it
has yielded; and returns its result.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from ..training import FitManyError, History, fit, fit_many

Result = TypeVar("Result")
Work = Generator[dict[str, Any], History, Result]


def finished(work: Work[Result]) -> Result:
    """The result of a run whose models are trained by `fit`, one after the other."""
    try:
        arguments = next(work)
        while True:
            try:
                history = fit(**arguments, progress=False)
            except Exception as error:
                arguments = work.throw(error)
            else:
                arguments = work.send(history)
    except StopIteration as end:
        result: Result = end.value
        return result


def train(
    calls: Mapping[Any, Mapping[str, Any]], device: str | None = None
) -> dict[Any, History | BaseException]:
    """Trains what some runs ask for, in one call of `fit_many`, in this process.

    Args:
        calls: what the runs have yielded, by any key.
        device: where to train, as in `fit`.

    Returns:
        By the same keys what `fit` would give, or raise: the others are trained all the same.

    Raises:
        KeyboardInterrupt: as `fit_many`.
    """
    if not calls:
        return {}
    ended: list[History | BaseException]
    try:
        ended = [*fit_many([*calls.values()], jobs=1, device=device, progress=False)]
    except FitManyError as error:
        ended = [
            error.errors[number] if history is None else history
            for number, history in enumerate(error.histories)
        ]
    except (ValueError, TypeError):
        # arguments of one are wrong, and nothing has been trained: each for itself says whose
        ended = [_alone(call, device) for call in calls.values()]
    return dict(zip(calls, ended, strict=True))


def _alone(call: Mapping[str, Any], device: str | None) -> History | BaseException:
    try:
        return fit(**call, device=device, progress=False)
    except Exception as error:
        return error
