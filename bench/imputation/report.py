"""The results as a page and a picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rvi_fast.files import write_text

from .peers import PEERS
from .results import Row
from .scores import compare
from .tables import DEVELOPMENT_SEEDS, SIZED

# imputer -> table -> mean over seeds; which of them lack seeds
Means = dict[str, dict[str, float]]
Section = tuple[str, str, str, str]


def sections(rows: Iterable[Row]) -> dict[Section, list[Row]]:
    """Rows that are compared with each other: by set, mechanism, rate and part, in that order."""
    found: dict[Section, list[Row]] = defaultdict(list)
    for row in rows:
        kind = "development" if int(row["seed"]) in DEVELOPMENT_SEEDS else "confirmation"
        kind = "by size" if row["table"] in SIZED else kind
        found[kind, row["mechanism"], row["rate"], row["rows"]].append(row)
    order = ["confirmation", "development", "by size"]
    mechanisms = ["mcar", "mar", "mnar"]
    # the rate that most is said about comes first
    return dict(
        sorted(
            found.items(),
            key=lambda item: (
                order.index(item[0][0]),
                mechanisms.index(item[0][1]),
                item[0][2] != "0.3",
                item[0][2],
                item[0][3],
            ),
        )
    )


def means(rows: list[Row], field: str = "rmse") -> tuple[Means, set[tuple[str, str]]]:
    """Means over seeds of a field, and the (imputer, table) that lack seeds which others have."""
    values: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    seeds: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row[field]:
            values[row["imputer"], row["table"]][row["seed"]] = float(row[field])
            seeds[row["table"]].add(row["seed"])
    found: Means = defaultdict(dict)
    for (imputer, table), of in values.items():
        found[imputer][table] = float(np.mean(list(of.values())))
    return dict(found), {key for key, of in values.items() if set(of) != seeds[key[1]]}


def compared(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Mean rank and mean ratio to the best of the imputers that have every table with every seed."""
    found, partial = means(rows)
    errors = {
        imputer: {table: error for table, error in of.items() if (imputer, table) not in partial}
        for imputer, of in found.items()
    }
    tables = {table for of in found.values() for table in of}
    # a table that only a part of the seeds is known of, for every imputer, is still a table
    return compare({name: of for name, of in errors.items() if set(of) == tables})


def write(rows: list[Row], path: Path) -> None:
    """Writes `path`.md and, where there is something to draw, `path`.png."""
    parts = [_heading(rows)]
    for section, of in sections(rows).items():
        parts.append(_section(section, of))
    write_text(path.with_suffix(".md"), "\n".join(parts))
    drawn = {
        key: of for key, of in sections(rows).items() if key[0] == "confirmation" and compared(of)
    }
    if drawn:
        _draw(dict(list(drawn.items())[:2]), path.with_suffix(".png"))


def _heading(rows: list[Row]) -> str:
    present = {row["imputer"] for row in rows}
    lines = [
        "# Imputers on tables",
        "",
        "`python bench/imputers.py --write-results`, with `--imputers`, `--mechanism`, `--rates` and "
        "`--tables` for what is beyond its defaults; every row is in `imputers.csv`. One thread, a "
        "process for each imputer, table, seed and part.",
        "",
        "RMSE over the hidden entries, columns scaled to [0, 1] by their observed entries (those "
        "by size: to standard deviation 1); mean over seeds. `in-sample`: all rows are fitted to and "
        "scored; `new`: a quarter of the rows, kept from `fit`. Mechanisms: "
        "`bench/imputation/mechanisms.py`. Ranked are the imputers that have every table with every "
        "seed; ratios are to the best of them, table by table. Coverage is that of central intervals "
        "of 100 draws, CRPS that of the draws. CPU seconds (fit and transform, mean over tables) and "
        "MiB of memory beyond what the imported imputer holds (largest).",
        "",
        "| imputer | settings |",
        "|---|---|",
    ]
    lines += [f"| {name} | {peer.settings} |" for name, peer in PEERS.items() if name in present]
    return "\n".join([*lines, ""])


