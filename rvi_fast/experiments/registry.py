"""`rvi-fast reproduce`: the figures of the paper, and others, by name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from . import convergence, missing, progression, representations
from .experiment import Experiment, run
from .figure import Figure
from .pictures import check_matplotlib
from .scales import SCALES
from .sweep import directory_of, sweep


def _place(name: str) -> tuple[int, str]:
    """Figures of the paper by number, then the others by name."""
    number = name.removeprefix("fig")
    return (int(number) if number.isdecimal() else sys.maxsize, name)


_FAMILIES = (convergence, missing, representations, progression)
_ALL = {name: figure for family in _FAMILIES for name, figure in family.FIGURES.items()}
FIGURES: dict[str, Figure] = {name: _ALL[name] for name in sorted(_ALL, key=_place)}


def reproduce(
    names: Sequence[str],
    out: Path,
    *,
    scale: str = "quick",
    data_dir: Path | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Makes figures: `out`/NAME.csv and NAME.png of each, and the runs in `out`/runs.

    Figures share runs; started again, only what is missing is run.

    Args:
        names: of `FIGURES`; "all" for all of them.
        out: where to; one scale's results to a directory.
        scale: of `SCALES`.
        data_dir: where data sets lie.
        jobs: runs side by side.
        progress: show a bar over all runs.

    Returns:
        What was written.

    Raises:
        ValueError: an unknown name or scale.
        SweepError: some runs failed.
        ImportError: matplotlib is missing.
    """
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    unknown = [name for name in names if name not in FIGURES and name != "all"]
    if unknown:
        raise ValueError(f"figures: expected all, {', '.join(FIGURES)}, got {unknown[0]!r}")
    check_matplotlib()
    chosen = [name for name in FIGURES if name in names or "all" in names]
    runs = {name: FIGURES[name].configurations(SCALES[scale].of(name)) for name in chosen}
    out.mkdir(parents=True, exist_ok=True)
    every: list[Experiment] = [experiment for name in chosen for experiment in runs[name]]
    results = sweep(
        every,
        functools.partial(run, data_dir=data_dir),
        out / "runs",
        jobs=jobs,
        progress=progress,
    )
    by_run = dict(zip(every, results, strict=True))
    for name in chosen:
        directories = [directory_of(out / "runs", experiment) for experiment in runs[name]]
        pairs = [(experiment, by_run[experiment]) for experiment in runs[name]]
        FIGURES[name].save(out / name, pairs, directories)
    return sorted(path for name in chosen for path in out.glob(f"{name}[.-]*"))
