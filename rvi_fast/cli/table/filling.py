"""From typed columns to the values of their empty cells."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .date_form import DateForm
from .kinds import Column
from .sources import Fills, Source

# of what reading leaves of a time limit, the share of training
_SHARE = 0.5
# seconds after which nothing is trained but the linear model
_LEAST = 1e-6
# rows that tell how long all of them will take
_TRIED = 512

# what a time limit goes by
now = time.monotonic


@dataclass(frozen=True)
class Imputed:
    """What was found for the empty cells of a table.

    Args:
        draws: the values, once or for each draw.
        modelled: which columns the model has seen.
        errors: held-out errors by member and column [len(modelled)], relative to column means; None
            where too little was observed to hold out anything.
        imputer: the fitted `rvi_fast.sklearn.RelayImputer`; None where nothing had to be modelled.
        notes: what there was no time for.
    """

    draws: list[Fills]
    modelled: list[int]
    errors: dict[str, np.ndarray] | None = None
    imputer: Any = None
    notes: Sequence[str] = ()


def imputed(
    source: Source,
    *,
    device: str,
    seed: int,
    draws: int | None = None,
    progress: bool = False,
    end: float | None = None,
) -> Imputed:
    """Trains on a table and finds values for its empty cells.

    Args:
        source: the table.
        device: where to train.
        seed: of all random numbers.
        draws: how many random completions instead of the best one.
        progress: show progress bars.
        end: on `now`, when all is to be filled in; None for whenever it is.
    """
    columns = source.columns
    modelled = [place for place, own in enumerate(columns) if own.values is not None]
    constant = {
        place: dict.fromkeys(np.flatnonzero(own.missing).tolist(), own.constant)
        for place, own in enumerate(columns)
        if own.constant is not None and own.missing.any()
    }
    wanted = [place for place in modelled if columns[place].missing.any()]
    if not wanted:
        return Imputed([constant] * (draws or 1), modelled)
    frame = modelled_frame(columns, modelled)
    imputer = _imputer(device, seed, progress)

    def fill(rows: Any) -> Any:
        if draws is None:
            return [imputer.transform(rows)]
        return imputer.sample(rows, draws, random_state=seed)

    notes = _fit(imputer, frame, fill, end)
    found: list[Fills] = []
    for filled in map(_named(frame), fill(frame)):
        places = {place: filled.iloc[:, at] for at, place in enumerate(modelled)}
        own = {place: _filled(columns[place], places[place]) for place in wanted}
        found.append({**constant, **own})
    return Imputed(found, modelled, getattr(imputer, "held_out_errors_", None), imputer, notes)


def _imputer(device: str, seed: int, progress: bool) -> Any:
    from ...sklearn import RelayImputer

    return RelayImputer(device=device, random_state=seed, verbose=progress)


def _fit(imputer: Any, frame: Any, fill: Callable[[Any], Any], end: float | None) -> list[str]:
    """Fits an imputer with which `fill` will be done at `end`; returns what there was no time for."""
    if end is None:
        imputer.fit(frame)
        return []
    notes = _fit_within(imputer, frame, max(_SHARE * (end - now()), _LEAST))
    some, begun = frame.iloc[:: -(-len(frame) // _TRIED)], now()
    fill(some)
    expected = (now() - begun) * len(frame) / len(some)
    # without members beside it the relay model is all there is
    if expected > end - now() and imputer.blend_ is not None and imputer.blend_.names[1:]:
        _fit_within(imputer, frame, _LEAST)
        return ["the linear model fills in all rows alone, as with others it would take too long"]
    return notes


def _fit_within(imputer: Any, frame: Any, seconds: float) -> list[str]:
    """Fits an imputer with a limit; returns what it says about that."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        imputer.set_params(max_time=seconds).fit(frame)
    notes = []
    for own in caught:
        if issubclass(own.category, ConvergenceWarning):
            # the limit it names is the part of ours that training has
            notes.append(str(own.message).rpartition("trained: ")[2])
        else:
            warnings.warn_explicit(own.message, own.category, own.filename, own.lineno)
    return notes


def modelled_frame(columns: list[Column], modelled: list[int]) -> Any:
    """A DataFrame of what the model sees; names are numbers, as those of the file may recur."""
    import pandas

    parts = {f"column {place}": columns[place].values for place in modelled}
    return pandas.DataFrame({name: own.reset_index(drop=True) for name, own in parts.items()})


def _named(frame: Any) -> Callable[[Any], Any]:
    """What makes a DataFrame of what the estimator gives: of numbers alone an array."""
    import pandas

    return lambda filled: pandas.DataFrame(filled, columns=frame.columns)


def _filled(column: Column, filled: Any) -> dict[int, Any]:
    """Values of the empty cells of a column by row."""
    rows = np.flatnonzero(column.missing)
    return dict(zip(rows.tolist(), cells_of(column, filled.iloc[rows]).tolist(), strict=True))


def cells_of(column: Column, values: Any) -> Any:
    """What the estimator gives for cells of a column, as a Series of what is written there."""
    match column.kind:
        case "integer":
            values = values.astype("float64").round().astype("int64")
        case "number" if column.decimals is not None:
            values = values.astype("float64").round(column.decimals)
        case "boolean":
            values = values.astype("float64") >= 0.5
        case "date":
            values = _rounded(column, values)
    return values


def _rounded(column: Column, dates: Any) -> Any:
    """Dates in the unit in which the column has them."""
    if isinstance(column.form, DateForm):
        return dates.dt.round(column.form.unit)
    known = column.values.dropna()
    return dates.dt.round("D") if (known == known.dt.normalize()).all() else dates
