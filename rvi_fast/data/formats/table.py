"""Tables as they were read: what a model sees of one, and the same table with entries filled in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from ..files import column_name

# whole numbers up to here are exact in float64
_EXACT = 2**53


class Column(NamedTuple):
    """A column of any table: its name, if any, and its values, numbers [N] or a list of objects."""

    name: str | None
    values: Any
    modelled: bool


class Table(ABC):
    """A table as it was read from a file, whatever the format.

    Attributes:
        values: [N, D], the columns of numbers: uint8 pixels, or float32 or float64 with NaN for missing.
        features: D names of them, or None.
        image_shape: (height, width) where a row is an image.
        carried: label and reason of each column that is not among `values` and stays as it is.
        carried_names: their names, or their numbers where there are none.
        text: what to say of the first column that is carried because it holds no number, or None.
        assumed: what the reader took for granted, in words.
    """

    values: np.ndarray
    features: tuple[str, ...] | None = None
    image_shape: tuple[int, int] | None = None
    carried: tuple[tuple[str, str], ...] = ()
    carried_names: tuple[str, ...] = ()
    text: str | None = None
    assumed: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    @abstractmethod
    def rows(self, index: np.ndarray) -> Table:
        """A table of the rows with these numbers, in that order, with everything else as it was read."""

    @abstractmethod
    def filled(self, values: np.ndarray, where: np.ndarray) -> Table:
        """The table with other values in some entries; all others stay as they were read.

        Args:
            values: [N, D] numbers.
            where: bool [N, D], true = taken from `values`.
        """

    @abstractmethod
    def columns(self) -> list[Column]:
        """All columns with names and values, as a file of another format would hold them."""

    @abstractmethod
    def write(self, file: IO[bytes], suffix: str) -> None:
        """Writes it in its own format, which one of `suffixes` names."""


def fill(array: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """An array with numbers in some of its entries, in its own dtype if that can hold them.

    uint8 takes the nearest pixel. Other whole numbers and bools become float64 where what is filled in
    is not whole; where float64 would change one of the others, the nearest whole numbers are filled in.

    Args:
        array: any shape and dtype of numbers.
        values: of that shape.
        where: bool of that shape, True = to be replaced.

    Returns:
        A new array; `array` itself where nothing is to be replaced.
    """
    taken = values[where]
    if not taken.size:
        return array
    if array.dtype.kind in "iub" and array.dtype != np.uint8:
        whole = array.dtype.kind != "b" and bool((taken == np.rint(taken)).all())
        kept = array[~where]
        if not whole and (array.dtype.kind == "b" or _exact(kept)):
            array = array.astype(np.float64)
    if array.dtype.kind in "iu":
        bounds = np.iinfo(array.dtype)
        # the largest float64 that an int64 can hold is less than its bound
        low, high = float(bounds.min), np.nextafter(float(bounds.max) + 1, 0)
        taken = np.clip(np.rint(taken), low, min(high, float(bounds.max)))
    filled = array.copy()
    filled[where] = taken
    return filled


def _exact(numbers: np.ndarray) -> bool:
    return not numbers.size or -_EXACT <= int(numbers.min()) <= int(numbers.max()) <= _EXACT


def one_array(columns: Sequence[Column]) -> np.ndarray:
    """The columns of numbers of a table as one array [N, D], none of the whole numbers changed.

    Args:
        columns: what `Table.columns()` gives; those that are carried are left out.

    Returns:
        [N, D] in the dtype that holds all of them, NaN for missing.

    Raises:
        ValueError: a whole number that this dtype cannot hold, one beyond 2^53 beside fractions.
    """
    parts = []
    for column in columns:
        if column.modelled:
            values = column.values
            if not isinstance(values, np.ndarray):
                whole = all(isinstance(value, int) for value in values)
                values = np.array(
                    [np.nan if value is None else value for value in values],
                    None if whole else np.float64,
                )
            parts.append(values)
    array = np.stack(parts, axis=1)
    for column, values in zip((c for c in columns if c.modelled), array.T, strict=True):
        for before, after in zip(column.values, values.tolist(), strict=True):
            # a decimal is rounded to a float64, a whole number must not be
            if isinstance(before, int | np.integer) and before != after:
                raise ValueError(f"path: column {column.name!r}: {before} would become {after}")
    return array


def check_table(array: np.ndarray) -> None:
    """Refuses what is no table of numbers, or an empty one."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers, got dtype {array.dtype}")
    if array.ndim != 2 and not (array.ndim == 3 and array.dtype == np.uint8):
        raise ValueError(f"expected [N, D], or uint8 [N, H, W], got shape {list(array.shape)}")
    if array.size == 0:
        raise ValueError(f"an empty table, shape {list(array.shape)}")


def check_finite(table: np.ndarray, features: Sequence[str] | None) -> None:
    """Refuses numbers that are infinite as float32; NaN is none of them."""
    with np.errstate(over="ignore"):
        infinite = np.isinf(table.astype(np.float32, copy=False))
    if infinite.any():
        row, column = divmod(int(infinite.argmax()), table.shape[1])
        raise ValueError(f"row {row}, column {column_name(column, features)}: infinite as float32")


def single_precision(values: np.ndarray) -> np.ndarray:
    """A contiguous table of its own: uint8 as it is, all other numbers as float32."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    return values.astype(np.float32, order="C", copy=False)


def left_out(
    ignore: Sequence[str], also: Sequence[str], names: Sequence[str] | None, width: int
) -> dict[int, str]:
    """Numbers of the columns that are to be carried, and why.

    Args:
        ignore: names, or the number of a column from 0 where none has that name.
        also: the same; what no column is called is passed over.
        names: those of all columns, or None.
        width: how many columns there are.
    """
    found: dict[int, str] = {}
    for wanted in (*ignore, *also):
        reason = "left out" if wanted in ignore else "as in training"
        places = [place for place, name in enumerate(names or ()) if name == wanted]
        if not places and wanted.isdecimal() and int(wanted) < width:
            places = [int(wanted)]
        if not places and wanted in ignore:
            known = ", ".join(map(repr, names)) if names else f"numbers from 0 to {width - 1}"
            raise ValueError(f"ignore: expected columns of the table ({known}), got {wanted!r}")
        found |= {place: found.get(place, reason) for place in places}
    return found


def not_a_number(place: str, column: int, names: Sequence[str] | None, value: object) -> str:
    """The message about an entry that is no number."""
    return f"{place}, column {column_name(column, names)}: {str(value)[:40]!r} is not a number"
