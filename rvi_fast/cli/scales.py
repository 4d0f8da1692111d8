"""The scale and the transform of a table of which some rows at a time are in memory."""

from __future__ import annotations

import numpy as np
import torch

from .. import data
from ..data.scaling import Moments
from ..data.tables import row_chunks
from ..scaler import Scaler


def scaler_of(
    x: np.ndarray, kind: str, columns: np.ndarray, names: tuple[str, ...]
) -> Scaler | None:
    """What takes a table to the units of a model: centres and spreads are those of all rows.

    Columns are bent by what up to 100,000 rows say, and those that hold the smallest and the largest
    entries; a table in memory is bent by what all its rows say.

    Args:
        x: [N, D] floating point, NaN = missing, read from end to end twice at most.
        kind: of `data.ColumnTransform`.
        columns: bool [D]: those that have a scale.
        names: of the columns, for errors.

    Returns:
        None where no column has a scale.

    Raises:
        ValueError: kind is "log", and a column holds a number that is not positive.
    """
    if not columns.any():
        return None
    moments, transform = _moments(x, None), None
    if kind == "log" and (moments.low[columns] <= 0).any():
        place = int(np.flatnonzero(columns & (moments.low <= 0))[0])
        raise ValueError(
            f"--transform: expected positive numbers for log, got {moments.low[place]} in column "
            f"{names[place]!r}; auto takes log only where it fits"
        )
    if kind != "none":
        rows = moments.sample
        if len(rows) < len(x):
            ends = np.unique([moments.low_row, moments.high_row])
            rows = np.concatenate([rows, x[ends].astype(np.float64)])
        transform = data.ColumnTransform.fit(rows, kind=kind, columns=columns)
        if set(transform.kinds) == {"none"}:
            transform = None
        else:
            moments = _moments(x, transform)
    scale = moments.standardizer(columns=columns)
    moments.warn_of_far_entries()
    return Scaler(scale, transform)


def _moments(x: np.ndarray, transform: data.ColumnTransform | None) -> Moments:
    moments = Moments(*x.shape)
    for rows in row_chunks((len(x), x.shape[1])):
        values = x[rows].astype(np.float64)
        values = values if transform is None else transform.transform(values)
        moments.add(torch.from_numpy(values), rows.start)
    return moments
