"""One file with all of a model: what others need, and no run directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .._version import __version__
from ..files import replacing
from ..models import LatentModel, build
from .checkpoints import CheckpointError, reading


def export(model: LatentModel, path: str | os.PathLike[str]) -> None:
    """Writes a model to one safetensors file, which `rvi_fast.load` reads; all of it or nothing.

    Args:
        model: its `state_dict` is what is written, with what `load` needs to build it again where a
            builder of `rvi_fast.models` made it.
        path: the file, replaced if it is there.

    Raises:
        ValueError: the model holds a shard of its rows: load the run directory, which has them all.
    """
    posterior = model.posterior
    if model.num_data < getattr(posterior, "table_size", model.num_data):
        raise ValueError(
            f"model: expected all {posterior.table_size} rows, got a shard of {model.num_data}; "
            "export rvi_fast.load(run_dir)"
        )
    target = Path(path)
    config = {name: value for name, value in (model.config or {}).items() if name != "storage"}
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    metadata = {"rvi_fast": __version__, "config": json.dumps(config or None)}
    with replacing(target) as file:
        save_file(tensors, file.name, metadata)


def load_export(path: Path, device: torch.device | str) -> LatentModel:
    """The model of a file that `export` has written."""
    with reading(path):
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "null"))
        tensors = load_file(path, device=str(device))
    if not isinstance(config, dict):
        raise ValueError(
            f"path: expected a model made by a builder of rvi_fast.models, {path} holds another; use "
            "model.load_state_dict(safetensors.torch.load_file(path))"
        )
    model = build(config)
    name = next(name for name, _ in model.posterior.named_parameters() if name != "rows")
    try:
        dtype = tensors[f"posterior.{name}"].dtype
        model.to(device, dtype).load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(path, f"does not fit its own description: {error}") from error
    return model.eval()
