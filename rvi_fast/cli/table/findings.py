"""What is to be told of each column of a filled table: its cells, and those that were held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .filling import Imputed, cells_of, modelled_frame
from .kinds import Column
from .sources import Source

CLASSES = ("boolean", "category")
_NOTHING = np.zeros(0)


@dataclass(frozen=True)
class Finding:
    """A column that was modelled.

    Cells are float64, dates in days from 1970, and those of yes/no and classes words [n] as the file
    has them.

    Args:
        label: what messages call it.
        kind: of `KINDS`.
        missing: which cells were empty [N].
        observed: cells that hold something.
        filled: cells that were filled in, of all draws.
        truth: of the cells that were held out, what they are.
        found: what was filled in there by members that had not seen them.
        linear: what the linear member alone would have filled in.
        usual: the mean of the column, or its most frequent class, without what was held out.
        relative: root mean square error there in the model's units, that of the mean = 1.
        weights: of the members in this column, by name.
        logarithmic: whether the column was trained on as logarithms.
    """

    label: str
    kind: str
    missing: np.ndarray
    observed: np.ndarray
    filled: np.ndarray
    truth: np.ndarray = field(default_factory=_NOTHING.copy)
    found: np.ndarray = field(default_factory=_NOTHING.copy)
    linear: np.ndarray = field(default_factory=_NOTHING.copy)
    usual: Any = None
    relative: float = float("nan")
    weights: dict[str, float] = field(default_factory=dict)
    logarithmic: bool = False

    @property
    def of_classes(self) -> bool:
        """Whether its cells are words."""
        return self.kind in CLASSES

    def error(self, found: Any) -> float:
        """How far off cells [n], or one for all, are where cells were held out.

        Of numbers and dates the root mean square error, of classes the share that is wrong; NaN where
        nothing was held out.
        """
        if not len(self.truth):
            return float("nan")
        if self.of_classes:
            return float(np.mean(self.truth != found))
        return float(np.sqrt(np.mean((self.truth - found) ** 2)))


def findings(source: Source, result: Imputed) -> list[Finding]:
    """What is to be told of each column that was modelled, in the order of the table."""
    judged = _judged(source, result)
    found = []
    for at, place in enumerate(result.modelled):
        column = source.columns[place]
        rows, predictions = judged[at] if judged else (np.zeros(0, int), {})
        shown = ~column.missing
        truth = _cells(column, column.values.iloc[rows])
        rest = shown.copy()
        rest[rows] = False
        fills = (draw.get(place, {}).values() for draw in result.draws)
        found.append(
            Finding(
                column.label,
                column.kind,
                column.missing,
                _cells(column, column.values[shown]),
                _cells(column, [value for draw in fills for value in draw]),
                truth,
                predictions.get("blend", truth),
                predictions.get("linear", truth),
                _usual(column, _cells(column, column.values[rest])) if len(rows) else None,
                _relative(result, at),
                _weights(result, at),
                _logarithmic(result, at),
            )
        )
    return found


def _judged(
    source: Source, result: Imputed
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]] | None:
    """By column, the rows whose cells were held out, and what members would have written there."""
    import pandas

    told = getattr(result.imputer, "held_out_predictions_", None)
    if told is None:
        return None
    rows, at = np.unique(told["row"], return_inverse=True)
    frame = modelled_frame(source.columns, result.modelled).iloc[rows].reset_index(drop=True)
    hidden = np.zeros(frame.shape, bool)
    hidden[at, told["column"]] = True
    encoder = result.imputer.encoder_
    tables = {}
    for name in ("blend", "linear"):
        numbers = np.full(frame.shape, np.nan)
        numbers[at, told["column"]] = told[name]
        tables[name] = (
            pandas.DataFrame(numbers, columns=frame.columns)
            if encoder is None
            else encoder.decode(numbers, frame.mask(hidden))
        )
    parts = []
    for number, place in enumerate(result.modelled):
        column, own = source.columns[place], at[told["column"] == number]
        written = {
            name: _cells(column, cells_of(column, table.iloc[own, number]))
            for name, table in tables.items()
        }
        parts.append((rows[own], written))
    return parts


def _cells(column: Column, values: Any) -> np.ndarray:
    """Cells as a `Finding` has them."""
    import pandas

    if column.kind in CLASSES:
        return np.array([word_of(column, value) for value in values], object)
    if column.kind == "date":
        dates = pandas.to_datetime(pandas.Series(values, dtype=column.values.dtype), utc=True)
        days = (dates - pandas.Timestamp(0, tz="UTC")) / pandas.Timedelta(days=1)
        return days.to_numpy(np.float64)
    return np.array(values, np.float64)


def word_of(column: Column, value: Any) -> str:
    """A class as the file writes it."""
    return str(value) if column.form is None else str(column.form.text(value))


def _usual(column: Column, cells: np.ndarray) -> Any:
    """The mean of numbers, the most frequent of classes."""
    if column.kind not in CLASSES:
        return float(np.mean(cells)) if len(cells) else float("nan")
    words, counts = np.unique(cells.astype(str), return_counts=True)
    return str(words[counts.argmax()]) if len(words) else ""


def _relative(result: Imputed, at: int) -> float:
    return float("nan") if result.errors is None else float(result.errors["blend"][at])


def _weights(result: Imputed, at: int) -> dict[str, float]:
    blend = getattr(result.imputer, "blend_", None)
    if blend is None:
        return {}
    return dict(zip(blend.names, map(float, blend.weights[:, at]), strict=True))


def _logarithmic(result: Imputed, at: int) -> bool:
    transform = getattr(result.imputer, "column_transform_", None)
    return transform is not None and transform.kinds[at] == "log"


def worst_first(found: Iterable[Finding]) -> list[Finding]:
    """Columns that hold something held out, those found worst first."""
    return sorted(
        (own for own in found if np.isfinite(own.relative)), key=lambda own: -own.relative
    )


def most_missing_first(found: Iterable[Finding]) -> list[Finding]:
    """Columns in which something was filled in, those with most of it first."""
    return sorted(
        (own for own in found if len(own.filled)), key=lambda own: -int(own.missing.sum())
    )
