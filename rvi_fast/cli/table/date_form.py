"""How a column writes its dates: one format for all, day or month first as the column shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_DAYS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d"),
    *("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%y", "%m-%d-%y"),
    *("%d-%b-%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%d-%b-%y"),
)
_TIMES = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p")
_MONTHS = ("%Y-%m", "%m/%Y", "%m.%Y", "%b %Y", "%B %Y")
FORMATS = (
    *_DAYS,
    *(f"{day} {time}" for day in _DAYS for time in _TIMES),
    *(f"%Y-%m-%dT{time}{zone}" for time in _TIMES[:3] for zone in ("", "Z")),
    *_MONTHS,
    *_TIMES,
)
_TRIED = 20  # cells that choose the formats which all others are read with
_STEPS = {"%f": "us", "%S": "s", "%M": "min", "%H": "h"}


@dataclass(frozen=True)
class DateForm:
    """How a column writes its dates.

    Args:
        format: as `strftime` takes it.
        padded: whether day and month 5 are written 05.
        padded_hours: whether hour 5 is written 05.
        fraction: digits of a second behind the point.
    """

    format: str
    padded: bool = True
    padded_hours: bool = True
    fraction: int = 0

    @classmethod
    def of(cls, distinct: Sequence[str], format: str) -> DateForm:
        """That of cells which have been read with the format."""
        # without a figure below 10 both ways write the same
        days = (re.sub(r"[ T]?\d{1,2}:.*", "", text) for text in distinct)
        short = any(re.search(r"(?<!\d)\d(?!\d)", day) for day in days)
        short_hours = any(re.search(r"(?<!\d)\d:", text) for text in distinct)
        fraction = max(len(text.rpartition(".")[2].rstrip("Z")) for text in distinct)
        return cls(format, not short, not short_hours, fraction if "%f" in format else 0)

    @property
    def unit(self) -> str:
        """What a date is rounded to, as pandas names it."""
        return next((unit for sign, unit in _STEPS.items() if sign in self.format), "D")

    def text(self, value: Any) -> str:
        """A date (pandas' Timestamp) as the column would write it."""
        format = self.format
        if self.fraction:
            format = format.replace("%f", f"{value.microsecond:06d}"[: self.fraction])
        if not self.padded:
            format = format.replace("%d", str(value.day)).replace("%m", str(value.month))
        if not self.padded_hours:
            format = format.replace("%H", str(value.hour))
            format = format.replace("%I", str((value.hour - 1) % 12 + 1))
        return str(value.strftime(format))


def formats_of(distinct: Sequence[str]) -> list[str]:
    """The formats that all cells of a column have; two where day and month cannot be told apart."""
    if not any(map(str.isdigit, distinct[0])):
        return []
    tried = [form for form in FORMATS if all(_fits(text, form) for text in distinct[:_TRIED])]
    found = [form for form in tried if _read(distinct, form).notna().all()]
    # %y reads no year of four digits, and %Y none of two: what is left differs in day and month
    return found[:2] if len(found) > 1 and sorted(found[0]) == sorted(found[1]) else found[:1]


def mostly(distinct: Sequence[str], share: float) -> tuple[str, str] | None:
    """The format that most of the cells have and the first cell that has not; None without."""
    for start in distinct[:3]:
        for form in FORMATS:
            if _fits(start, form):
                faults = [text for text in distinct if not _fits(text, form)]
                if len(faults) <= (1 - share) * len(distinct):
                    return form, faults[0]
    return None


def dates_of(texts: Sequence[str], format: str) -> Any:
    """Dates as pandas has them; ValueError names the first cell that is none."""
    dates = _read(texts, format)
    wrong = dates.isna().to_numpy()
    if wrong.any():
        raise ValueError(texts[int(wrong.argmax())])
    return dates


def _read(texts: Sequence[str], format: str) -> Any:
    """Dates, NaT for what does not have the format."""
    import pandas

    return pandas.to_datetime(pandas.Series(texts, dtype=object), format=format, errors="coerce")


def _fits(text: str, format: str) -> bool:
    # strptime takes 2020131 for %Y%m%d
    if format.startswith("%Y%m%d") and not re.fullmatch(r"(19|20)\d{6}.*", text):
        return False
    try:
        datetime.strptime(text, format)
    except ValueError:
        return False
    return True


def columns_in(formats: Iterable[Sequence[str]]) -> Iterator[bool]:
    """Of columns whose format is certain, whether the day comes before the month."""
    for own in formats:
        if len(own) == 1 and re.match(r"%[dm][/.-]%[dm]", own[0]):
            yield own[0].startswith("%d")
