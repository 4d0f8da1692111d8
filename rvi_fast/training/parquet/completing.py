"""`infer` and `impute` of a directory of Parquet files to another one."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ... import _checks
from ...data.parquet import ParquetDirectory
from ...data.parquet.directory import ParquetFile
from ...files import StrPath
from ...models import LatentModel
from ...progress import progress_bar
from ..inputs.prepare import listed
from ..loop.interrupts import Interrupted, deferred
from ..runs.directory import RunDirectory
from ..runs.export import without_rows
from ..workers import Ended, available_cpus, side_by_side
from .outputs import Outputs, digest_of_model
from .work import Job, write_file


class Completed(NamedTuple):
    """What a directory holds when all is done.

    Attributes:
        files: how many there are.
        written: how many of them this call has written; the others were there.
        rows: of all files.
        filled: cells that were filled in, of all files.
    """

    files: int
    written: int
    rows: int
    filled: int


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
        RunDirectoryInUse: another process is at work in `out`.
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
    check_filling(estimate, bounds)
    inference = inference_options(model, steps, lr, scale_factor, seed)
    job = _job("impute", model, x, out, unseen, inference)
    job = Job(**{**vars(job), "estimate": estimate, "bounds": (float(bounds[0]), float(bounds[1]))})
    return _run(job, jobs, _checks.check_bool("progress", progress))


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
    return _run(job, jobs, _checks.check_bool("progress", progress))


def check_filling(estimate: Any, bounds: tuple[float, float]) -> None:
    """Refuses what says wrongly what is filled in."""
    low, high = bounds
    if not low <= high:
        raise ValueError(f"bounds: expected the smallest and the largest number, got {bounds}")
    if estimate not in (None, "mean", "mode"):
        raise ValueError(f"estimate: expected 'mean', 'mode' or None, got {estimate!r}")


def inference_options(
    model: LatentModel, steps: Any, lr: Any, scale_factor: Any, seed: Any
) -> dict[str, Any]:
    """Arguments of `infer`, checked before anything is written."""
    if steps is not None:
        check = _checks.check_count if model.amortized else _checks.check_positive_int
        steps = check("steps", steps)
    lr = None if lr is None else _checks.check_positive_float("lr", lr)
    if scale_factor == "held-out":
        raise ValueError("scale_factor: expected a number for files, got 'held-out'")
    factor = _checks.check_positive_float("scale_factor", scale_factor)
    return {"steps": steps, "lr": lr, "scale_factor": factor, "seed": _checks.check_seed(seed)}


def _job(
    kind: str,
    model: LatentModel,
    x: StrPath | ParquetDirectory,
    out: StrPath,
    unseen: Sequence[str],
    inference: dict[str, Any],
) -> Job:
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
    for name in unseen:
        if name not in source.features:
            raise ValueError(f"unseen: expected names of features, got {name!r}")
    path, own = Path(out).expanduser(), source.path.resolve()
    if path.resolve() == own or own in path.resolve().parents or path.resolve() in own.parents:
        raise ValueError(f"out: expected a directory apart from {source.path}, got {path}")
    hidden = np.array([name in unseen for name in source.features])
    return Job(kind, without_rows(model), source, path, hidden, inference)


def _run(job: Job, jobs: int | None, progress: bool) -> Completed:
    described = {
        "command": job.kind,
        "model": digest_of_model(job.model),
        "features": list(job.source.features),
        "categories": {name: list(own) for name, own in job.source.categories.items()},
        "unseen": np.flatnonzero(job.unseen).tolist(),
        "options": [*job.inference.values(), job.estimate, *map(repr, job.bounds)],
    }
    files, num_rows = job.source.files, job.source.num_rows
    with RunDirectory(job.out):
        outputs = Outputs(job.out, described)
        left = outputs.left(files)
        jobs = _processes(job.model, jobs, len(left))
        before = num_rows - sum(file.num_rows for file in left)
        with progress_bar(num_rows, initial=before, unit="row", shown=progress) as bar:
            work = _in_turn if jobs < 2 else functools.partial(_side_by_side, jobs=jobs)
            errors: list[tuple[ParquetFile, BaseException]] = []
            with contextlib.closing(work(job, left, bar.update)) as ends:
                for file, ended in ends:
                    if ended.error is None:
                        outputs.add(file, ended.result)
                    else:
                        errors.append((file, ended.error))
        if errors:
            _raise(errors, job)
        filled = sum(outputs.records[file.name]["filled"] for file in files)
    return Completed(len(files), len(left), num_rows, filled)


def _processes(model: LatentModel, jobs: int | None, files: int) -> int:
    """How many processes work side by side."""
    device = next(model.parameters()).device
    if jobs is not None and _checks.check_positive_int("jobs", jobs) > 1 and device.type != "cpu":
        raise ValueError(f"jobs: expected 1 for a model on {device}, got {jobs}")
    # a process that belongs to another one's pool may not start any
    if device.type != "cpu" or multiprocessing.current_process().daemon:
        return 1
    return min(jobs or available_cpus(), files)


def _in_turn(
    job: Job, files: Sequence[ParquetFile], count: Callable[[int], None]
) -> Generator[tuple[ParquetFile, Ended], None, None]:
    for file in files:
        try:
            ended = Ended(write_file(job, file.name, count))
        except Exception as error:
            ended = Ended(error=error)
        yield file, ended


def _side_by_side(
    job: Job, files: Sequence[ParquetFile], count: Callable[[int], None], *, jobs: int
) -> Generator[tuple[ParquetFile, Ended], None, None]:
    work, names = functools.partial(write_file, job), [file.name for file in files]
    with deferred() as request:
        ends = side_by_side(work, names, jobs, request, lambda _, rows: count(rows))
        with contextlib.closing(ends):
            for number, ended in ends:
                if request.signum is None or ended.error is None:
                    yield files[number], ended
        if request.signum is not None:
            raise Interrupted(request.signum, f"{job.out}: started again, it goes on")


def _raise(errors: Sequence[tuple[ParquetFile, BaseException]], job: Job) -> None:
    """Raises the first error, which says how many files have failed."""
    error = errors[0][1]
    names = ", ".join(file.name for file, _ in errors[:5])
    error.add_note(
        f"{len(errors)} of {len(job.source.files)} files failed ({names}); the others are in {job.out}"
    )
    raise error
