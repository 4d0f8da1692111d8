"""`rvi-fast train | infer | impute` of what is read in pieces: Parquet directories, HDF5 and zarr."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import data
from ..data.arrays import stored_place
from ..data.pixels import is_pixels
from ..data.tables import row_chunks
from ..training import (
    Completed,
    distributed,
    held_out_error,
    impute_array,
    impute_parquet,
    infer_array,
    infer_parquet,
    load,
)
from ..training.collapse import warn_of_collapse
from ..training.runs.checkpoints import latest_epoch
from .building import build_model, fit_model
from .checks import check_bounds, check_device
from .laws import laws_of, standardizable
from .runs import check_run, find_run, record_run
from .scales import scaler_of
from .tables import say, say_added

# options that need a whole table in memory, and what they are where they say nothing
_WHOLE = {
    "header": (None,),
    "subset": (None,),
    "missing": (0.0,),
    "missing_boxes": (None,),
    "recipe": (None, "table"),
    "binarize": (None,),
    "split": (None,),
    "draws": (None,),
}


def is_directory(name: str | None) -> bool:
    """Whether what `--data` says is a directory, or an array in a file; data sets by name are none."""
    if name is None or name in data.DATASETS:
        return False
    return Path(name).expanduser().is_dir() or stored_place(name) is not None


def of_directory(arguments: argparse.Namespace) -> bool:
    """Whether `infer` or `impute` are about one: that of --data, or else that of the run."""
    if arguments.data is not None:
        return is_directory(arguments.data)
    run = find_run(arguments.run_dir)
    return run is not None and bool(run.get("parquet") or run.get("stored"))


def train_directory(arguments: argparse.Namespace, device: str) -> int:
    """Trains a model on a directory and writes it to a run directory."""
    _check_options(arguments)
    run_dir, kind = arguments.run_dir, _transform(arguments)
    source, words = _with_categories(arguments)
    rows = distributed.rows_of_rank(source.num_rows) if distributed.launched() else None
    cache = arguments.cache or run_dir.with_name(f"{run_dir.name}.cache")
    x = source.mapped(cache, rows=rows, progress=not arguments.quiet)
    likelihood = laws_of(words, x, source.features)
    counts = distributed.total(_counted(x)).numpy()
    run = _described(arguments, source, likelihood, counts == 0) | {"transform": kind}
    before = distributed.first(lambda: check_run(run_dir, run, resume=arguments.resume))
    shape = (source.num_rows, len(source.features))
    model, _ = build_model(arguments, shape, likelihood, before)
    if before is not None or latest_epoch(run_dir) is None:
        distributed.first(lambda: record_run(run_dir, run))
    missing = 1 - counts.sum() / (source.num_rows * len(counts))
    say(_summary(source, f"{missing:.1%} missing; {arguments.model} on {device}", run["unseen"]))
    say_added(run_dir, before, source.num_rows)
    if not (distributed.launched() or (arguments.resume and latest_epoch(run_dir) is not None)):
        if not is_pixels(x):
            model.scaler = scaler_of(
                x, kind, standardizable(likelihood, x.shape[1]), source.features
            )
        _say_bent(model, source)
    fit_model(arguments, model, x, device, eval_every=0)
    if not (distributed.launched() or is_pixels(x)):
        # of some rows, so that it takes no longer for more of them
        error = held_out_error(model, x)
        print(f"\nheld-out entries: {error:.3f} of the error of column means (root mean square)")
        steps = arguments.epochs * -(-len(x) // arguments.batch_size)
        warn_of_collapse(error, arguments.lr, steps)
    say(f"\nwritten to {run_dir}")
    if distributed.launched():
        distributed.leave()
    return 0


def infer_directory(arguments: argparse.Namespace) -> int:
    """Writes the posteriors of all rows of a directory, each file to one of its name."""
    model, source, options = _opened(arguments)
    infer = infer_array if isinstance(source, data.StoredArray) else infer_parquet
    done = infer(model, source, arguments.out, **options)
    _say_done(done, f"posterior means and standard deviations of {done.rows} rows", arguments)
    return 0


def impute_directory(arguments: argparse.Namespace) -> int:
    """Writes a directory with what is missing filled in, each file to one of its name."""
    bounds = check_bounds(arguments)
    model, source, options = _opened(arguments)
    impute = impute_array if isinstance(source, data.StoredArray) else impute_parquet
    done = impute(
        model, source, arguments.out, estimate=arguments.estimate, bounds=bounds, **options
    )
    _say_done(done, f"{done.filled} missing entries of {done.rows} rows filled in", arguments)
    return 0


def _opened(
    arguments: argparse.Namespace,
) -> tuple[Any, Any, dict[str, Any]]:
    """Model, directory or array, and further arguments of a command."""
    _check_options(arguments)
    device = check_device(arguments.device)
    run = find_run(arguments.run_dir) or {}
    name = run["data"] if arguments.data is None else arguments.data
    path, stored = Path(name).expanduser(), stored_place(name) is not None
    if not (stored or path.is_dir()):
        raise ValueError(f"--data: expected a directory, {path} is none")
    if (run.get("pixels") and not stored) or run.get("standardizer"):
        raise ValueError(
            f"--data: expected a file: {arguments.run_dir} was trained on pixels, or before 0.3, when "
            "the scale of its data was kept outside the model"
        )
    model = load(arguments.run_dir, device=device, rows=False)
    columns = run.get("columns")
    if columns is not None and arguments.ignore:
        raise ValueError(
            f"--ignore: expected none, the columns are those of {arguments.run_dir}: others are carried"
        )
    source: Any = (
        data.StoredArray(name, ignore=run["ignore"] if run.get("stored") else arguments.ignore)
        if stored
        else data.ParquetDirectory(
            path, columns, ignore=arguments.ignore, categories=run.get("categories", {})
        )
    )
    unseen = [source.features[place] for place in run.get("unseen", ())]
    print(_summary(source, f"{arguments.run_dir} on {device}", run.get("unseen", ())), flush=True)
    _say_bent(model, source)
    options = {
        "steps": arguments.steps,
        "lr": arguments.lr,
        "scale_factor": arguments.scale_factor,
        "unseen": unseen,
        "seed": arguments.seed,
        "jobs": arguments.jobs,
        "progress": not arguments.quiet,
    }
    return model, source, options


def _with_categories(
    arguments: argparse.Namespace,
) -> tuple[Any, list[str]]:
    """The directory or array in training, and the words of --likelihood, with numbers of classes.

    Columns that hold no numbers and have a categorical law are codes of their values.
    """
    words = list(arguments.likelihood or ())
    if stored_place(arguments.data) is not None:
        wrong = [word for word in words if word.endswith("categorical")]
        if wrong and distributed.launched():  # which see some of the codes each
            raise ValueError(f"--likelihood: expected {wrong[0]}:K under torchrun, got no K")
        return data.StoredArray(arguments.data, ignore=arguments.ignore), words
    source = data.ParquetDirectory(arguments.data, ignore=arguments.ignore)
    carried = [name for name, _ in source.carried]
    classes = {place: word.rpartition("=")[0] for place, word in enumerate(words)
               if word.rpartition("=")[2] == "categorical"}  # fmt: skip
    texts = [name for name in classes.values() if name in carried]
    if texts:
        source = data.ParquetDirectory(arguments.data, ignore=arguments.ignore, categories=texts)
    for place, name in classes.items():
        if name in source.categories:
            words[place] += f":{len(source.categories[name])}"
        elif distributed.launched():  # which see some of the codes each
            raise ValueError(f"--likelihood: expected {words[place]}:K under torchrun, got no K")
    return source, words


def _transform(arguments: argparse.Namespace) -> str:
    """What bends columns, of `data.ColumnTransform`."""
    if not distributed.launched():
        return arguments.transform or "auto"
    if arguments.transform not in (None, "none"):
        raise ValueError(
            "--transform: expected none with tables that are read in pieces under torchrun, whose "
            f"processes see some rows each, got {arguments.transform}"
        )
    return "none"


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuses what is not done with a directory."""
    if getattr(arguments, "scale_factor", None) == "held-out":
        raise ValueError("--scale-factor: expected a number with a table that is read in pieces")
    for name, nothing in _WHOLE.items():
        value = getattr(arguments, name, None)
        if value not in nothing:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected none with a directory or an array in a file, got "
                f"{value}"
            )


