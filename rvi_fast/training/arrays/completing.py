"""`infer` and `impute` of an array in a file to another one."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ... import _checks
from ...data.arrays import StoredArray, stored_place, write_stored
from ...data.files import DataError
from ...files import StrPath, rename
from ...memory import pages
from ...models import LatentModel
from ...progress import progress_bar
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
from ..runs.export import without_rows
from ..workers import ProcessDied
from .outputs import Outputs, RowFile, held
from .work import write_piece

# rows copied at once into a file of another kind
_CHUNK = 1 << 16


def impute_array(
    model: LatentModel,
    x: StrPath | StoredArray,
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
    """Fills in what is missing in an array in an HDF5 file or a zarr store, as an array in another one.

    Every row is inferred as `infer` does, the rows of training too: what a row gets depends on the row
    alone, to rounding. Observed entries, and columns that are no features, keep their bits; the array
    has its shape and dtype.

    Pieces of about 65,536 rows, of whole chunks of the array, are shared out to processes; the result is
    the same, byte for byte, for any number of them. What is done of `out` lies beside it in
    `.NAME.filling.npy` until all of it is there, and `.NAME.filling.jsonl` lists the pieces that are on
    disk. A call that was killed, or one of its processes, goes on where it was, if it is started again
    with the same model, array and options, in whatever number of processes; with others it begins anew.

    With several processes a script needs `if __name__ == "__main__":` around what it does.

    Args:
        model: a trained model. Other processes get it without its rows.
        x: the array, "table.h5:/group/x", or a `StoredArray`, which says which columns are features.
            They are taken in the order of the model's: an array has no names for them.
        out: ends in .npy, .h5 or .hdf5, which is replaced, or .zarr, which is not there yet; with the
            name of the array after a colon if it is to have one, /x in HDF5 if not given.
        steps, lr, scale_factor: as in `infer`; the factor is a number.
        estimate: as in `impute`.
        bounds: smallest and largest number to fill in, in the units of the data.
        unseen: `features` that training never observed: what is missing there stays missing.
        seed: of the noise.
        jobs: processes at a time, each with one thread; as many as there are processors for this one if
            not given, and no more than pieces. 1 does all in this process, with one thread as well. So
            does a model on a GPU, with the threads that there are.
        progress: show a bar over the rows.

    Returns:
        As `impute_parquet`: one file.

    Raises:
        ValueError: an argument is out of its range; the array has not the columns of the model; the list
            of pieces is damaged.
        DataError: the file is damaged, or has changed while it was read; a number in it is infinite or
            none that the likelihood knows, which ends the call at once.
        TypeError: the model cannot be given to other processes.
        RunDirectoryInUse: another process writes `out`.
        RuntimeError: a process has died; the others have done all other pieces.
        KeyboardInterrupt: after Ctrl-C; what was done stays.

    Example:
        >>> import tempfile, h5py, numpy as np, rvi_fast
        >>> directory = tempfile.TemporaryDirectory()
        >>> x = np.linspace(-1, 1, 200)[:, None] * np.array([1.0, -2.0, 3.0])
        >>> x[5, 1] = np.nan
        >>> with h5py.File(f"{directory.name}/in.h5", "w") as file:
        ...     file["x"] = x
        >>> table = rvi_fast.data.StoredArray(f"{directory.name}/in.h5")
        >>> model = rvi_fast.models.rvi(table.num_rows, 3, latent_dim=2, groups=(4,))
        >>> given = table.mapped(f"{directory.name}/cache")
        >>> history = rvi_fast.fit(model, given, epochs=2, progress=False)
        >>> out = f"{directory.name}/out.h5"
        >>> rvi_fast.training.impute_array(model, table, out, jobs=1, progress=False)
        Completed(files=1, written=1, rows=200, filled=1)
        >>> directory.cleanup()
    """
    bounds = check_filling(estimate, bounds)
    inference = inference_options(model, steps, lr, scale_factor, seed)
    job = _job("impute", model, x, out, unseen, inference)
    return _run(replace(job, estimate=estimate, bounds=bounds), jobs, progress)


def infer_array(
    model: LatentModel,
    x: StrPath | StoredArray,
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
    """Finds the posteriors of the rows of an array in an HDF5 file or a zarr store.

    They are written as an array [N, 2 T] of float32: T means, then T standard deviations. Arguments,
    errors, and what becomes of a call that was killed are those of `impute_array`.
    """
    inference = inference_options(model, steps, lr, scale_factor, seed)
    return _run(_job("infer", model, x, out, unseen, inference), jobs, progress)


def _job(
    kind: Literal["impute", "infer"],
    model: LatentModel,
    x: StrPath | StoredArray,
    out: StrPath,
    unseen: Sequence[str],
    inference: dict[str, Any],
) -> Job[StoredArray]:
    # a copy opens the file anew, and reads what its fingerprint is taken of
    source = copy.copy(x) if isinstance(x, StoredArray) else StoredArray(x)
    if len(source.features) != model.num_features:
        raise ValueError(
            f"x: expected {model.num_features} columns, as the model has features, got "
            f"{len(source.features)}"
        )
    hidden = hidden_of(source.features, unseen)
    return Job(kind, without_rows(model), source, Path(out), hidden, inference)


def _run(job: Job[StoredArray], jobs: int | None, progress: bool) -> Completed:
    progress, place = _checks.check_bool("progress", progress), _place(job.out, job.source)
    pieces = list(job.source.pieces())
    most = check_jobs(job.model, jobs, len(pieces))
    with contextlib.closing(job.source) as source, held(place):
        described = {**job.described(), "x": source.fingerprint(), "pieces": source.piece_rows}
        shape, dtype = (source.num_rows, source.num_columns), source.dtype
        if job.kind == "infer":
            shape, dtype = (shape[0], 2 * job.model.posterior.latent_dim), np.dtype(np.float32)
        outputs = Outputs(place, shape, dtype, described)
        _fill(job, outputs, pieces, most, progress)
        if source.fingerprint() != described["x"]:
            raise DataError(f"{source.path}: {source.name} has changed while it was read")
        _put(job, place, outputs.file)
        outputs.remove()
    return Completed(1, 1, shape[0], sum(outputs.filled.values()))


def _fill(
    job: Job[StoredArray], outputs: Outputs, pieces: Sequence[range], jobs: int, progress: bool
) -> None:
    """Does all pieces that are not done yet, or raises the first error."""
    left = [rows for rows in pieces if rows.start not in outputs.filled]
    work, num_rows = functools.partial(write_piece, job, outputs.file), job.source.num_rows
    before = num_rows - sum(map(len, left))
    errors: list[tuple[str, BaseException]] = []
    with (
        progress_bar(num_rows, initial=before, unit="row", shown=progress) as bar,
        contextlib.closing(ends_of(job.out, work, left, jobs, bar.update)) as ends,
    ):
        for rows, ended in ends:
            if ended.error is None:
                outputs.add(rows, ended.result)
                continue
            error = (f"rows {rows.start} to {rows.stop - 1}", ended.error)
            if not isinstance(ended.error, ProcessDied):
                # the array cannot become whole: nobody is to wait for its other pieces
                errors.insert(0, error)
                break
            errors.append(error)
    raise_first(errors, len(pieces), "pieces", f"what is done of {job.out} is kept")


def _place(out: Path, source: StoredArray) -> Path:
    """The file or store that is written, where it can be: that is checked before any work."""
    found = stored_place(out)
    path = out.expanduser() if found is None else found[0]
    if found is None and path.suffix.lower() != ".npy":
        raise ValueError(f"out: expected .npy, .h5, .hdf5 or .zarr, got {out}")
    if not path.parent.is_dir():
        raise ValueError(f"out: the directory {path.parent} does not exist")
    if path.exists() and path.resolve() == source.path.resolve():
        raise ValueError(f"out: expected another file than the data, got {out}")
    if path.is_dir():
        raise ValueError(f"out: expected a file or store that is not there yet, got {path}")
    return path


def _put(job: Job[StoredArray], place: Path, file: RowFile) -> None:
    """Gives a finished array its name."""
    if stored_place(job.out) is None:
        rename(file.path, place)
        return
    array = file.mapped()

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(array), _CHUNK):
            yield array[start : start + _CHUNK]
            pages.forget_pages(array.ctypes.data, array.nbytes)

    write_stored(job.out, file.shape, file.dtype, parts())
