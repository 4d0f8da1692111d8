"""Reading a trained model back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from ..models import LatentModel
from .places import directory_of
from .runs.checkpoints import Checkpoint, CheckpointError, load_checkpoint
from .runs.described import build_described, dtype_of, shape_of_rows
from .runs.directory import RunDirectory
from .runs.export import load_export, without_rows
from .runs.mean_row import mean_row
from .runs.parts import in_memory, parts_of
from .runs.state import lags
from .runs.tables import tables_of
from .settings import Settings


def load(
    run_dir: str | os.PathLike[str], *, device: torch.device | str = "cpu", rows: bool = True
) -> LatentModel:
    """The model of the last good checkpoint in a run directory, or of a file that `export` has written.

    One process reads all rows, however many have written the checkpoint; into memory, where each of them
    had its own in files.

    Only models made by a builder (`models.rvi`, ...) know how to be built again; load any
    other with `model.load_state_dict(load_checkpoint(run_dir).tensors["model"])`.

    Args:
        run_dir: the directory, or the file.
        device: where the model goes.
        rows: false leaves out the rows of the training data; what is left serves new rows as the whole
            model does, bit for bit, see `posteriors.RowlessPosterior`. Of the rows some are in memory at
            a time, for their mean, and their moments only where a checkpoint within an epoch needs them.

    Raises:
        CheckpointError: there is none that can be read.
        ValueError: the model was not made by a builder.
    """
    if Path(run_dir).is_file():
        return load_export(Path(run_dir), device, rows=rows)
    # where the tables belong is known by the config alone
    checkpoint = load_checkpoint(run_dir)
    for part in ("model", "optimizer"):
        if part not in checkpoint.tensors:
            raise CheckpointError(checkpoint.path, f"holds no {part}")
    kept = checkpoint.metadata.get("settings", {})
    config = checkpoint.metadata.get("config")
    if config is None:
        raise ValueError(
            f"run_dir: expected a model made by a builder of rvi_fast.models, {checkpoint.path} "
            'holds another; use model.load_state_dict(load_checkpoint(run_dir).tensors["model"])'
        )
    storage = config.get("storage")
    tensors = checkpoint.tensors["model"]
    parted = "posterior.rows" not in tensors and "" not in parts_of(checkpoint)
    mapped = storage not in (None, "host") and not parted
    if mapped and not (Path(storage) / "tables.json").is_file():
        raise CheckpointError(checkpoint.path, f"has its tables in {storage}, which holds none")
    if not rows and ("posterior.rows" in tensors or storage is not None):
        model = _without_rows(checkpoint, config, device)
        return _said(model, checkpoint).eval()
    if parted:
        checkpoint, config = _read_parts(checkpoint, config)
        storage, tensors = None, checkpoint.tensors["model"]
    with contextlib.ExitStack() as stack:
        model = build_described(checkpoint.path, config, tensors)
        model = model.to(device, dtype_of(model, tensors))
        directory = directory_of(model)
        if directory is not None:
            stack.enter_context(RunDirectory(directory))
        model.load_state_dict(tensors, strict=directory is None)
        if lags(checkpoint):
            tables_of(model.posterior, Settings.of_rows(kept), Path(run_dir)).settle(checkpoint)
    return _said(model, checkpoint).eval()


def _said(model: LatentModel, checkpoint: Checkpoint) -> LatentModel:
    """The model, with what a checkpoint says of the data that it was trained on."""
    data = checkpoint.metadata.get("settings", {}).get("data")
    # 0.1.0 knew another fingerprint, of the model's numbers
    model.trained_on = data if isinstance(data, dict) else None
    columns = checkpoint.metadata.get("columns")
    model.columns = None if columns is None else tuple(columns)
    return model


def _without_rows(
    checkpoint: Checkpoint, config: dict[str, Any], device: torch.device | str
) -> LatentModel:
    """The model of a checkpoint whose datapoints own rows, of which the mean alone is kept."""
    path, tensors = checkpoint.path, dict(checkpoint.tensors["model"])
    whole = {name: value for name, value in config.items() if name != "storage"}
    shape = shape_of_rows(path, whole)
    held = tensors.get("posterior.rows")
    if held is not None and held.shape != shape:
        reason = f"has rows {list(held.shape)}, its description says {list(shape)}"
        raise CheckpointError(path, reason)
    tensors["posterior.rows"] = tensors["posterior.relays"].new_zeros(1, shape[1])
    model = build_described(path, {**whole, "num_data": 1}, tensors)
    model = model.to(dtype_of(model, tensors))
    model.load_state_dict(tensors)
    with torch.no_grad():
        model.posterior.rows.copy_(mean_row(checkpoint, model.posterior, config)[None])
    model.config = whole
    return without_rows(model.to(device))


def _read_parts(
    checkpoint: Checkpoint, config: dict[str, Any]
) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint whose tables several processes have in files, and its config, as if in memory."""
    root = Path(str(config["storage"]))
    config = {name: value for name, value in config.items() if name != "storage"}
    num_data, width = shape_of_rows(checkpoint.path, config)
    dtype = checkpoint.tensors["model"]["posterior.relays"].dtype
    settings = Settings.of_rows(checkpoint.metadata.get("settings", {}))
    moments = torch.empty((0, width), dtype=settings.moment_dtype or dtype, device="cpu")
    tables = {
        "rows": torch.empty((0, width), dtype=dtype, device="cpu"),
        "exp_avg": moments,
        "exp_avg_sq": moments,
        "row_step": torch.empty(0, dtype=torch.int32, device="cpu"),
    }
    return in_memory(checkpoint, root, num_data, tables), config
