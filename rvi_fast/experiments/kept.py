"""Results of runs as the table of a figure keeps them, for when the runs themselves are gone."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import read_bytes
from .experiment import Experiment
from .figure import Bound, Figure

_FIELDS = vars(Experiment()).keys()
_Line = Mapping[str, str]


def kept(
    figure: Figure, path: Path, wanted: Sequence[Experiment]
) -> dict[Experiment, dict[str, Any]]:
    """What the table of a figure says of its runs: results with the figure's quantities alone.

    The column "values" has the numbers of a point's runs, in the order of the figure's configurations.
    Tables of earlier versions lack it: there the mean of one run is its number; mean and spread of two
    runs give both numbers but not which is whose, and such results have a "bound".

    Args:
        figure: whose table it is.
        path: the csv file; where there is none, nothing is kept.
        wanted: the runs of the figure. Those that the table does not hold are left out.
    """
    try:
        text = read_bytes(path).decode()
    except FileNotFoundError:
        return {}
    keys = (*figure.panels, *figure.curves)
    lines: dict[tuple[str, ...], dict[str, _Line]] = {}
    for line in csv.DictReader(io.StringIO(text)):
        curve = lines.setdefault((line["quantity"], *(line[key] for key in keys)), {})
        curve[line[figure.over]] = line
    own = (figure.over,) if figure.over in _FIELDS else ()
    points: dict[tuple[str, ...], list[Experiment]] = {}
    for run in wanted:
        points.setdefault(tuple(figure.text(run, key) for key in (*keys, *own)), []).append(run)
    found = {}
    for at, runs in points.items():
        for number, run in enumerate(runs):
            result: dict[str, Any] = {}
            for quantity in figure.quantities:
                curve = lines.get((quantity, *at[: len(keys)]), {})
                chosen = (
                    [curve[x] for x in at[len(keys) :] if x in curve] if own else _ordered(curve)
                )
                numbers = [_number(line, number, len(runs)) for line in chosen]
                known = bool(numbers) and None not in numbers
                values = [value for value, _ in filter(None, numbers)]
                result[quantity] = (values[0] if own else values) if known else None
                bounds = {bound for _, bound in filter(None, numbers)} - {None}
                result |= {"bound": bounds.pop()} if known and bounds else {}
            if any(result[quantity] is not None for quantity in figure.quantities):
                found[run] = result
    return found


def _ordered(curve: Mapping[str, _Line]) -> list[_Line]:
    return [curve[x] for x in sorted(curve, key=int)]


def _number(line: _Line, number: int, count: int) -> tuple[float, Bound | None] | None:
    """That of run `number` of the `count` of a point, and which bound it is; None if it is lost."""
    if int(line["runs"]) != count:
        return None
    if line.get("values"):
        return float(line["values"].split()[number]), None
    mean, spread = float(line["mean"]), float(line["std"])
    if count == 1:
        return mean, None
    bound = (Bound.LOW, Bound.HIGH)[number] if count == 2 else None
    return None if bound is None else (mean + bound.value * spread, bound)
