"""One file with all of a model: what others need, and no run directory."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import safe_open

from ..._version import __version__
from ...files import replacing
from ...models import LatentModel
from ...posteriors.base import as_posterior
from ...posteriors.relay import RelayPosterior
from ...posteriors.rowless import RowlessPosterior
from .checkpoints import CheckpointError, CheckpointWarning, reading
from .described import build_described, config_of, dtype_of
from .mean_row import mean_of_rows
from .tensors import header_of, load_tensors, write_blocks

# 8 bytes of a safetensors file say how long the header is; then it opens with its hash, which is that
# of the file with zeros in the place of these 64 digits
_SEAL = b'{"__metadata__": {"sha256": "'
_AT = 8 + len(_SEAL)
_ZEROS = b"0" * 64
_BLOCK = 1 << 20
# what 0.1.0 wrote, which knew no hash
_UNSEALED = {"rvi_fast", "config"}
_ROWS, _START = "posterior.rows", "posterior.start"


def without_rows(model: LatentModel) -> LatentModel:
    """A view of a model without the rows of its training data, which serves new rows.

    All else is the model's, which is not changed; one whose posterior owns no rows is given back.
    """
    if not isinstance(model.posterior, RelayPosterior):
        return model
    if isinstance(model.posterior, RowlessPosterior):
        return model
    other = copy.copy(model)
    own = RowlessPosterior.of(model.posterior)
    other.__dict__["_modules"] = {**model._modules, "posterior": own}
    return other


def export(model: LatentModel, path: str | os.PathLike[str], *, rows: bool = True) -> None:
    """Writes a model to one safetensors file, which `rvi_fast.load` reads; all of it or nothing.

    The file carries a SHA-256 of itself, which `load` compares.

    Args:
        model: its `state_dict` is what is written, with what `load` needs to build it again where a
            builder of `rvi_fast.models` made it, and the fingerprint of its training data.
        path: the file, replaced if it is there.
        rows: false leaves out the rows of the training data, and with them nearly all of the file:
            what is left, relays, decoder, likelihood, scale and mean row, serves new rows as the whole
            model does, bit for bit, see `posteriors.RowlessPosterior`. A model with an encoder has
            none to leave out.

    Raises:
        ValueError: the model holds a shard of its rows: load the run directory, which has them all.
        CheckpointError: the file cannot be written; what was there before is untouched.
    """
    posterior = as_posterior(model.posterior)
    if posterior.owns_rows and posterior.sharded and model.num_data < posterior.table_size:
        raise ValueError(
            f"model: expected all {posterior.table_size} rows, got a shard of {model.num_data}; "
            "export rvi_fast.load(run_dir)"
        )
    if not rows:
        model = without_rows(model)
    config = {name: value for name, value in (config_of(model) or {}).items() if name != "storage"}
    tensors = model.state_dict()
    rowless = isinstance(model.posterior, RowlessPosterior)
    if rowless:  # a table of one row, the mean
        tensors[_ROWS] = tensors.pop(_START)[None]
    metadata = {
        "sha256": _ZEROS.decode(),
        "format": "pt",
        "rvi_fast": __version__,
        "config": json.dumps(config or None),
        "trained_on": json.dumps(model.trained_on),
    }
    if rowless:
        metadata["rows"] = "mean"
    if model.columns is not None:
        metadata["columns"] = json.dumps(model.columns)
    header = {"__metadata__": metadata, **header_of("model", tensors)}
    try:
        with replacing(path) as file:
            sha256 = write_blocks(file, header, tensors)
            file.seek(_AT)
            file.write(sha256.encode())
    except OSError as error:
        raise CheckpointError(path, f"cannot be written: {error}") from error


def load_export(path: Path, device: torch.device | str, *, rows: bool = True) -> LatentModel:
    """The model of a file that `export` has written; without the rows if not `rows`.

    Raises:
        CheckpointError: a byte of it is another one, or it is not such a file.
    """
    with reading(path):
        sealed = _verify(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if not sealed and not metadata.keys() <= _UNSEALED:
            raise CheckpointError(path, "is damaged: it has lost its SHA-256")
        config = json.loads(metadata.get("config", "null"))
        trained_on = json.loads(metadata.get("trained_on", "null"))
        columns = json.loads(metadata.get("columns", "null"))
        tensors = load_tensors(path, device)
    if not isinstance(config, dict):
        raise ValueError(
            f"path: expected a model made by a builder of rvi_fast.models, {path} holds another; use "
            "model.load_state_dict(safetensors.torch.load_file(path))"
        )
    if not sealed:
        message = f"{path}: has no SHA-256, as 0.1.0 wrote it: damage would not be noticed"
        warnings.warn(message, CheckpointWarning, stacklevel=3)
    if not rows and _ROWS in tensors:  # as mapped in the file: no table of them is made
        tensors[_ROWS] = mean_of_rows(tensors[_ROWS])[None]
    one = _ROWS in tensors and (not rows or metadata.get("rows") == "mean")
    model = build_described(path, {**config, "num_data": 1} if one else config, tensors)
    try:
        model.to(device, dtype_of(model, tensors)).load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(path, f"does not fit its own description: {error}") from error
    model.trained_on = trained_on
    model.columns = None if columns is None else tuple(columns)
    if one:
        model.config = config
        model = without_rows(model)
    return model.eval()


def _verify(path: Path) -> bool:
    """Compares a file with the hash that it carries; false if it carries none."""
    with open(path, "rb") as file:
        start = file.read(_AT + len(_ZEROS))
        if start[8:_AT] != _SEAL:
            return False
        digest = hashlib.sha256(start[:_AT] + _ZEROS)
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest().encode() != start[_AT:]:
        raise CheckpointError(path, "is damaged: it does not match its own SHA-256")
    return True
