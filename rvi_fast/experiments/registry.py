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
    progress: bool = True,
) -> list[Path]:
    """Makes figures: `out`/NAME.csv and NAME.png of each, and the runs in `out`/runs.

    Figures share runs; started again, only what is missing is run.

    Args:
        names: of `FIGURES`; "all" for all of them.
        out: where to; one scale's results to a directory.
        scale: of `SCALES`.
        sets: data sets instead of those of the scale: names or paths of tables.
        data_dir: where data sets lie.
        jobs: runs side by side, see `sweep`.
        device: where to train; the CPU if not given.
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
    unknown = [name for name in names if name not in FIGURES and name != "all"]
    if unknown:
        raise ValueError(f"figures: expected all, {', '.join(FIGURES)}, got {unknown[0]!r}")
    check_matplotlib()
    chosen = [name for name in FIGURES if name in names or "all" in names]
    runs = {name: _configurations(name, scale, sets) for name in chosen}
    out.mkdir(parents=True, exist_ok=True)
    every: list[Experiment] = [each for name in chosen for each in runs[name]]
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
        results = [read_result(directory) for directory in directories]
        done = [(one, result) for one, result in zip(runs[name], results, strict=True) if result]
        if len(done) == len(runs[name]):
            FIGURES[name].save(out / name, done, directories)
    if failed is not None:
        raise failed
    return sorted(path for name in chosen for path in out.glob(f"{name}[.-]*"))
