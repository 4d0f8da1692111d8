"""Parquet, by way of pyarrow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import column_name, require


def read_parquet(path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    pandas = require("pandas", "tabular")
    require("pyarrow", "tabular")
    frame = pandas.read_parquet(path, engine="pyarrow")
    features = tuple(map(str, frame.columns))
    table = np.empty(frame.shape, np.float32)
    for column, (_, series) in enumerate(frame.items()):
        if series.dtype == object:  # how booleans with gaps arrive
            series = series.convert_dtypes()
        present = series.notna().to_numpy()
        if present.any() and not pandas.api.types.is_numeric_dtype(series.dtype):
            row = int(present.argmax())
            raise ValueError(
                f"row {row}, column {column_name(column, features)}:"
                f" {str(series.iloc[row])[:40]!r} is not a number"
            )
        table[:, column] = np.nan
        with np.errstate(over="ignore"):
            table[present, column] = series[present].to_numpy(np.float64)
    return table, features
