"""`infer` and `impute` of a directory of Parquet files to another one."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ... import _checks
from ...data.parquet import ParquetDirectory
from ...files import StrPath
from ...models import LatentModel
from ...progress import progress_bar
from ..inputs.prepare import listed
from ..pieces import (
    Completed,
    Job,
    check_filling,
    check_jobs,
    ends_of,
    hidden_of,
    inference_options,
    raise_first,
)
from ..runs.directory import RunDirectory
from ..runs.export import without_rows
from .outputs import Outputs
from .work import write_file


def impute_parquet(
    model: LatentModel,
    x: StrPath | ParquetDirectory,
    out: StrPath,
    *,
    steps: int | None = None,
    lr: float | None = None,
    scale_factor: float = 1.0,
    estimate: Literal["mean", "mode"] | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    unseen: Sequence[str] = (),
    seed: int = 0,
    jobs: int | None = None,
    progress: bool = True,
) -> Completed:
    """Fills in what is missing in a directory of Parquet files, each as a file of that name in another.

    Every row is inferred as `infer` does, the rows of training too: what a row gets depends on the row
    alone, to rounding, and neither on its place nor on what has become of the model's own rows. Columns
    that are no features are carried along, observed cells keep their bits, and every column its type:
    what is filled in is rounded where it holds whole numbers, decimals or bools.

    A file takes its place when all of it is on disk. A call that was killed goes on where it was:
    started again with the same model and options it writes the files that are missing or whose input
    has changed since (by size and time), and leaves the others alone. What is done stands in
    `out/_rvi_fast.jsonl`. A file that fails leaves the others alone too.

    With several processes a script needs `if __name__ == "__main__":` around what it does.

    Args:
        model: a trained model. Other processes get it without its rows.
        x: the directory; its columns of numbers, or `model.columns` where the model has them, are the
            features. Or a `ParquetDirectory`, which says which columns they are, in the model's order: a
            model that was trained on a DataFrame knows it, and another is refused.
        out: the directory to write, made where it is missing: not `x`, not in it and not around it.
        steps, lr, scale_factor: as in `infer`; the factor is a number.
        estimate: as in `impute`.
        bounds: smallest and largest number to fill in, in the units of the data.
        unseen: names of features that training never observed: what is missing there stays missing.
        seed: of the noise.
        jobs: processes at a time, each with one thread; as many as there are processors for this one if
            not given, and no more than files. 1 does all in this process; so does a model on a GPU.
        progress: show a bar over the rows.

    Raises:
        ValueError: an argument is out of its range; columns are not those of the model; `out` holds
            Parquet files of another origin, or was begun with another model or other options.
        DataError: a file is damaged, or a number in it is infinite or none that the likelihood knows.
        TypeError: the model cannot be given to other processes.
        RunDirectoryInUse: another process is at work in `out`.
        RuntimeError: a process has died; the others have written all other files.
        KeyboardInterrupt: after Ctrl-C; what was written stays.

    Example:
        >>> import pathlib, tempfile, numpy as np, rvi_fast
        >>> directory = tempfile.TemporaryDirectory()
        >>> path = pathlib.Path(directory.name)
        >>> (path / "in").mkdir()
        >>> x = np.linspace(-1, 1, 200)[:, None] * np.array([1.0, -2.0, 3.0])
        >>> x[5, 1] = np.nan
        >>> rvi_fast.data.save_table(path / "in/a.parquet", x, ["a", "b", "c"])
        >>> table = rvi_fast.data.ParquetDirectory(path / "in")
        >>> model = rvi_fast.models.rvi(table.num_rows, 3, latent_dim=2, groups=(4,))
        >>> history = rvi_fast.fit(model, table.mapped(path / "cache"), epochs=2, progress=False)
        >>> rvi_fast.training.impute_parquet(model, table, path / "out", jobs=1, progress=False)
        Completed(files=1, written=1, rows=200, filled=1)
        >>> rvi_fast.training.impute_parquet(model, table, path / "out", jobs=1, progress=False).written
        0
        >>> directory.cleanup()
    """
    bounds = check_filling(estimate, bounds)
    inference = inference_options(model, steps, lr, scale_factor, seed)
    job = _job("impute", model, x, out, unseen, inference)
    return _run(replace(job, estimate=estimate, bounds=bounds), jobs, progress)


def infer_parquet(
    model: LatentModel,
    x: StrPath | ParquetDirectory,
    out: StrPath,
    *,
    steps: int | None = None,
    lr: float | None = None,
    scale_factor: float = 1.0,
    unseen: Sequence[str] = (),
    seed: int = 0,
    jobs: int | None = None,
    progress: bool = True,
) -> Completed:
    """Finds the posteriors of a directory of Parquet files, each as a file of that name in another.

    The columns that are no features are carried along; in the place of the features stand mean_0, ...
    and std_0, ..., the posterior's means and standard deviations in float32.

    Arguments, errors, and what becomes of a call that was killed are those of `impute_parquet`.
    """
    inference = inference_options(model, steps, lr, scale_factor, seed)
    job = _job("infer", model, x, out, unseen, inference)
    return _run(job, jobs, progress)


def _job(
    kind: Literal["impute", "infer"],
    model: LatentModel,
    x: StrPath | ParquetDirectory,
    out: StrPath,
    unseen: Sequence[str],
    inference: dict[str, Any],
) -> Job[ParquetDirectory]:
    source = x if isinstance(x, ParquetDirectory) else ParquetDirectory(x, model.columns)
    if model.columns is not None and tuple(source.features) != model.columns:
        raise ValueError(
            f"x: expected the columns {listed(model.columns)}, got {listed(source.features)}"
        )
    if len(source.features) != model.num_features:
        raise ValueError(
            f"x: expected {model.num_features} columns of numbers, as the model has features, got "
            f"{len(source.features)}: {', '.join(source.features[:10])}"
        )
    for name, classes in zip(source.features, model.law.classes, strict=True):
        if name in source.categories and len(source.categories[name]) > classes:
            raise ValueError(
                f"x: expected at most {classes} categories in column {name!r}, as the likelihood has, "
                f"got {len(source.categories[name])}"
            )
    hidden = hidden_of(source.features, unseen)
    path, own = Path(out).expanduser(), source.path.resolve()
    if path.resolve() == own or own in path.resolve().parents or path.resolve() in own.parents:
        raise ValueError(f"out: expected a directory apart from {source.path}, got {path}")
    return Job(kind, without_rows(model), source, path, hidden, inference)


def _run(job: Job[ParquetDirectory], jobs: int | None, progress: bool) -> Completed:
    progress = _checks.check_bool("progress", progress)
    most = check_jobs(job.model, jobs, len(job.source.files))
    described = {
        **job.described(),
        "features": list(job.source.features),
        "categories": {name: list(own) for name, own in job.source.categories.items()},
    }
    files, num_rows = job.source.files, job.source.num_rows
    with RunDirectory(job.out):
        outputs = Outputs(job.out, described)
        left = {file.name: file for file in outputs.left(files)}
        before = num_rows - sum(file.num_rows for file in left.values())
        with progress_bar(num_rows, initial=before, unit="row", shown=progress) as bar:
            errors: list[tuple[str, BaseException]] = []
            work = functools.partial(write_file, job)
            with contextlib.closing(ends_of(job.out, work, [*left], most, bar.update)) as ends:
                for name, ended in ends:
                    if ended.error is None:
                        outputs.add(left[name], ended.result)
                    else:
                        errors.append((name, ended.error))
        raise_first(errors, len(files), "files", f"the others are in {job.out}")
        filled = sum(outputs.records[file.name]["filled"] for file in files)
    return Completed(len(files), len(left), num_rows, filled)
