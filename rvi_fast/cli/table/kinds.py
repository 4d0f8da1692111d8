"""Which kind of values each column of a table of strings holds, and the values themselves."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from . import date_form
from .date_form import DateForm, dates_of, formats_of
from .number_form import (
    COMMA,
    MOSTLY,
    NumberForm,
    Reading,
    chosen,
    decimal_of,
    is_code,
    is_whole,
    number_of,
    readings_of,
)

KINDS = ("number", "integer", "boolean", "category", "date", "text")
# as pandas.read_csv has them, and ? beside them
MISSING = frozenset(
    (
        *(
            "",
            "#N/A",
            "#N/A N/A",
            "#NA",
            "-1.#IND",
            "-1.#QNAN",
            "-NaN",
            "-nan",
            "1.#IND",
            "1.#QNAN",
        ),
        *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "?"),
    )
)
_PAIRS = (
    ("false", "true"),
    ("no", "yes"),
    ("n", "y"),
    ("f", "t"),
    ("nein", "ja"),
    ("non", "oui"),
    ("0", "1"),
)
_MOST_CLASSES = 50
_NUMBERED = 10  # different numbers that a column of classes may hold
_ID = re.compile(r"(.*[_\W])?(id|uuid|guid|key|index|no|nr|code)|.*I[dD]|unnamed: 0|", re.I)


class Form(Protocol):
    """How a column writes a value."""

    def text(self, value: Any) -> str:
        """The value as a cell of the column."""


@dataclass(frozen=True)
class Words:
    """Writes a value as the word that the column most often uses for it."""

    words: Mapping[Any, str]

    def text(self, value: Any) -> str:
        """The word for a value."""
        return self.words[value]


@dataclass
class Column:
    """A column of a table, typed.

    Args:
        label: what messages call it.
        kind: one of `KINDS`.
        missing: which cells hold nothing [N].
        values: pandas' Series of the kind's dtype, or None where it is passed through or constant.
        form: how cells are written, where it is to be filled.
        reason: why it is passed through; of others what has been noticed.
        constant: the one value of a column that has no other, as it is written.
        decimals: of numbers, the digits behind the point; None for as many as there are.
    """

    label: str
    kind: str
    missing: np.ndarray
    values: Any = None
    form: Form | None = None
    reason: str = ""
    constant: Any = None
    decimals: int | None = None


@dataclass
class Cells:
    """The strings of one column.

    Args:
        label: what messages call the column.
        name: what the file calls it.
        texts: what its cells say [N].
        where: what messages call a row.
        tokens: what says that a cell is missing.
    """

    label: str
    name: str
    texts: Sequence[str]
    where: Callable[[int], str]
    tokens: frozenset[str]
    missing: np.ndarray = field(init=False)
    counts: Counter[str] = field(init=False)
    readings: list[Reading] = field(init=False)

    def __post_init__(self) -> None:
        counts = Counter(self.texts)
        empty = {text for text in counts if text in self.tokens}
        numbers = {float(token) for token in self.tokens if _plain(token)}
        if numbers:  # -999 is missing where a column writes -999.0
            for text in counts:
                read = {number_of(text, decimal) for decimal in ".,"}
                empty |= {text} if read & numbers else set()
        self.missing = np.array([text in empty for text in self.texts], bool)
        self.counts = Counter({t: n for t, n in counts.items() if t not in empty})
        self.readings = readings_of(list(self.counts))

    @property
    def distinct(self) -> list[str]:
        """What its cells say, each once, in the order of the file."""
        return list(self.counts)

    @property
    def observed(self) -> int:
        """How many cells hold something."""
        return sum(self.counts.values())

    def first(self, text: str) -> int:
        """The first row that says so."""
        return self.texts.index(text)

    def refusal(self, expected: str, text: str, hint: str) -> ValueError:
        """An error that names line, column and cell."""
        at = self.where(self.first(text))
        return ValueError(f"{at}, column {self.label}: expected {expected}, got {text!r}; {hint}")


def recognise(
    columns: Sequence[Cells], kinds: Mapping[int, str], decimal: str | None = None
) -> list[Column]:
    """The columns of a table with the kinds of their values.

    Args:
        columns: all of the table.
        kinds: by column, what the user says: one of `KINDS`, or "date:FORMAT".
        decimal: the decimal sign; None tells it from the columns.

    Raises:
        ValueError: a column holds numbers or dates and a few other words, a number that is infinite or
            can be read in two ways, or something else than its kind; names line and column.
    """
    numeric = [own.readings for own in columns if _mostly_numbers(own, own.readings[0])]
    decimal = decimal or decimal_of(numeric)
    formats: dict[int, list[str]] = {}
    for place, own in enumerate(columns):
        formats[place] = formats_of(own.distinct) if len(own.counts) > 1 else []
    orders = set(date_form.columns_in(formats.values()))
    day_first = orders.pop() if len(orders) == 1 else None
    found = []
    for place, own in enumerate(columns):
        asked = kinds.get(place)
        found.append(
            _asked(own, asked, decimal, formats[place], day_first)
            if asked
            else _told(own, decimal, formats[place], day_first)
        )
    return found


def _told(
    own: Cells, decimal: str | None, formats: Sequence[str], day_first: bool | None
) -> Column:
    """A column of the kind that its cells tell."""
    if len(own.counts) < 2:
        return _single(own)
    if pair := _pair(own):
        return _boolean(own, pair)
    if formats:
        return _dates(own, _one_format(own, formats, day_first))
    reading = chosen(own.readings, decimal)
    if isinstance(reading, str):
        raise _ambiguous(own, reading)
    codes = any(is_code(text, reading.decimal) for text in reading.numbers)
    if not reading.faults and not codes:
        return _id_of_numbers(own, reading) or _numbers(own, reading)
    numbers = not codes and _mostly_numbers(own, reading)
    # 1, 2 and 3+ are classes
    if _is_category(own) and not (numbers and len(reading.numbers) > _NUMBERED):
        return _category(own)
    if numbers:
        fault = min(reading.faults, key=own.first)
        raise own.refusal("a number as in most rows", fault, _hint(own, fault, "category"))
    if mostly := date_form.mostly(own.distinct, MOSTLY):
        raise own.refusal(
            f"a date {mostly[0]} as in most rows", mostly[1], _hint(own, mostly[1], "text")
        )
    different = len(own.counts)
    reason = (
        "different in every row"
        if different == own.observed
        else f"text of {different:,} different values"
    )
    return Column(own.label, "text", own.missing, reason=reason)


def _asked(
    own: Cells, asked: str, decimal: str | None, formats: Sequence[str], day_first: bool | None
) -> Column:
    """A column of the kind that the user says."""
    kind, _, format = asked.partition(":")
    if kind == "text":
        return Column(own.label, "text", own.missing, reason="--kinds")
    if not own.counts:
        raise ValueError(f"--kinds: column {own.label} holds nothing: expected text, got {asked}")
    if kind == "category":
        return _single(own) if len(own.counts) < 2 else _category(own)
    if kind == "boolean":
        if len(own.counts) < 2:
            return _single(own)
        words = sorted({text.casefold() for text in own.counts})
        if len(words) != 2:
            raise ValueError(
                f"--kinds: column {own.label}: expected two different values for boolean, got "
                f"{len(words)}"
            )
        return _boolean(own, _pair(own) or (words[0], words[1]))
    if kind == "date":
        if not format and not formats:
            formats = formats_of(own.distinct)
        if not format and not formats:
            hint = "name the format: --kinds COLUMN=date:%d.%m.%Y"
            raise own.refusal("dates of one format", own.distinct[0], hint)
        return _dates(own, format or _one_format(own, formats, day_first))
    reading = chosen(own.readings, decimal)
    if isinstance(reading, str):
        raise _ambiguous(own, reading)
    if reading.faults:
        fault = min(reading.faults, key=own.first)
        raise own.refusal(f"a number (--kinds says {kind})", fault, _hint(own, fault, "category"))
    if kind == "integer" and not is_whole(reading.numbers.values()):
        fault = next(text for text, number in reading.numbers.items() if not is_whole([number]))
        raise own.refusal("an integer (--kinds)", fault, "say number instead")
    return _numbers(own, reading, kind)


def _single(own: Cells) -> Column:
    """A column of one value or none."""
    if not own.counts:
        return Column(own.label, "text", own.missing, reason="holds nothing")
    value = own.distinct[0]
    return Column(own.label, "text", own.missing, reason=f"one value, {value!r}", constant=value)


def _pair(own: Cells) -> tuple[str, str] | None:
    """The words for no and yes, where a column holds these two and no other."""
    words = {text.casefold() for text in own.counts}
    return next((pair for pair in _PAIRS if words == set(pair)), None)


def _boolean(own: Cells, pair: tuple[str, str]) -> Column:
    words = {own_word: _most_used(own, pair[own_word]) for own_word in (False, True)}
    values = _series([text.casefold() == pair[1] for text in own.texts], own.missing, "boolean")
    return Column(own.label, "boolean", own.missing, values, Words(words))


def _most_used(own: Cells, word: str) -> str:
    return max((text for text in own.counts if text.casefold() == word), key=own.counts.__getitem__)


def _category(own: Cells) -> Column:
    words = {text: text for text in own.counts}
    values = _series(own.texts, own.missing, "category", sorted(own.counts))
    return Column(own.label, "category", own.missing, values, Words(words))


def _is_category(own: Cells) -> bool:
    return len(own.counts) <= min(_MOST_CLASSES, own.observed / 2)


def _dates(own: Cells, format: str) -> Column:
    known = np.flatnonzero(~own.missing).tolist()
    texts = [own.texts[row] for row in known]
    try:
        read = dates_of(texts, format)
    except ValueError as error:
        raise own.refusal(f"a date {format}", str(error), _hint(own, str(error), "text")) from None
    read.index = known
    values = read.reindex(range(len(own.texts)))
    form = DateForm.of(own.distinct, format)
    return Column(own.label, "date", own.missing, values, form, format)


def _one_format(own: Cells, formats: Sequence[str], day_first: bool | None) -> str:
    """The format of a column of dates; where it has two, that of the file's other columns."""
    if len(formats) == 1:
        return formats[0]
    if day_first is None:
        raise own.refusal(
            "dates that tell whether the day comes first",
            own.distinct[0],
            f"say so: --kinds {own.name}=date:{formats[0]} or date:{formats[1]}",
        )
    return next(form for form in formats if form.startswith("%d") == day_first)


