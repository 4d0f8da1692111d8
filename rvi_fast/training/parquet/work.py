"""What is done with one file: rows in pieces through a model, and a file of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...data.files import require
from ...data.parquet import ParquetDirectory
from ...data.parquet.rewriting import rewrite
from ..pieces import Job
from ..workers import Say


def write_file(job: Job[ParquetDirectory], name: str, say: Say) -> int:
    """Writes the output of one file, and tells of rows that are done; how many cells were filled in."""
    counted = 0

    def change(first: int, table: Any) -> Any:
        nonlocal counted
        if job.kind == "infer":
            table = _with_latents(job, name, first, table)
        elif len(table):
            table, filled = _completed(job, name, first, table)
            counted += filled
        say(len(table))
        return table

    path = job.out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rewrite(job.source, name, path, change)
    return counted


def _where(job: Job[ParquetDirectory], name: str, first: int) -> str:
    return f"{job.source.path / name}, from row {first} on"


def _completed(job: Job[ParquetDirectory], name: str, first: int, table: Any) -> tuple[Any, int]:
    """The table with its gaps filled in, and how many there were."""
    x = job.source.numbers(name, first, table)
    found = job.completed(x, _where(job, name, first))
    if found is None:
        return table, 0
    values, gaps = found
    for place, feature in enumerate(job.source.features):
        column = table.schema.get_field_index(feature)
        changed = job.source.filled(feature, table.column(column), values[:, place], gaps[:, place])
        table = table.set_column(column, table.schema.field(column), changed)
    return table, int(gaps.sum())


def _with_latents(job: Job[ParquetDirectory], name: str, first: int, table: Any) -> Any:
    """The columns that are no features, and posterior means and standard deviations beside them."""
    library = require("pyarrow", "tabular")
    latent_dim = job.model.posterior.latent_dim
    latents = np.empty((0, 2 * latent_dim), np.float32)
    if len(table):
        x = job.source.numbers(name, first, table)
        latents = job.latents(x, _where(job, name, first))
    table = table.drop_columns(list(job.source.features))
    for place in range(2 * latent_dim):
        part, number = divmod(place, latent_dim)
        label = f"{('mean', 'std')[part]}_{number}"
        table = table.append_column(label, library.array(np.ascontiguousarray(latents[:, place])))
    return table
