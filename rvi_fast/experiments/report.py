"""`rvi-fast report`: what the runs say of the paper's claims, and every figure with its numbers."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_text
from .claims import CLAIMS, FAILS, HOLDS, MISSING, PARTLY, RULE, SO_FAR, Judgement, judge
from .comparisons import Comparison
from .document import (
    Block,
    Command,
    Heading,
    Links,
    Paragraph,
    Picture,
    Table,
    png_size,
    to_html,
    to_markdown,
)
from .experiment import Experiment
from .figure import LABELS, Figure, named, shown
from .kept import kept
from .registry import FIGURES
from .scales import SCALES
from .sweep import directory_of, read_result

_BASELINES = (
    Paragraph(
        "VAD is here twice: with the law, the KL divergence and the learned scale that all models here "
        "share, and as its authors train it (Zadeh et al. 2019), with squared error alone, no KL "
        "divergence, and posteriors of log variance -14, which is not learned."
    ),
    Paragraph(
        "Section 2 of the paper names further approaches. The semi-amortised VAE (Kim et al. 2018) is "
        "models.vae(refine_steps=), and infer(model, x, steps=) for a VAE that was trained without; no "
        "figure has it. Ladder VAEs (Sønderby et al. 2016) and hierarchical models (Ranganath et al. "
        "2016) are left out: several layers of latents with learned priors between them are another "
        "generative model, while everything here differs in how the posterior of one layer under a "
        "standard normal prior is found, so that a difference would not say which of the two it comes "
        "from; and neither rows nor ops of this package have a place for more layers."
    ),
)
_MARKS = {True: "✓", False: "✗", None: "~"}
_MOST_COLUMNS = 10
_MOST_LINES = 6  # of numbers in a row of the claims
_SIZES = {
    "rows": "rows",
    "test_rows": "test rows",
    "epochs": "epochs",
    "batch_size": "batch size",
    "latent_dim": "latent dimensions",
    "seed": "seeds",
}


@dataclass(frozen=True)
class Found:
    """A figure and those of its runs that are done.

    Args:
        name, figure: as in the registry.
        wanted: configurations of the figure.
        results: what is done, with "made" where the run recorded it; by the figure's table where the run
            itself is gone.
        pictures: PNG files, the curves first.
    """

    name: str
    figure: Figure
    wanted: list[Experiment]
    results: list[tuple[Experiment, dict[str, Any]]]
    pictures: list[Path]


def report(results: Path, out: Path | None = None) -> list[Path]:
    """Writes the page of a directory of results.

    Args:
        results: what `rvi-fast reproduce` wrote, finished or not.
        out: the HTML file, `results`/report.html if not given; a Markdown file goes beside it.

    Returns:
        Both files.

    Raises:
        ValueError: no results, or a name that does not end in .html.
    """
    if not results.is_dir():
        raise ValueError(
            f"results: expected a directory that `rvi-fast reproduce` wrote, got {results}, which is "
            + ("a file" if results.exists() else "not there")
        )
    out = results / "report.html" if out is None else out
    if out.suffix != ".html":
        raise ValueError(f"out: expected a name that ends in .html, got {str(out)!r}")
    if not out.parent.is_dir():
        raise ValueError(f"out: the directory {out.parent} does not exist")
    scale = scale_of(results)
    found = [_find(results, scale, name) for name in FIGURES]
    title = "Relay Variational Inference: the paper's claims and our runs"
    blocks = compose(found, results, scale)
    markdown = out.with_suffix(".md")
    write_text(out, to_html(title, blocks))
    write_text(markdown, to_markdown(title, blocks, out.parent))
    return [out, markdown]


def scale_of(results: Path) -> str:
    """The scale of the runs: that of which most are done, or kept by the tables of figures."""
    present = {path.parent.name for path in results.glob("runs/*/result.json")}
    done = {}
    for scale in SCALES:
        runs = {run for name in FIGURES for run in _kept(results, scale, name)}
        runs |= {run for run in _all_runs(scale) if directory_of(results, run).name in present}
        done[scale] = len(runs)
    most = max(done, key=lambda scale: done[scale])
    if not done[most]:
        raise ValueError(
            f"results: no run of a figure is done in {results}; `rvi-fast reproduce` makes them"
        )
    return most


def _all_runs(scale: str) -> set[Experiment]:
    sizes = SCALES[scale]
    return {run for name in FIGURES for run in FIGURES[name].configurations(sizes.of(name))}


def _kept(results: Path, scale: str, name: str) -> dict[Experiment, dict[str, Any]]:
    wanted = FIGURES[name].configurations(SCALES[scale].of(name))
    return kept(FIGURES[name], results / f"{name}.csv", wanted)


def _find(results: Path, scale: str, name: str) -> Found:
    figure = FIGURES[name]
    wanted = figure.configurations(SCALES[scale].of(name))
    tables = _kept(results, scale, name)
    done = (
        (run, read_result(directory_of(results / "runs", run)) or tables.get(run)) for run in wanted
    )
    pictures = [results / f"{name}.png", *sorted(results.glob(f"{name}-*.png"))]
    return Found(
        name,
        figure,
        wanted,
        [(run, result) for run, result in done if result is not None],
        [path for path in pictures if path.is_file()],
    )


def compose(found: Sequence[Found], results: Path, scale: str) -> list[Block]:
    """The page."""
    by_name = {each.name: each for each in found}
    judgements = [
        judgement
        for claim in CLAIMS
        for judgement in judge(claim, by_name[claim.figure].wanted, by_name[claim.figure].results)
    ]
    made = [each for each in found if each.results]
    absent = [each.name for each in found if not each.results]
    blocks: list[Block] = [
        Paragraph(_opening(made, scale)),
        Paragraph(_summary(judgements)),
        Links({"claims": "Claims", **{each.name: _title(each.name) for each in made}}),
        Heading("The paper's claims and our numbers", "claims"),
        Paragraph(
            "Errors are elastic errors, mean of |error| + error², of reconstructions from the "
            "posterior mean: of pixels in [0, 1], of other features standardised. A comparison "
            "holds (✓) in every seed, in none (✗), or in some (~)."
        ),
        _claims_table(judgements, results, scale),
        *_failures(judgements),
        Heading("How claims are decided", "rules", 3),
        Paragraph(RULE),
        Table(
            "What is compared",
            ("Claim", "Figure", "Holds where"),
            [[claim.text, _title(claim.figure), claim.rule] for claim in CLAIMS],
            cards=True,
        ),
    ]
    blocks += [Heading("What is compared with, and what is not", "baselines", 3), *_BASELINES]
    for each in made:
        blocks += _section(each, results, scale)
    if absent:
        blocks += [
            Heading("Not made yet", "absent"),
            Paragraph("These figures have no results; this makes them:"),
            Command(_command(absent, scale, results)),
        ]
    return blocks


def _opening(made: Sequence[Found], scale: str) -> str:
    runs = {run: result for each in made for run, result in each.results}
    versions = sorted({result["made"]["version"] for result in runs.values() if "made" in result})
    by = f", by rvi-fast {', '.join(versions)}" if versions else ""
    sized = (
        "" if scale == "paper" else ", which is smaller than the paper's: sizes are in each section"
    )
    return (
        f"Runs of the method of arXiv 2110.13422 at scale “{scale}”{sized}. "
        f"{len(runs)} runs{by}; {_time(runs.values())}."
    )


def _summary(judgements: Sequence[Judgement]) -> str:
    verdicts = [judgement.verdict for judgement in judgements]
    order = [word + more for word in (HOLDS, PARTLY, FAILS, MISSING) for more in ("", SO_FAR)]
    counts = {word: verdicts.count(word) for word in order}
    said = ", ".join(f"{count} “{word}”" for word, count in counts.items() if count)
    return f"{len(judgements)} claims and data sets: {said}."


def _claims_table(judgements: Sequence[Judgement], results: Path, scale: str) -> Table:
    rows: list[list[str | list[str]]] = []
    for judgement in judgements:
        claim = judgement.claim
        numbers = _lines(judgement.comparisons)
        if not numbers:
            numbers = [f"Made by: {_command([claim.figure], scale, results)}"]
        seeds = str(judgement.seeds)
        if judgement.done < judgement.wanted:
            seeds += f" ({judgement.done} of {judgement.wanted} runs done)"
        rows.append([claim.text, claim.place, judgement.data, judgement.verdict, numbers, seeds])
    header = ("Claim", "Where", "Data set", "Verdict", "Our numbers", "Seeds")
    return Table("Claims of the paper", header, rows, cards=True, marked=3)


def _lines(comparisons: Sequence[Comparison]) -> list[str]:
    """What has the same left side in one line; of many lines only the count."""
    sides = itertools.groupby(comparisons, key=lambda each: each.left)
    lines = [
        "; ".join([left, *(_together(f"{_MARKS[each.outcome]} {each.right}") for each in own)])
        for left, own in sides
    ]
    if len(lines) <= _MOST_LINES:
        return lines
    outcomes = [comparison.outcome for comparison in comparisons]
    counts = (f"{_MARKS[outcome]} {outcomes.count(outcome)}" for outcome in _MARKS)
    return [f"{len(outcomes)} comparisons: {', '.join(counts)}"]


def _together(text: str) -> str:
    """With no-break spaces."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _failures(judgements: Sequence[Judgement]) -> list[Block]:
    failed = [each for each in judgements if each.reason]
    if not failed:
        return []
    rows = [[each.claim.text, each.data, each.verdict, each.reason] for each in failed]
    header = ("Claim", "Data set", "Verdict", "Why")
    return [
        Heading("What does not hold", "failures", 3),
        Table("Claims that fail or hold partly", header, rows, cards=True, marked=2),
    ]


