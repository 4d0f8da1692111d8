"""Columns of each kind: as numbers of a model, and numbers as entries of the column."""

from __future__ import annotations

import datetime
from typing import Any, Self

import numpy as np

# units of dates and durations in nanoseconds, the coarsest first
_UNITS = (86_400 * 10**9, 3600 * 10**9, 60 * 10**9, 10**9, 10**6, 10**3, 1)
_DATES = (datetime.date, np.datetime64)
_DURATIONS = (datetime.timedelta, np.timedelta64)


class Column:
    """A column that a model takes; of numbers, as they are.

    Attributes:
        law: what `likelihood=` is to say of it.
    """

    law: Any = "gaussian"

    def fit(self, series: Any) -> Self:
        """Learns from the entries of a column how they become numbers."""
        return self

    def encode(self, series: Any) -> np.ndarray:
        """Numbers [N], float64; NaN where an entry is missing, or is no such number."""
        return series.astype("Float64").to_numpy(np.float64, na_value=np.nan)

    def entries(self, values: np.ndarray, dtype: Any) -> Any:
        """Entries of the column that numbers [n] stand for."""
        return values


class Integers(Column):
    """Whole numbers: what is filled in is rounded, to what the dtype can hold."""

    def entries(self, values: np.ndarray, dtype: Any) -> Any:
        whole = np.rint(values)
        numpy_dtype = getattr(dtype, "numpy_dtype", dtype)
        if isinstance(numpy_dtype, np.dtype) and numpy_dtype.kind in "iu":
            info = np.iinfo(numpy_dtype)
            # float64 does not hold the largest number of 64 bits: the next lower one it does
            highest = np.nextafter(float(info.max), 0) if info.bits == 64 else float(info.max)
            return whole.clip(float(info.min), highest).astype(numpy_dtype)
        if isinstance(numpy_dtype, np.dtype) and numpy_dtype.kind == "O":
            return [int(value) for value in whole]
        return whole


class Booleans(Column):
    """True and False."""

    law = "bernoulli"

    def encode(self, series: Any) -> np.ndarray:
        values = [np.nan if isna else value for value, isna in _pairs(series)]
        wrong = [own for own in values if own != 0 and own != 1 and own == own]
        if wrong:
            raise ValueError(f"expected True and False, got {wrong[0]!r}")
        return np.array(values, np.float64)

    def entries(self, values: np.ndarray, dtype: Any) -> Any:
        return values > 0.5


class Categories(Column):
    """Classes, in the order of a categorical dtype, and sorted otherwise; those that are seen.

    Attributes:
        classes: what the codes 0, 1, ... stand for.
    """

    def fit(self, series: Any) -> Self:
        seen = series[series.notna()]
        if hasattr(seen, "cat"):
            present = set(seen.unique())
            self.classes = [own for own in seen.cat.categories if own in present]
        else:
            found = list(seen.unique())
            try:
                self.classes = sorted(found)
            except TypeError:  # of several types
                self.classes = sorted(found, key=lambda own: (type(own).__name__, str(own)))
        # one class has nothing to be told from: a constant
        self.law = ("categorical", len(self.classes)) if len(self.classes) > 1 else "gaussian"
        self._codes = {own: float(code) for code, own in enumerate(self.classes)}
        return self

    def encode(self, series: Any) -> np.ndarray:
        return np.array(
            [np.nan if isna else self._codes.get(value, np.nan) for value, isna in _pairs(series)]
        )

    def entries(self, values: np.ndarray, dtype: Any) -> Any:
        last = len(self.classes) - 1
        return [self.classes[int(code)] for code in np.rint(values).clip(0, last)]


class Times(Column):
    """Dates and times, or durations, as nanoseconds from the first one seen.

    What is filled in is rounded to days, or to the largest smaller unit that all entries seen are whole
    numbers of.
    """

    def __init__(self, *, durations: bool) -> None:
        self.durations = durations

    def fit(self, series: Any) -> Self:
        counts, missing = self._counts(series)
        self.zone = _zone_of(series.dtype)
        # of objects, days that are no points in time
        self.days = all(type(own) is datetime.date for own in series[~missing].head(1))
        seen = counts[~missing]
        self.first = int(seen.min()) if len(seen) else 0
        self.unit = next(unit for unit in _UNITS if not ((seen - self.first) % unit).any())
        return self

    @property
    def days_in_unit(self) -> float:
        """How many days 1 is of what `encode` gives."""
        return self.unit / _UNITS[0]

    def encode(self, series: Any) -> np.ndarray:
        if (_zone_of(series.dtype) is None) != (self.zone is None):
            raise ValueError(
                f"expected times {'with' if self.zone else 'without'} a time zone, got {series.dtype}"
            )
        counts, missing = self._counts(series)
        values = (counts - self.first) / self.unit
        values[missing] = np.nan
        return values

    def entries(self, values: np.ndarray, dtype: Any) -> Any:
        import pandas

        # 2^53 units are what float64 tells apart; beyond, dates end as well
        steps = np.rint(values.clip(-(2.0**53), 2.0**53)).astype(object)
        low, high = pandas.Timestamp.min.value + 1, pandas.Timestamp.max.value
        counts = [min(max(self.first + int(step) * self.unit, low), high) for step in steps]
        if self.durations:
            found = pandas.to_timedelta(np.array(counts, np.int64), unit="ns")
        else:
            found = pandas.to_datetime(np.array(counts, np.int64), unit="ns", utc=True)
            found = (
                found.tz_convert(self.zone) if self.zone is not None else found.tz_localize(None)
            )
        if getattr(dtype, "kind", "") == "O" and isinstance(dtype, np.dtype):
            objects = list(found) if self.durations else list(found.to_pydatetime())
            return [own.date() for own in objects] if self.days else objects
        return found.astype(dtype)

    def _counts(self, series: Any) -> tuple[np.ndarray, np.ndarray]:
        """Nanoseconds [N], 0 where an entry is missing, and where."""
        import pandas

        missing = series.isna().to_numpy(bool)
        for own in series[~missing].head(1):
            if not isinstance(own, _DURATIONS if self.durations else _DATES):
                raise ValueError(f"expected datetimes or timedeltas, got {own!r}")
        if self.durations:
            found = pandas.to_timedelta(series).astype("timedelta64[ns]")
        else:
            found = pandas.to_datetime(series, utc=True).astype("datetime64[ns, UTC]")
        counts = found.astype("int64").to_numpy().copy()
        counts[missing] = 0
        return counts, missing


def column_of(kind: str) -> Column | None:
    """A column of a kind; None for text."""
    made = {
        "number": Column,
        "integer": Integers,
        "boolean": Booleans,
        "category": Categories,
        "date": lambda: Times(durations=False),
        "duration": lambda: Times(durations=True),
    }
    return made[kind]() if kind in made else None


def _zone_of(dtype: Any) -> Any:
    """The time zone of a dtype of pandas or pyarrow, None without one."""
    return getattr(getattr(dtype, "pyarrow_dtype", dtype), "tz", None)


def _pairs(series: Any) -> Any:
    return zip(series, series.isna(), strict=True)