def _section(section: Section, rows: list[Row]) -> str:
    kind, mechanism, rate, part = section
    seeds = sorted({int(row["seed"]) for row in rows})
    title = f"## {kind}, {mechanism.upper()} {rate}, {part}"
    lines = [title, "", f"Seeds {', '.join(map(str, seeds))}.", "", *_summary(rows)]
    lines += ["", *_errors(rows)]
    failures = sorted({(r["imputer"], r["table"], r["failure"]) for r in rows if r["failure"]})
    if failures:
        lines += ["", "No figure:", ""]
        lines += [f"- {imputer}, {table}: {failure}" for imputer, table, failure in failures]
    return "\n".join([*lines, ""])


def _summary(rows: list[Row]) -> list[str]:
    found, _ = means(rows)
    ranked = compared(rows)
    other = {name: means(rows, name)[0] for name in ("crps", "cover50", "cover90", "memory_mib")}
    fit, transform = means(rows, "fit_s")[0], means(rows, "transform_s")[0]
    best = (
        {
            table: min(
                (of[table] for name, of in found.items() if name in ranked), default=math.nan
            )
            for table in {table for of in found.values() for table in of}
        }
        if ranked
        else {}
    )
    lines = [
        "| imputer | mean rank | mean ratio to the best | tables | CRPS | 50 % | 90 % | CPU s | MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def mean(of: Means, name: str, form: str) -> str:
        return format(float(np.mean(list(of[name].values()))), form) if name in of else ""

    def ratio(name: str) -> float:
        if name in ranked:
            return ranked[name][1]
        of = [error / best[table] for table, error in found[name].items() if table in best]
        return float(np.mean(of)) if of else math.inf

    for name in sorted(found, key=lambda name: (name not in ranked, ratio(name))):
        rank = f"{ranked[name][0]:.2f}" if name in ranked else "-"
        shown = f"{ratio(name):.3f}" if math.isfinite(ratio(name)) else "-"
        seconds = float(np.mean([fit[name][t] + transform[name][t] for t in fit[name]]))
        memory = max(other["memory_mib"][name].values())
        cells = [name, rank, shown, str(len(found[name])), mean(other["crps"], name, ".4f")]
        cells += [mean(other[field], name, ".2f") for field in ("cover50", "cover90")]
        lines.append("| " + " | ".join([*cells, f"{seconds:.2f}", f"{memory:.0f}"]) + " |")
    return lines


def _errors(rows: list[Row]) -> list[str]:
    found, partial = means(rows)
    ranked = compared(rows)
    names = sorted(found, key=lambda name: ranked.get(name, (math.inf, 0)))
    tables = sorted({table for of in found.values() for table in of})
    lines = [f"| RMSE | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for table in tables:
        least = min(of[table] for name, of in found.items() if table in of)
        cells = []
        for name in names:
            error = found[name].get(table)
            shown = "" if error is None else f"{error:.4f}"
            if error == least:
                shown = f"**{shown}**"
            cells.append(shown + "*" * ((name, table) in partial))
        lines.append(f"| {table} | {' | '.join(cells)} |")
    if partial:
        lines += ["", "\\* not all seeds"]
    return lines


def _draw(drawn: dict[Section, list[Row]], path: Path) -> None:
    """Each imputer's ratio to the best: a dot for each table, a mark for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(drawn), figsize=(5 * len(drawn), 4.5), squeeze=False, constrained_layout=True
    )
    for axis, (section, rows) in zip(axes[0], drawn.items(), strict=True):
        _panel(axis, section, rows)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _panel(axis: Any, section: Section, rows: list[Row]) -> None:
    found, _ = means(rows)
    ranked = compared(rows)
    order = sorted(ranked, key=lambda name: -ranked[name][1])
    best = {table: min(found[name][table] for name in ranked) for table in found[order[0]]}
    for height, name in enumerate(order):
        ratios = [found[name][table] / best[table] for table in best]
        colour = "tab:red" if name == "relay" else "tab:blue"
        axis.plot(ratios, [height] * len(ratios), "o", color=colour, alpha=0.25, markersize=4)
        axis.plot(ranked[name][1], height, "|", color=colour, markersize=18, markeredgewidth=3)
    axis.set_yticks(range(len(order)), order)
    axis.set_xscale("log")
    ticks = [1, 1.5, 2, 3, 5, 10]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlabel("RMSE / the least of the table")
    axis.set_title(f"{section[1].upper()} {section[2]}, {section[3]}, {len(best)} tables")