def _section(found: Found, results: Path, scale: str) -> list[Block]:
    figure = found.figure
    rows = figure.table(found.results)
    blocks: list[Block] = [Heading(f"{_title(found.name)}: {figure.title}", found.name)]
    if len(found.results) < len(found.wanted):
        blocks.append(Paragraph(f"{len(found.results)} of {len(found.wanted)} runs are done."))
    for path in found.pictures:
        blocks.append(_picture(path, found))
    if not found.pictures:
        blocks.append(Paragraph("The picture is not made yet; the command below makes it."))
    blocks += [_numbers(figure, quantity, rows) for quantity in figure.quantities]
    blocks += [
        Paragraph(f"Made by this command; {_time(result for _, result in found.results)}."),
        Command(_command([found.name], scale, results)),
        _sizes(found),
    ]
    return blocks


def _picture(path: Path, found: Found) -> Picture:
    try:
        png_size(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"results: {path}: {error}; remove it and reproduce again") from None
    figure = found.figure
    if path.stem == found.name:
        quantities = " and ".join(LABELS[quantity] for quantity in figure.quantities)
        curves = sorted(
            {
                ", ".join(named(k, getattr(run, k)) for k in figure.curves)
                for run, _ in found.results
            }
        )
        over = LABELS.get(figure.over, figure.over)
        alt = f"Curves of {quantities} by {over}: {'; '.join(curves)}. Numbers are in the tables below."
        return Picture(
            path, alt, f"{figure.title}. Line: mean; band: standard deviation; dots: median."
        )
    part = path.stem.removeprefix(f"{found.name}-")
    caption = f"{part}, seed 0. {figure.caption}"
    return Picture(path, f"{figure.title}: {caption}", caption)


