"""`infer` and `impute` of an array in a file to another one, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from .. import _checks
from ..data.arrays import StoredArray, stored_place, write_stored
from ..data.files import blaming
from ..files import StrPath, append_line, lock, open_own, read_lines, rename, rewrite_lines
from ..memory import pages
from ..models import LatentModel
from ..progress import progress_bar
from .impute import impute
from .infer import infer
from .parquet.completing import Completed, check_filling, inference_options
from .parquet.outputs import digest_of_model
from .runs.directory import RunDirectoryInUse
from .runs.export import without_rows

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
    progress: bool = True,
) -> Completed:
    """Fills in what is missing in an array in an HDF5 file or a zarr store, as an array in another one.

    Every row is inferred as `infer` does, the rows of training too: what a row gets depends on the row
    alone, to rounding. Observed entries, and columns that are no features, keep their bits; the array
    has its shape and dtype.

    What is done of `out` lies beside it in `.NAME.filling.npy` until all of it is there, and a call that
    was killed goes on where it was, if it is started again with the same model, array and options; with
    others it begins anew.

    Args:
        model: a trained model.
        x: the array, "table.h5:/group/x", or a `StoredArray`, which says which columns are features.
            They are taken in the order of the model's: an array has no names for them.
        out: ends in .npy, .h5 or .hdf5, which is replaced, or .zarr, which is not there yet; with the
            name of the array after a colon if it is to have one, /x in HDF5 if not given.
        steps, lr, scale_factor: as in `infer`; the factor is a number.
        estimate: as in `impute`.
        bounds: smallest and largest number to fill in, in the units of the data.
        unseen: `features` that training never observed: what is missing there stays missing.
        seed: of the noise.
        progress: show a bar over the rows.

    Returns:
        As `impute_parquet`: one file.

    Raises:
        ValueError: an argument is out of its range; the array has not the columns of the model.
        DataError: the file is damaged, or a number in it is infinite or none that the likelihood knows.
        RunDirectoryInUse: another process writes `out`.

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
        >>> rvi_fast.training.impute_array(model, table, out, progress=False)
        Completed(files=1, written=1, rows=200, filled=1)
        >>> directory.cleanup()
    """
    check_filling(estimate, bounds)
    options = inference_options(model, steps, lr, scale_factor, seed)
    source = _source(model, x, unseen)
    hidden = np.array([name in unseen for name in source.features])

    def filled(first: int, block: np.ndarray) -> tuple[np.ndarray, int]:
        shown = source.numbers(first, block)
        if source.pixels:  # nothing is missing
            return block, 0
        gaps = np.isnan(shown) & ~hidden
        if not gaps.any():
            return block, 0
        shown[:, hidden] = np.nan
        with blaming(Path(f"{source.path}: {source.name}, from row {first} on")):
            # a row must not depend on its place
            posterior = infer(small, shown, shared_noise=True, **options)
        found = impute(small, shown, posterior=posterior, estimate=estimate)
        values = found.to(torch.float64).cpu().numpy().clip(*bounds)
        return source.filled(block, values, gaps), int(gaps.sum())

    small = without_rows(model)
    described = ["impute", *options.values(), estimate, *map(repr, bounds), *map(str, unseen)]
    shape = (source.num_rows, source.num_columns)
    return _written(small, source, Path(out), described, shape, source.dtype, filled, progress)


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
    progress: bool = True,
) -> Completed:
    """Finds the posteriors of the rows of an array in an HDF5 file or a zarr store.

    They are written as an array [N, 2 T] of float32: T means, then T standard deviations. Arguments,
    errors, and what becomes of a call that was killed are those of `impute_array`.
    """
    options = inference_options(model, steps, lr, scale_factor, seed)
    source = _source(model, x, unseen)
    hidden = np.array([name in unseen for name in source.features])
    small = without_rows(model)

    def latents(first: int, block: np.ndarray) -> tuple[np.ndarray, int]:
        shown = source.numbers(first, block)
        if not source.pixels:
            shown[:, hidden] = np.nan
        with blaming(Path(f"{source.path}: {source.name}, from row {first} on")), torch.no_grad():
            posterior = infer(small, shown, shared_noise=True, **options)
            parts = posterior.mean(), posterior.std()
        return torch.cat(parts, dim=1).float().cpu().numpy(), 0

    described = ["infer", *options.values(), *map(str, unseen)]
    shape = (source.num_rows, 2 * model.posterior.latent_dim)
    kind = np.dtype(np.float32)
    return _written(small, source, Path(out), described, shape, kind, latents, progress)


def _source(model: LatentModel, x: StrPath | StoredArray, unseen: Sequence[str]) -> StoredArray:
    """The array, if its columns can be those of a model."""
    source = x if isinstance(x, StoredArray) else StoredArray(x)
    if len(source.features) != model.num_features:
        raise ValueError(
            f"x: expected {model.num_features} columns, as the model has features, got "
            f"{len(source.features)}"
        )
    for name in unseen:
        if name not in source.features:
            raise ValueError(f"unseen: expected names of features, got {name!r}")
    return source


class _Place(NamedTuple):
    """Where an array goes when all of it is there: the file, and how it is named within it."""

    path: Path
    stored: bool


def _place(out: Path, source: StoredArray) -> _Place:
    """Checks, before any work, that an array can be written there."""
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
    return _Place(path, found is not None)


def _written(
    model: LatentModel,
    source: StoredArray,
    out: Path,
    described: Sequence[Any],
    shape: tuple[int, int],
    kind: np.dtype,
    change: Callable[[int, np.ndarray], tuple[np.ndarray, int]],
    progress: bool,
) -> Completed:
    """Writes what `change` makes of each piece of an array, from where a call before was killed."""
    place, count = _place(out, source), 0
    job = {"x": source.fingerprint(), "pieces": source.piece_rows}
    job |= {"model": digest_of_model(model), "options": [*described]}
    base = place.path.with_name(f".{place.path.name}.filling")
    held, done = base.with_suffix(".npy"), base.with_suffix(".jsonl")
    with open_own(base.with_suffix(".lock"), create=True) as guard:
        try:
            lock(guard)
        except OSError as error:
            raise RunDirectoryInUse(f"{place.path} is being written by another process") from error
        array, records = _begun(held, done, job, shape, kind)
        there = {first: record["filled"] for first, record in records.items()}
        with progress_bar(
            shape[0], unit="row", shown=_checks.check_bool("progress", progress)
        ) as bar:
            for first, block in source.chunks(skip=there):
                values, filled = change(first, block)
                array[first : first + len(values)] = values
                _settle(array)
                record = {"first": first, "rows": len(values), "filled": filled}
                append_line(done, record)
                there[first] = filled
                bar.update(len(values))
        count = sum(there.values())
        _put(place, out, held, array, shape, kind)
        done.unlink()
    base.with_suffix(".lock").unlink(missing_ok=True)
    return Completed(1, 1, shape[0], count)


def _begun(
    held: Path, done: Path, job: dict[str, Any], shape: tuple[int, int], kind: np.dtype
) -> tuple[Any, dict[int, dict[str, Any]]]:
    """The array so far, and what is done of it by first row: nothing, if that was something else."""
    lines = read_lines(done)
    if lines and lines[0] == job and held.is_file():
        array = np.load(held, mmap_mode="r+")
        if array.shape == shape and array.dtype == kind:
            return array, {line["first"]: line for line in lines[1:]}
    done.unlink(missing_ok=True)
    held.unlink(missing_ok=True)
    array = np.lib.format.open_memmap(held, "w+", kind, shape)
    array.flush()
    rewrite_lines(done, [job])
    return array, {}


def _settle(array: np.memmap) -> None:
    """Returns when what was written is on disk, and lets go of it."""
    array.flush()
    pages.forget_pages(array.ctypes.data, array.nbytes)


def _put(
    place: _Place, out: Path, held: Path, array: Any, shape: tuple[int, int], kind: np.dtype
) -> None:
    """Gives a finished array its name."""
    if place.stored:

        def parts() -> Iterator[np.ndarray]:
            for start in range(0, shape[0], _CHUNK):
                yield array[start : start + _CHUNK]
                _settle(array)

        write_stored(out, shape, kind, parts())
        held.unlink()
    else:
        array.flush()
        rename(held, place.path)
