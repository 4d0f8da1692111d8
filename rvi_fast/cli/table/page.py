"""`rvi-fast impute FILE --report FILE.html`: a page that tells what was filled in, and how well."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from ..._figures import inline_svg
from ..._version import __version__
from ...experiments.document import (
    Block,
    Command,
    Drawing,
    Gallery,
    Heading,
    Links,
    Paragraph,
    Table,
    to_html,
)
from ...plot import missingness
from . import pictures
from .filling import Imputed
from .findings import Finding, findings, most_missing_first, worst_first
from .sources import Source

# columns with pictures of their own
MOST = 24
_MEMBERS = {
    "linear": "linear",
    "relay": "relay model",
    "forest": "trees",
    "boosting": "boosted trees",
}
_KEPT = "\N{NO-BREAK SPACE}"
_WRONG = 0.95  # of the error of the mean, from which on a column is hardly known
_ABOUT_ERRORS = (
    "Errors are of observed cells that were held out, in the units of the column: of numbers the root "
    "mean square, of dates likewise as a time, of yes/no and classes the share that is wrong. Beside "
    "that of what is filled in stand those of the column mean (of classes the most frequent one) and of "
    "the linear-Gaussian model (Gaussian EM) alone. Relative: root mean square in the units of the "
    "model, in which columns with heavy tails are bent and classes count by their probabilities, that "
    "of the mean = 1. Weights: how much each member of the blend counts."
)


@dataclass(frozen=True)
class Run:
    """What the command was asked for, and what came of it.

    Args:
        table: the file that was read, as it was named.
        written: the files of the filled table.
        arguments: what the command was called with.
        seconds: from the start of the command to the filled table.
        device: where it was trained.
        seed: of all random numbers.
    """

    table: str
    written: Sequence[str]
    arguments: Sequence[str]
    seconds: float
    device: str
    seed: int


def page(source: Source, result: Imputed, run: Run) -> str:
    """The page, as HTML that needs no other file.

    Raises:
        ImportError: matplotlib is missing.
    """
    found = findings(source, result)
    drawn = _Drawn()
    sections = {
        "columns": ("Columns", _columns(source, result, found)),
        "held-out": ("Cells that were held out", _held_out(found, drawn)),
        "distributions": ("Observed and filled in", _distributions(found, result, drawn)),
        "training": ("Training", _training(result, drawn)),
        "made": ("How it was made", _made(source, result, run)),
    }
    kept = {name: (title, blocks) for name, (title, blocks) in sections.items() if blocks}
    blocks: list[Block] = [Paragraph(text) for text in _opening(source, result, run, found)]
    blocks += _first(source, result, found, drawn)
    blocks.append(Links({name: title for name, (title, _) in kept.items()}))
    for name, (title, own) in kept.items():
        blocks += [Heading(title, name), *own]
    filled = _counted(_filled_cells(result), "empty cell")
    return to_html(f"{run.table}: {filled} filled in", blocks)


class _Drawn:
    """Makes drawings of figures, each with a name of its own within the page."""

    def __init__(self) -> None:
        self._names: Iterator[int] = count(1)

    def __call__(
        self, figure: Any, alt: str, title: str = "", caption: str = "", wide: bool = False
    ) -> Drawing:
        return Drawing(inline_svg(figure, f"p{next(self._names)}"), alt, title, caption, wide)


def _filled_cells(result: Imputed) -> int:
    return sum(len(own) for own in result.draws[0].values())


def _opening(source: Source, result: Imputed, run: Run, found: Sequence[Finding]) -> Iterator[str]:
    """What a reader wants to know first."""
    columns = source.columns
    empty = float(np.mean([own.missing.mean() for own in columns]))
    draws = f", {len(result.draws)} random completions" if len(result.draws) > 1 else ""
    yield (
        f"{source.num_rows:,} rows, {_counted(len(columns), 'column')}, {empty:.1%} of the cells "
        f"empty. Written to {', '.join(run.written)}{draws}."
    )
    if result.notes:
        yield f"The time limit was reached: {'; '.join(result.notes)}."
    judged = worst_first(found)
    if not judged:
        if result.imputer is not None:
            yield "Too little was observed to hold cells out: how far off these are is not known."
        return
    error = float(np.sqrt(np.mean([own.relative**2 for own in judged])))
    weak = [own.label for own in judged if own.relative >= _WRONG]
    yield (
        f"Cells that were held out from the training are found, over all columns, with {error:.0%} of "
        "the error of column means"
        + (
            f". No or hardly better than by these: {_listed(weak)}; what is filled in there says little."
            if weak
            else ", in each column better than by these."
        )
    )


def _first(source: Source, result: Imputed, found: Sequence[Finding], drawn: _Drawn) -> list[Block]:
    """The pictures above the fold."""
    drawings = []
    judged = worst_first(found)
    if judged and result.errors is not None:
        shown = judged[:MOST][::-1]
        places = {id(own): at for at, own in enumerate(found)}
        linear = [float(result.errors["linear"][places[id(own)]]) for own in shown]
        listed = ", ".join(f"{own.label} {own.relative:.2f}" for own in shown)
        more = f" The {MOST} worst of {len(judged)} columns." if len(judged) > MOST else ""
        drawings.append(
            drawn(
                pictures.of_errors(shown, linear),
                f"Errors on held-out cells, that of the column mean = 1: {listed}",
                "How well each column is found",
                f"Left is better; 1 is what the mean of the column would do.{more}",
            )
        )
    missing = np.stack([own.missing for own in source.columns], 1)
    if missing.any():
        names = [pictures.shortened(own.label) for own in source.columns]
        figure = missingness(np.where(missing, np.nan, 0.0), names=names)
        figure.suptitle("")
        shares = [f"{own.label} {own.missing.mean():.0%}" for own in source.columns]
        drawings.append(
            drawn(
                figure,
                f"Share of missing cells: {_listed(shares, MOST)}",
                "What was missing",
                f"{missing.sum():,} of {missing.size:,} cells ({missing.mean():.1%}). Above: how much "
                "of each column. Below: which rows; pale is missing.",
                wide=missing.shape[1] > 14,
            )
        )
    return [Gallery(drawings)] if drawings else []


def _columns(source: Source, result: Imputed, found: Sequence[Finding]) -> list[Block]:
    """The table of all columns."""
    by_place = dict(zip(result.modelled, found, strict=True))
    header = ["Column", "Kind", "Missing"]
    if judged := bool(worst_first(found)):
        weights = f"Weights (%): {' / '.join(_MEMBERS[name] for name in _names(result))}"
        header += ["Error", "Column mean", "Linear", "Relative", weights]
    rows = []
    for place, column in enumerate(source.columns):
        own = by_place.get(place)
        done = "filled with its one value" if column.constant is not None else "passed through"
        missing = f"{int(column.missing.sum()):,} ({column.missing.mean():.1%})"
        kind = f"{done}: {column.reason}" if own is None else own.kind
        row = [column.label, kind, missing.replace(" ", _KEPT)]
        rows.append([*row, *(_numbers(own) if judged else ())])
    table = Table("All columns, in the order of the table", header, rows, cards=True)
    return [table, Paragraph(_ABOUT_ERRORS)] if judged else [table]


def _numbers(own: Finding | None) -> list[str]:
    """What the table tells of held-out cells of a column."""
    if own is None or math.isnan(own.relative):
        return ["–"] * 5
    errors = [own.error(of) for of in (own.found, own.usual, own.linear)]
    weights = " / ".join(f"{100 * weight:.0f}" for weight in own.weights.values())
    told = [said(own, error).replace(" ", _KEPT) for error in errors]
    return [*told, f"{own.relative:.3f}", weights]


def said(own: Finding, error: float) -> str:
    """An error of a column in words, in its units."""
    if math.isnan(error):
        return "–"
    if own.of_classes:
        return f"{error:.1%} wrong"
    if own.kind == "date":
        return _time(error)
    return three_digits(error)


def three_digits(x: float) -> str:
    """A positive number with three digits that count, and separators of thousands."""
    if x == 0:
        return "0"
    places = 2 - math.floor(math.log10(abs(x)))
    return f"{x:.2e}" if places > 8 or places < -9 else f"{round(x, places):,.{max(places, 0)}f}"


def _time(days: float) -> str:
    for size, unit in ((1.0, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        if days >= 2 * size:
            return f"{three_digits(days / size)} {unit}"
    return f"{three_digits(days * 86_400)} seconds"


def _held_out(found: Sequence[Finding], drawn: _Drawn) -> list[Block]:
    """Held-out cells, one picture for each column."""
    judged = worst_first(found)
    if not judged:
        return []
    blocks: list[Block] = [
        Paragraph(
            "Observed cells that were hidden from everything that was trained, beside what was filled "
            "in there; on the line both are the same. Weights of members have not seen the cell they "
            "are used for; when the training stops was chosen by these cells."
            + _some("worst found", len(judged))
        )
    ]
    drawings = []
    for own in judged[:MOST]:
        draw = pictures.of_confusion if own.of_classes else pictures.of_held_out
        off = said(own, own.error(own.found)), said(own, own.error(own.usual))
        what = "most frequent class" if own.of_classes else "mean"
        drawings.append(
            drawn(
                draw(own),
                f"{own.label}: {len(own.truth)} held-out cells and what was filled in there",
                own.label,
                f"{len(own.truth):,} cells; {_off(own, off[0])}, the {what} {off[1]}",
            )
        )
    return [*blocks, Gallery(drawings)]


def _off(own: Finding, error: str) -> str:
    return error if own.of_classes else f"off by {error}"


def _distributions(found: Sequence[Finding], result: Imputed, drawn: _Drawn) -> list[Block]:
    """What was filled in beside what was observed, one picture for each column."""
    filled = most_missing_first(found)
    if not filled:
        return []
    spread = (
        "Draws are spread as data are."
        if len(result.draws) > 1
        else "Estimates are less spread than data are; --draws gives random completions, which are not."
    )
    text = (
        "The blue area, or bar, is of observed cells, the orange one of those that were filled in. The "
        f"two need not be alike where cells miss by what they would be. {spread}"
    )
    drawings = [
        drawn(
            pictures.of_distributions(own),
            f"{own.label}: distribution of observed cells and of those filled in",
            own.label,
            f"{own.missing.sum():,} filled in, {own.missing.mean():.1%}",
        )
        for own in filled[:MOST]
    ]
    return [Paragraph(text + _some("most often missing", len(filled))), Gallery(drawings)]


def _some(which: str, number: int) -> str:
    if number <= MOST:
        return ""
    return f" Shown are the {MOST} {which} of {number} columns; the table above has all."


def _training(result: Imputed, drawn: _Drawn) -> list[Block]:
    """How the training converged."""
    if result.imputer is None or not result.imputer.history_.epochs:
        return []
    epochs = result.imputer.history_.epochs
    drawings = []
    blend = result.imputer.blend_
    if blend is not None and any(len(points) > 1 for points in blend.looks.values()):
        drawings.append(
            drawn(
                pictures.of_looks(blend.looks),
                "Error on held-out cells by epoch of the relay model's training",
                "On held-out cells",
                "The relay model without them, trained until they are found no better; the large dot is "
                "kept.",
            )
        )
    drawings.append(
        drawn(
            result.imputer.history_.plot(),
            f"Loss of the relay model over {epochs} epochs",
            "Of the model that fills in",
            f"Loss and its two parts over {_counted(epochs, 'epoch')}.",
        )
    )
    return [Gallery(drawings)]


def _made(source: Source, result: Imputed, run: Run) -> list[Block]:
    """What it takes to make it again."""
    kinds = Counter(own.kind for own in source.columns if own.values is not None)
    facts = {
        "File": run.table,
        "Read as": ", ".join(source.assumed),
        "Rows": f"{source.num_rows:,}",
        "Columns": f"{len(source.columns):,}",
        "Kinds": ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()),
        "Members": ", ".join(_MEMBERS[name] for name in _names(result)),
        "Written": ", ".join(run.written),
        "Time": f"{run.seconds:,.0f} s",
        "Device": run.device,
        "Seed": f"{run.seed}",
        "Version": f"rvi-fast {__version__}",
    }
    rows = [[name, value] for name, value in facts.items() if value]
    return [Command(shlex.join(["rvi-fast", *run.arguments])), Table("Facts", ("", ""), rows)]


def _names(result: Imputed) -> Sequence[str]:
    if result.imputer is None:
        return ()
    return ("relay",) if result.imputer.blend_ is None else result.imputer.blend_.names


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
