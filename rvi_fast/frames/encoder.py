"""A DataFrame as the table of a model, and a filled table as a DataFrame."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Self

import numpy as np

from .columns import Column, Times, column_of
from .kinds import check_frame, recognise


class FrameEncoder:
    """Between DataFrames and the tables that `likelihood=encoder.laws` describes.

    A table has a column for each of the frame's; those of text are missing throughout.

    Args:
        kinds: column -> kind where `recognise` is not to decide.

    Attributes:
        kinds_: column -> kind.
        laws: of each column what `likelihood=` says.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"size": [1.5, None], "colour": ["red", "red"]})
        >>> encoder = FrameEncoder().fit(frame)
        >>> encoder.kinds_
        {'size': 'number', 'colour': 'category'}
        >>> x, mask = encoder.encode(frame)
        >>> x.tolist()
        [[1.5, 0.0], [nan, 0.0]]
    """

    kinds_: dict[Hashable, str]
    _columns: dict[Hashable, Column | None]

    def __init__(self, kinds: Mapping[Hashable, str] | None = None) -> None:
        self.kinds = kinds

    def fit(self, frame: Any) -> Self:
        """Learns kinds, classes and units of a `pandas.DataFrame` [N, D].

        Raises:
            TypeError, ValueError: see `recognise`; or entries that a kind in `kinds` does not suit.
        """
        self.kinds_ = recognise(frame, self.kinds)
        self._columns = {}
        for name, kind in self.kinds_.items():
            column = column_of(kind)
            self._columns[name] = (
                None if column is None else _told(name, kind, column.fit, frame[name])
            )
        return self

    @property
    def laws(self) -> list[Any]:
        """Of each column what `likelihood=` is to say: a name, or ("categorical", k)."""
        return ["gaussian" if own is None else own.law for own in self._columns.values()]

    @property
    def modelled(self) -> np.ndarray:
        """Which columns are part of a model, bool [D]: all but those of text."""
        return np.array([own is not None for own in self._columns.values()], bool)

    @property
    def days(self) -> np.ndarray:
        """How many days a unit of `encode` is in dates and durations, 1 for other columns: [D]."""
        columns = self._columns.values()
        return np.array([own.days_in_unit if isinstance(own, Times) else 1.0 for own in columns])

    def encode(self, frame: Any) -> tuple[np.ndarray, np.ndarray]:
        """The table of a frame with the columns of `fit`, in any order.

        Returns:
            x [N, D] float64, NaN where an entry is missing, is text, or is of a class that `fit` has not
            seen; and bool [N, D], true where it is not.

        Raises:
            TypeError, ValueError: not the columns of `fit`, or entries that are not of their kind.
        """
        frame = self._aligned(frame)
        x = np.full(frame.shape, np.nan)
        for place, (name, column) in enumerate(self._columns.items()):
            if column is not None:
                x[:, place] = _told(name, self.kinds_[name], column.encode, frame[name])
        return x, ~np.isnan(x)

    def decode(self, filled: np.ndarray, frame: Any) -> Any:
        """The frame with its missing entries filled in.

        Args:
            filled: [N, D] in the units of `encode`; NaN leaves an entry missing.
            frame: what was encoded.

        Returns:
            A new DataFrame: columns, index and observed entries of `frame`, and its dtypes; a
            categorical dtype has a class more where one is filled in that it lacks. Of what `encode`
            calls missing only what is missing in `frame` is filled in.
        """
        frame = self._aligned(frame)
        filled = np.asarray(filled, np.float64)
        if filled.shape != frame.shape:
            raise ValueError(
                f"filled: expected shape {list(frame.shape)}, got {list(filled.shape)}"
            )
        result = frame.copy()
        for place, (name, column) in enumerate(self._columns.items()):
            holes = np.flatnonzero(frame[name].isna().to_numpy(bool) & ~np.isnan(filled[:, place]))
            if column is not None and len(holes):
                result[name] = _with(frame[name], holes, column, filled[holes, place])
        return result

    def _aligned(self, frame: Any) -> Any:
        """The frame with its columns in the order of `fit`."""
        check_frame(frame)
        missing = [name for name in self._columns if name not in frame.columns]
        more = [name for name in frame.columns if name not in self._columns]
        for words, names in (("without", missing), ("with", more)):
            if names:
                raise ValueError(
                    f"columns: expected those of fit, got a table {words} "
                    f"{', '.join(map(repr, names[:5]))}"
                )
        return frame[list(self._columns)]


def _with(series: Any, holes: np.ndarray, column: Column, values: np.ndarray) -> Any:
    """The column with entries where it has holes."""
    entries = column.entries(values, series.dtype)
    if hasattr(series, "cat"):
        known = series.cat.categories
        lacking = [own for own in dict.fromkeys(entries) if own not in known]
        series = series.cat.add_categories(lacking) if lacking else series
    result = series.copy()
    result.iloc[holes] = entries
    return result


def _told(name: Hashable, kind: str, function: Any, series: Any) -> Any:
    """What a function makes of a column; what it cannot is refused by the column's name."""
    try:
        return function(series)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"column {name!r}: expected entries of the kind {kind!r}: {error}"
        ) from error
