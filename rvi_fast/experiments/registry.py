"""`rvi-fast reproduce`: the figures of the paper, and others, by name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import figures  # noqa: F401  (registers them)
from .experiment import Experiment
from .figure import REGISTERED, Figure
from .kept import kept
from .pictures import check_matplotlib
from .scales import IMAGES, SCALES
from .sweep import SweepError, directory_of, read_result, sweep
from .work import Work


def _place(name: str) -> tuple[int, str]:
    """Figures of the paper by number, then the others by name."""
    number = name.removeprefix("fig")
    return (int(number) if number.isdecimal() else sys.maxsize, name)


FIGURES: dict[str, Figure] = {name: REGISTERED[name] for name in sorted(REGISTERED, key=_place)}


def run(
    configuration: Experiment, directory: Path, *, data_dir: Path | None = None
) -> dict[str, Any] | Work[dict[str, Any]]:
    """One run of a figure, by the configuration's own `result`."""
    return configuration.result(directory, data_dir)


def _configurations(name: str, scale: str, sets: Sequence[str]) -> list[Experiment]:
    sizes = SCALES[scale].of(name)
    found = FIGURES[name].configurations(sizes.on(sets) if sets else sizes)
    for one in sets:
        if all(run.data != one for run in found):
            raise ValueError(
                f"data: expected sets that {name} is made of, got {one}; of several it takes some, of "
                f"most figures images ({', '.join(IMAGES)}) alone"
            )
    return found


def reproduce(
    names: Sequence[str],
    out: Path,
    *,
    scale: str = "quick",
    sets: Sequence[str] = (),
    data_dir: Path | None = None,
    jobs: int = 1,
    device: str | None = None,
    keep: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Makes figures: `out`/NAME.csv, NAME.png and NAME.svg of each, and the runs in `out`/runs.

    Figures share runs; started again, only what is missing is run.

    Args:
        names: of `FIGURES`; "all" for all of them.
        out: where to; one scale's results to a directory.
        scale: of `SCALES`.
        sets: data sets instead of those of the scale: names or paths of tables.
        data_dir: where data sets lie.
        jobs: runs side by side, see `sweep`.
        device: where to train; the CPU if not given.
        keep: runs whose numbers `out`/NAME.csv holds count as done, though `out`/runs lacks them; not
            for figures whose pictures need more of a run than its numbers.
        progress: show a bar over all runs.

    Returns:
        What was written.

    Raises:
        ValueError: an unknown name or scale, or a figure that cannot be made of `sets`.
        SweepError: some runs failed; figures without them are made.
        ImportError: matplotlib is missing.
    """
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    chosen = _chosen(names)
    check_matplotlib()
    runs = {name: _configurations(name, scale, sets) for name in chosen}
    out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, dict[Experiment, dict[str, Any]]] = {
        name: kept(FIGURES[name], out / f"{name}.csv", runs[name])
        if keep and FIGURES[name].extra is None
        else {}
        for name in chosen
    }
    every = [each for name in chosen for each in runs[name] if each not in tables[name]]
    failed: SweepError | None = None
    try:
        sweep(
            every,
            functools.partial(run, data_dir=data_dir),
            out / "runs",
            jobs=jobs,
            device=device,
            progress=progress,
        )
    except SweepError as error:
        failed = error  # the figures that do not need the failed runs are made all the same
    for name in chosen:
        directories = [directory_of(out / "runs", each) for each in runs[name]]
        results = [
            read_result(directory) or tables[name].get(one)
            for one, directory in zip(runs[name], directories, strict=True)
        ]
        done = [(one, result) for one, result in zip(runs[name], results, strict=True) if result]
        if len(done) == len(runs[name]):
            FIGURES[name].save(out / name, done, directories)
    if failed is not None:
        raise failed
    return sorted(path for name in chosen for path in out.glob(f"{name}[.-]*"))


def redraw(names: Sequence[str], out: Path) -> list[Path]:
    """Draws the curves of figures anew from the tables in `out`; nothing is run.

    Args:
        names: of `FIGURES`; "all" for those that have a table.
        out: the directory of the tables, which gets the pictures.

    Returns:
        What was written.

    Raises:
        ValueError: an unknown name, or a table that is none of the figure.
        FileNotFoundError: a figure that was asked for by its name has no table.
        ImportError: matplotlib is missing.
    """
    check_matplotlib()
    chosen = _chosen(names)
    if "all" in names:
        chosen = [name for name in chosen if name in names or (out / f"{name}.csv").is_file()]
    for name in chosen:
        FIGURES[name].redraw(out / name)
    return [out / f"{name}{ending}" for name in chosen for ending in (".png", ".svg")]


def _chosen(names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in FIGURES and name != "all"]
    if unknown:
        raise ValueError(f"figures: expected all, {', '.join(FIGURES)}, got {unknown[0]!r}")
    return [name for name in FIGURES if name in names or "all" in names]