def _described(
    arguments: argparse.Namespace,
    source: Any,
    likelihood: Any,
    unseen: np.ndarray,
) -> dict[str, Any]:
    """What run.json says of a run, see `train`; "parquet" tells it from that of a file.

    Whether the numbers are as they were is compared by `fit`, which has read them.
    """
    stored = isinstance(source, data.StoredArray)
    path = str(source.path.resolve())
    return {
        "data": f"{path}:{source.name}" if stored else path,
        "parquet": not stored,
        "stored": stored,
        "rows": source.num_rows,
        "header": None,
        "ignore": arguments.ignore,
        "subset": None,
        "missing": 0.0,
        "missing_boxes": None,
        "seed": arguments.seed,
        "recipe": "table",
        "binarize": None,
        "likelihood": likelihood,
        "pixels": stored and source.pixels,
        "columns": None if stored else list(source.features),
        "carried": [name for name, _ in source.carried],
        "categories": {}
        if stored
        else {name: list(values) for name, values in source.categories.items()},
        "unseen": np.flatnonzero(unseen).tolist(),
    }


def _counted(x: np.ndarray) -> torch.Tensor:
    """How many entries of each column are observed, [D] float64."""
    counts = np.zeros(x.shape[1])
    if is_pixels(x):
        return torch.from_numpy(counts + len(x))
    for rows in row_chunks(x.shape):
        counts += np.count_nonzero(~np.isnan(x[rows]), axis=0)
    return torch.from_numpy(counts)


def _summary(source: Any, doing: str, unseen: Any) -> str:
    """What was found, in a few lines."""
    stored = isinstance(source, data.StoredArray)
    held = f"array {source.name}" if stored else f"{len(source.files)} files"
    lines = [
        f"{source.path}: {held}, {source.num_rows} rows, {len(source.features)} features, {doing}"
    ]
    for text, names in (
        ("not modelled, carried along", [f"{name!r} ({why})" for name, why in source.carried]),
        ("never observed, stay empty", [repr(source.features[place]) for place in unseen]),
    ):
        if names:
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            lines.append(f"  {text}: {', '.join(names[:10])}{more}")
    return "\n".join(lines)


def _say_bent(model: Any, source: Any) -> None:
    """Names the columns that are bent."""
    transform = None if model.scaler is None else model.scaler.transform()
    if transform is not None:
        kinds = zip(source.features, transform.kinds, strict=True)
        named = [f"{name!r} ({kind})" for name, kind in kinds if kind != "none"]
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        print(f"  heavy tails, transformed (--transform): {', '.join(named[:10])}{more}")


def _say_done(done: Completed, what: str, arguments: argparse.Namespace) -> None:
    before = done.files - done.written
    there = f", {before} of which were there" if before else ""
    print(f"\n{what}: {arguments.out}, {done.files} files{there}")
