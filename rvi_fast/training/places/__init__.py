"""Where the rows of a posterior lie while an epoch runs: the one place that decides it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ... import _checks
from ...models import LatentModel
from ...posteriors.base import as_posterior
from ...posteriors.tables import MappedTables
from ..settings import Settings
from .base import Place
from .in_blocks import InBlocks
from .in_memory import InMemory
from .order import default_block_rows, row_bytes
from .staged import Staged


def settled(model: LatentModel, settings: Settings) -> Settings:
    """Settings with a value for each None that the tables of the posterior decide.

    Raises:
        ValueError: they ask for what the posterior has not.
    """
    posterior = model.posterior
    if not as_posterior(posterior).owns_rows:
        for name in ("block_rows", "moment_dtype"):
            if getattr(settings, name) is not None:
                raise ValueError(f"{name}: expected None for an encoder, which has no rows")
        return settings
    rows, block_rows = posterior.rows, settings.block_rows
    moments = _checks.check_moment_dtype(settings.moment_dtype, rows.dtype)
    if block_rows is None and (directory_of(model) is not None or posterior.staged):
        block_rows = default_block_rows(row_bytes(rows.shape[1], rows.dtype, moments))
    return replace(settings, block_rows=block_rows, moment_dtype=moments)


def directory_of(model: LatentModel) -> Path | None:
    """Where the tables of a model's posterior lie, if they lie in files."""
    if not as_posterior(model.posterior).owns_rows:
        return None
    tables = model.posterior.tables
    return tables.directory if isinstance(tables, MappedTables) else None


def place_of(model: LatentModel, settings: Settings) -> Place:
    """Where the rows of a model lie while it is trained, for settings that `settled` has returned."""
    if not as_posterior(model.posterior).owns_rows:
        return Place(model)
    if settings.block_rows is None:
        return InMemory(model, settings)
    return (Staged if model.posterior.staged else InBlocks)(model, settings)
