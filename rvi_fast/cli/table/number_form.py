"""How a file writes its numbers: decimal point or comma, groups of thousands, decimals, exponents."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

POINT, COMMA = ".", ","
# a column of numbers with a few other words is refused, and not taken for text
MOSTLY = 0.8
_CODE = re.compile(r"[+-]?0\d.*")  # 007 is a code: a number would not come back as it was
_EXPONENT = re.compile(r"[eE]([+-]?)(\d+)$")


def _patterns(decimal: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    own, group = (r"\.", ",") if decimal == POINT else (",", r"\.")
    plain = rf"[+-]?(?:\d+(?:{own}\d*)?|{own}\d+)(?:[eE][+-]?\d+)?"
    grouped = rf"[+-]?[1-9]\d{{0,2}}(?:{group}\d{{3}})+(?:{own}\d*)?"
    return re.compile(plain, re.ASCII), re.compile(grouped, re.ASCII)


_PATTERNS = {decimal: _patterns(decimal) for decimal in (POINT, COMMA)}


def number_of(text: str, decimal: str) -> float | None:
    """The number that a cell says with that decimal sign, None where it says none; may be infinite."""
    plain, grouped = _PATTERNS[decimal]
    if plain.fullmatch(text):
        return float(text.replace(decimal, POINT))
    if grouped.fullmatch(text):
        return float(text.replace(_other(decimal), "").replace(decimal, POINT))
    return None


def is_number(text: str) -> bool:
    """Whether a cell says a number, with a decimal point or a decimal comma."""
    return any(number_of(text, decimal) is not None for decimal in (POINT, COMMA))


def _other(decimal: str) -> str:
    return COMMA if decimal == POINT else POINT


@dataclass(frozen=True)
class Reading:
    """A column's distinct cells as numbers with one of the decimal signs.

    Args:
        decimal: "." or ",".
        numbers: what the cells say.
        faults: cells that say no number.
    """

    decimal: str
    numbers: Mapping[str, float]
    faults: frozenset[str]

    @classmethod
    def of(cls, distinct: Iterable[str], decimal: str) -> Reading:
        """What cells say with a decimal sign."""
        numbers, faults = {}, set()
        for text in distinct:
            number = number_of(text, decimal)
            if number is None:
                faults.add(text)
            else:
                numbers[text] = number
        return cls(decimal, numbers, frozenset(faults))


def readings_of(distinct: Sequence[str]) -> list[Reading]:
    """The ways to read a column as numbers: those with the fewest cells that are none."""
    found = [Reading.of(distinct, decimal) for decimal in (POINT, COMMA)]
    least = min(len(reading.faults) for reading in found)
    return [reading for reading in found if len(reading.faults) == least]


def decimal_of(columns: Iterable[Sequence[Reading]]) -> str | None:
    """The decimal sign of a file, by the columns that can be read with one alone; None without such."""
    votes = Counter(own[0].decimal for own in columns if len(own) == 1 and own[0].numbers)
    return votes.most_common(1)[0][0] if votes else None


def chosen(readings: Sequence[Reading], decimal: str | None) -> Reading | str:
    """The way to read a column, or a cell that says one thing with a point and another with a comma.

    Args:
        readings: of `readings_of`.
        decimal: that of the file; None where it is unknown.
    """
    if len(readings) == 1:
        return readings[0]
    point, comma = readings
    unlike = [text for text, number in point.numbers.items() if comma.numbers.get(text) != number]
    if not unlike or decimal == POINT:
        return point
    if decimal == COMMA:
        return comma
    # 1.234 is what everybody but a file with decimal commas writes; 1,234 is not
    signs = [text for text in unlike if COMMA in text]
    return min(signs) if signs else point


@dataclass(frozen=True)
class NumberForm:
    """How a column writes its numbers.

    Args:
        decimal: the decimal sign.
        group: between thousands, or "".
        decimals: digits behind the decimal sign.
        digits: significant digits, of a column with exponents; None without.
    """

    decimal: str = POINT
    group: str = ""
    decimals: int = 0
    digits: int | None = None

    @classmethod
    def of(cls, distinct: Iterable[str], decimal: str) -> NumberForm:
        """That of cells which are numbers."""
        decimals, digits, grouped, large = 0, None, 0, 0
        group = _other(decimal)
        for text in distinct:
            exponent = _EXPONENT.search(text)
            mantissa = text[: exponent.start()] if exponent else text
            whole, _, rest = mantissa.partition(decimal)
            decimals = max(decimals, len(rest)) if not exponent else decimals
            size = len(re.sub(r"\D", "", mantissa).lstrip("0")) or 1
            if exponent:
                digits = max(digits or 1, size)
            grouped += group in whole
            large += len(re.sub(r"\D", "", whole)) > 3
        return cls(decimal, group if grouped and grouped * 2 >= large else "", decimals, digits)

    @property
    def decimals_kept(self) -> int | None:
        """Digits behind the decimal sign that a value is rounded to; None for significant digits."""
        return self.decimals if self.digits is None else None

    def text(self, value: float) -> str:
        """A number as the column would write it."""
        if self.digits is not None:
            return f"{value:.{max(self.digits, 1)}g}".replace(POINT, self.decimal)
        rounded = round(value, self.decimals) + 0.0  # no -0.0
        written = f"{rounded:,.{self.decimals}f}" if self.group else f"{rounded:.{self.decimals}f}"
        return written.translate(str.maketrans(POINT + COMMA, self.decimal + (self.group or COMMA)))


def is_code(text: str, decimal: str) -> bool:
    """Whether a cell of digits is a code, such as 007, and not a number."""
    return bool(_CODE.fullmatch(text)) and text.lstrip("+-")[1:2].isdigit() and decimal not in text


def is_whole(numbers: Iterable[float]) -> bool:
    """Whether all numbers are finite and whole."""
    return all(math.isfinite(number) and number.is_integer() for number in numbers)