def _numbers(own: Cells, reading: Reading, kind: str | None = None) -> Column:
    infinite = [text for text, number in reading.numbers.items() if math.isinf(number)]
    if infinite:
        raise own.refusal(
            "a number that float64 holds", infinite[0], _hint(own, infinite[0], "text")
        )
    form = NumberForm.of(reading.numbers, reading.decimal)
    whole = is_whole(reading.numbers.values()) and form.decimals <= 1 and form.digits is None
    kind = kind or ("integer" if whole else "number")
    dtype = "Int64" if kind == "integer" and _fits_in_int64(reading) else "float64"
    numbers = reading.numbers
    values = _series([numbers.get(text, math.nan) for text in own.texts], own.missing, dtype)
    noticed = []
    if form.group:
        noticed.append(f"{form.group!r} between thousands")
    if kind == "number" and reading.decimal == COMMA and form.decimals:
        noticed.append("decimal comma")
    said = ", ".join(noticed)
    return Column(own.label, kind, own.missing, values, form, said, decimals=form.decimals_kept)


def _fits_in_int64(reading: Reading) -> bool:
    return all(abs(number) < 2**63 for number in reading.numbers.values())


def _id_of_numbers(own: Cells, reading: Reading) -> Column | None:
    """A column of integers that differ in every row and name the row, or None."""
    numbers = list(reading.numbers.values())
    if len(numbers) < own.observed or not is_whole(numbers) or len(numbers) < 3:
        return None
    dense = not own.missing.any() and max(numbers) - min(numbers) + 1 == len(numbers)
    if dense or _ID.fullmatch(own.name):
        reason = "an id: integers, different in every row"
        return Column(own.label, "text", own.missing, reason=reason)
    return None


def _mostly_numbers(own: Cells, reading: Reading) -> bool:
    count = sum(own.counts[text] for text in reading.numbers)
    return bool(own.counts) and count >= MOSTLY * own.observed


def _ambiguous(own: Cells, text: str) -> ValueError:
    return own.refusal(
        "a number that can be read in one way", text, "say --decimal , or --decimal ."
    )


def _hint(own: Cells, fault: str, kind: str) -> str:
    return (
        f"--missing-values {fault!r} if it stands for nothing, --kinds {own.name}={kind} if it is "
        "meant"
    )


def _plain(token: str) -> bool:
    try:
        return math.isfinite(float(token))
    except ValueError:
        return False


def _series(values: Sequence[Any], missing: np.ndarray, dtype: str, words: Any = None) -> Any:
    """pandas' Series of a dtype, missing where it says so."""
    import pandas

    kept = [None if gone else value for value, gone in zip(values, missing, strict=True)]
    if words is not None:
        return pandas.Series(kept, dtype=pandas.CategoricalDtype(words))
    return pandas.Series(kept, dtype=dtype)
