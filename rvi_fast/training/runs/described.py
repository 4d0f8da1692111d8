"""A model from its description in a file, compared with the tensors there before memory is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models import LatentModel, build
from ...posteriors.base import as_posterior
from ...posteriors.encoder import EncoderPosterior
from ...posteriors.relay import RelayPosterior
from ...posteriors.rowless import RowlessPosterior
from ...posteriors.tables import MappedTables
from .checkpoints import CheckpointError

_REFUSALS = (ValueError, TypeError, KeyError, RuntimeError, OverflowError, AttributeError)


def build_described(
    path: Path, config: dict[str, Any], tensors: Mapping[str, Tensor]
) -> LatentModel:
    """`models.build`, if the description is that of these tensors.

    Args:
        path: of the file, for errors.
        config: `LatentModel.config` from it.
        tensors: the model's from it; without the rows where the config names a directory as storage.

    Raises:
        CheckpointError: the description is none, or of other sizes; nothing has been allocated.
    """
    storage: str | None = config.get("storage")
    mapped = storage is not None and storage != "host"
    try:
        sizes = {name: tensor.numel() for name, tensor in tensors.items()}
        if mapped:
            sizes["posterior.rows"] = (Path(str(storage)) / "rows.bin").stat().st_size
        # no size of a model exceeds the number of its entries; an encoder's N is that of no tensor
        most = sum(sizes.values())
        for name, number in _numbers(config):
            if number > most and not (name == "num_data" and config.get("builder") == "vae"):
                raise ValueError(f"{name} is {number}, the file has {most} entries in all")
        with torch.device("meta"):
            described = build({n: value for n, value in config.items() if n != "storage"})
        for name, parameter in described.named_parameters():
            if name == "posterior.rows" and mapped:
                held = sizes[name] // tensors["posterior.relays"].element_size()
                if held != parameter.numel():
                    raise ValueError(f"{storage} holds {held} numbers, not {list(parameter.shape)}")
            elif name not in tensors or tensors[name].shape != parameter.shape:
                found = list(tensors[name].shape) if name in tensors else "nothing"
                raise ValueError(f"{name}: expected {list(parameter.shape)}, got {found}")
    except OSError as error:
        raise CheckpointError(path, f"has its tables in {storage}: {error}") from error
    except _REFUSALS as error:
        raise CheckpointError(path, f"does not fit its own description: {error}") from error
    # all that is drawn here is read from the file next
    with torch.device("cpu"):
        return build(config, generator=torch.Generator())


def shape_of_rows(path: Path, config: dict[str, Any]) -> tuple[int, int]:
    """N and W of the model that a description in a file is of.

    Raises:
        CheckpointError: the description is none; nothing has been allocated.
    """
    try:
        with torch.device("meta"):
            num_data, width = build(config).posterior.rows.shape
    except _REFUSALS as error:
        raise CheckpointError(path, f"does not fit its own description: {error}") from error
    return num_data, width


def config_of(model: LatentModel) -> dict[str, Any] | None:
    """`LatentModel.config` with the rows that there are now, and where: some can have come or gone."""
    posterior = as_posterior(model.posterior)
    if model.config is None or not isinstance(posterior, RelayPosterior | EncoderPosterior):
        return model.config
    if isinstance(posterior, RowlessPosterior):  # that of the model it was made from
        return model.config
    whole = posterior.owns_rows or posterior.sharded
    rows = posterior.table_size if whole else posterior.num_data
    config = {**model.config, "num_data": rows}
    tables = getattr(posterior, "tables", None)
    if isinstance(tables, MappedTables) and not posterior.sharded:
        place = str(config.get("storage"))
        config["storage"] = (
            place if Path(place).absolute() == tables.directory else str(tables.directory)
        )
    return config


def dtype_of(model: LatentModel, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of a model's tensors in a file.

    Raises:
        KeyError: it lacks one of the model's.
    """
    shared = model.posterior.shared_parameters()[0]
    return tensors[next(n for n, p in model.named_parameters() if p is shared)].dtype


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    match value:
        case dict():
            for key, item in value.items():
                yield from _numbers(item, str(key))
        case list():
            for item in value:
                yield from _numbers(item, name)
        case int() if not isinstance(value, bool):
            yield name, value
