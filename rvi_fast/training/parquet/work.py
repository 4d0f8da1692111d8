"""What is done with one file: rows in pieces through a model, and a file of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...data.files import blaming, require
from ...data.parquet import ParquetDirectory
from ...data.parquet.rewriting import rewrite
from ...models import LatentModel
from ..impute import impute
from ..infer import infer
from ..workers import Say


@dataclass(frozen=True)
class Job:
    """What is done with each file of a directory.

    Args:
        kind: "impute" or "infer".
        model: a trained model.
        source: the directory.
        out: where files go.
        unseen: bool [D], features that the model knows nothing of: they are not shown to it and not
            filled in.
        inference: arguments of `infer`.
        estimate: as in `impute`.
        bounds: smallest and largest number to fill in.
    """

    kind: str
    model: LatentModel
    source: ParquetDirectory
    out: Path
    unseen: np.ndarray
    inference: dict[str, Any] = field(default_factory=dict)
    estimate: Literal["mean", "mode"] | None = None
    bounds: tuple[float, float] = (-np.inf, np.inf)


def write_file(job: Job, name: str, say: Say) -> int:
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


def _read(job: Job, name: str, first: int, table: Any) -> np.ndarray:
    """[n, D] float64 as a model is shown it, NaN for missing."""
    values = job.source.numbers(name, first, table)
    values[:, job.unseen] = np.nan
    return values


def _inferred(job: Job, name: str, first: int, x: np.ndarray) -> Any:
    with blaming(Path(f"{job.source.path / name}, from row {first} on")):
        # a row must not depend on its place
        return infer(job.model, x, shared_noise=True, **job.inference)


def _completed(job: Job, name: str, first: int, table: Any) -> tuple[Any, int]:
    """The table with its gaps filled in, and how many there were."""
    x = _read(job, name, first, table)
    gaps = np.isnan(x) & ~job.unseen
    if not gaps.any():
        return table, 0
    posterior = _inferred(job, name, first, x)
    filled = impute(job.model, x, posterior=posterior, estimate=job.estimate)
    values = filled.to(torch.float64).cpu().numpy().clip(*job.bounds)
    for place, feature in enumerate(job.source.features):
        column = table.schema.get_field_index(feature)
        changed = job.source.filled(feature, table.column(column), values[:, place], gaps[:, place])
        table = table.set_column(column, table.schema.field(column), changed)
    return table, int(gaps.sum())


def _with_latents(job: Job, name: str, first: int, table: Any) -> Any:
    """The columns that are no features, and posterior means and standard deviations beside them."""
    library = require("pyarrow", "tabular")
    latent_dim = job.model.posterior.latent_dim
    latents = np.empty((0, 2 * latent_dim), np.float32)
    if len(table):
        posterior = _inferred(job, name, first, _read(job, name, first, table))
        with torch.no_grad():
            parts = (posterior.mean(), posterior.std())
            latents = torch.cat(parts, dim=1).float().cpu().numpy()
    table = table.drop_columns(list(job.source.features))
    for place in range(2 * latent_dim):
        part, number = divmod(place, latent_dim)
        label = f"{('mean', 'std')[part]}_{number}"
        table = table.append_column(label, library.array(np.ascontiguousarray(latents[:, place])))
    return table