def _numbers(figure: Figure, quantity: str, rows: Iterable[dict[str, Any]]) -> Table:
    """A line for each curve of each panel, a column for each x, or for some of many."""
    own = [row for row in rows if row["quantity"] == quantity]
    keys = (*figure.panels, *figure.curves)
    columns = _some(sorted({row[figure.over] for row in own}))
    lines: dict[tuple[Any, ...], dict[Any, str]] = {}
    for row in own:
        line = lines.setdefault(tuple(row[key] for key in keys), {})
        spread = f" ± {row['std']:.4f}" if row["runs"] > 1 else ""
        line[row[figure.over]] = f"{row['mean']:.4f}{spread}"
    over = LABELS.get(figure.over, figure.over)
    body = [
        [", ".join(map(named, keys, at)), *(line.get(column, "") for column in columns)]
        for at, line in lines.items()
    ]
    caption = f"{LABELS[quantity].capitalize()} by {over}, mean ± standard deviation over the runs"
    return Table(caption, ("", *map(shown, columns)), body)


def _some(columns: list[Any]) -> list[Any]:
    """The first, the last, and what lies between them at halves of the way."""
    if len(columns) <= _MOST_COLUMNS:
        return columns
    places = {len(columns) - 1}
    while min(places) and len(places) < _MOST_COLUMNS:
        places.add((min(places) + 1) // 2 - 1 if min(places) > 1 else 0)
    return [columns[place] for place in sorted(places)]


def _sizes(found: Found) -> Table:
    """What was run beside what the scale of the paper's sizes would run."""
    paper = found.figure.configurations(SCALES["paper"].of(found.name))
    rows = []
    for label, runs in (("here", found.wanted), ("scale “paper”", paper)):
        for data in dict.fromkeys(run.data for run in runs):
            own = [run for run in runs if run.data == data]
            sizes = [_values(own, field) for field in _SIZES]
            rows.append([f"{label}, {data}", *sizes, str(len(own))])
    return Table("Sizes", ("", *_SIZES.values(), "runs"), rows)


def _values(runs: Sequence[Experiment], field: str) -> str:
    values = list(dict.fromkeys(getattr(run, field) for run in runs))
    if field == "seed":
        return str(len(values))
    return ", ".join("all" if value is None else f"{value:,}" for value in values)


def _time(results: Iterable[dict[str, Any]]) -> str:
    """Wall time of runs, one after the other; interrupted ones recorded a part of theirs."""
    results = list(results)
    made = [result["made"] for result in results if "made" in result]
    if not made:
        return "the time of the runs was not recorded"
    seconds = sum(each["seconds"] for each in made)
    least = len(made) < len(results) or any(each["resumed"] for each in made)
    return f"the runs took {'at least ' if least else ''}{_duration(seconds)}, added up"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _command(names: Sequence[str], scale: str, results: Path) -> str:
    return f"rvi-fast reproduce {' '.join(names)} --scale {scale} --out {shlex.quote(str(results))}"


def _title(name: str) -> str:
    number = name.removeprefix("fig")
    return f"Figure {number}" if number.isdecimal() else name.capitalize()
