"""What an imputer is given, the process that it runs in, and the row of the results that comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from . import scores, tables
from .mechanisms import MECHANISMS
from .peers import PEERS
from .worker import LEVELS

FIELDS = (
    "imputer",
    "table",
    "mechanism",
    "rate",
    "seed",
    "rows",
    "rmse",
    "crps",
    "cover50",
    "cover90",
    "fit_s",
    "transform_s",
    "memory_mib",
    "failure",
)
_BENCH = Path(__file__).resolve().parent.parent
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One imputer on one table with entries hidden by a seed, which is the imputer's seed too."""

    imputer: str
    table: str
    mechanism: str
    rate: float
    seed: int

    def key(self, part: str) -> tuple[str, ...]:
        """What names the row of the results: values of the first six `FIELDS`, as text."""
        return (
            self.imputer,
            self.table,
            self.mechanism,
            f"{self.rate:g}",
            str(self.seed),
            part,
        )


@dataclass(frozen=True)
class Part:
    """What is asked of an imputer, in its units, and what it is scored by.

    Args:
        given: `fit` [N, D] and, for new rows, `rows` [M, D]; NaN wherever an entry is hidden.
        truth: [N, D] or [M, D], the rows that are scored.
        hidden: bool, likewise, True = scored.
    """

    given: dict[str, np.ndarray]
    truth: np.ndarray
    hidden: np.ndarray


def make_part(job: Job, part: str) -> Part:
    """Hides entries of a table, and scales its columns by those that are left.

    All columns are scaled to [0, 1] by the least and the largest observed entry of the rows of `fit`;
    the tables of `tables.SIZED` to mean 0 and standard deviation 1 of those. A column whose observed
    entries are equal is shifted only. "in-sample": all rows are both fitted to and scored. "new": a
    quarter of the rows, drawn by the seed, is kept from `fit` and scored.
    """
    x = tables.load(job.table)
    hidden = MECHANISMS[job.mechanism](x, job.rate, job.seed)
    held = np.zeros(len(x), np.bool_)
    if part == "new":
        held[np.random.default_rng((job.seed, 3)).permutation(len(x))[: len(x) // 4]] = True
    holed = np.where(hidden, np.nan, x)
    shift, unit = _units(holed[~held], job.table in tables.SIZED)
    holed, truth = (holed - shift) / unit, (x - shift) / unit
    if part == "in-sample":
        return Part({"fit": holed}, truth, hidden)
    return Part({"fit": holed[~held], "rows": holed[held]}, truth[held], hidden[held])


def _units(holed: np.ndarray, standard: bool) -> tuple[np.ndarray, np.ndarray]:
    empty = np.isnan(holed).all(0)
    if empty.any():
        raise ValueError(
            f"rate: expected an observed entry in each column, got none in {np.flatnonzero(empty)}"
        )
    if standard:
        shift, unit = np.nanmean(holed, 0), np.nanstd(holed, 0)
    else:
        shift, unit = np.nanmin(holed, 0), np.nanmax(holed, 0) - np.nanmin(holed, 0)
    return shift, np.where(unit > 0, unit, 1.0)


def python_of(imputer: str, environments: Path | None) -> str:
    """The interpreter that has an imputer's package: this one, or that of the package's environment."""
    package = PEERS[imputer].package
    if environments is not None and package is not None:
        found = environments.absolute() / package / "bin" / "python"
        if found.is_file():
            return str(found)
    return sys.executable


class Workers:
    """Processes that run imputers, one for each thread that asks: that of the imputer it asked for last.

    Args:
        environments: folder with environments named after packages, see `environments`.
        limit: CPU seconds that a part may take.
    """

    def __init__(self, environments: Path | None, limit: int) -> None:
        self.environments, self.limit = environments, limit
        self._own = threading.local()
        self._all: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._all:
            process.communicate()

    def run(self, job: Job, parts: list[str]) -> list[dict[str, str]]:
        """Rows of the results, one for each of these parts."""
        asked = {part: make_part(job, part) for part in parts}
        with tempfile.TemporaryDirectory() as folder:
            for name, part in asked.items():
                np.savez(Path(folder) / f"{name}.npz", **part.given)
            process = self._of(job.imputer)
            said = ""
            # a worker that has ended takes no line, or answers none
            with suppress(BrokenPipeError):
                process.stdin.write(f"{job.seed} {folder}\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                said = process.stdout.readline()  # type: ignore[union-attr]
            if not said:
                self._own.imputer = None
            return [_row(job, name, part, Path(folder)) for name, part in asked.items()]

    def _of(self, imputer: str) -> subprocess.Popen[str]:
        if getattr(self._own, "imputer", None) != imputer:
            if getattr(self._own, "imputer", None):
                self._own.process.communicate()
            environment = os.environ | dict.fromkeys(_THREADS, "1") | {"PYTHONPATH": str(_BENCH)}
            self._own.imputer, self._own.process = (
                imputer,
                subprocess.Popen(
                    [
                        python_of(imputer, self.environments),
                        *("-m", "imputation.worker", imputer, str(self.limit)),
                    ],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                ),
            )
            self._all.append(self._own.process)
        return self._own.process


def _row(job: Job, name: str, part: Part, folder: Path) -> dict[str, str]:
    row = dict.fromkeys(FIELDS, "") | dict(zip(FIELDS, job.key(name), strict=False))
    report = folder / f"{name}.json"
    if not report.is_file():
        why = folder / f"{name}.failure"
        said = why.read_text(encoding="utf-8") if why.is_file() else "its process has ended"
        return row | {"failure": said[:200]}
    with np.load(folder / f"{name}.filled.npz") as arrays:
        filled, draws, ends = arrays["filled"], arrays.get("draws"), arrays.get("ends")
    observed = ~part.hidden
    if filled.shape != part.truth.shape or not np.isfinite(filled).all():
        return row | {"failure": f"expected finite numbers {part.truth.shape}, got {filled.shape}"}
    if not np.allclose(filled[observed], part.truth[observed], rtol=1e-4, atol=1e-4):
        return row | {"failure": "expected observed entries unchanged"}
    measured = json.loads(report.read_text(encoding="utf-8"))
    values = {"rmse": scores.rmse(part.truth, filled, part.hidden)}
    truth = part.truth[part.hidden]
    if draws is not None:
        values["crps"] = scores.crps(truth, draws)
        if ends is None:
            ends = np.array([scores.central(draws, level) for level in LEVELS])
    for level, of in zip(LEVELS, () if ends is None else ends, strict=False):
        values[f"cover{level * 100:.0f}"] = float(np.mean((of[0] <= truth) & (truth <= of[1])))
    values |= {name: measured[name] for name in ("fit_s", "transform_s", "memory_mib")}
    return row | {name: f"{value:.5g}" for name, value in values.items()}
