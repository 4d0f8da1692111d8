"""Tables as text."""

from __future__ import annotations

import csv
import math
from array import array as packed_array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import column_name


def read_csv(path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    values = packed_array("f")
    features = None
    width = 0
    with path.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        for row in rows:
            if not row:  # a blank line
                continue
            if not width:
                width = len(row)
                if is_header(row):
                    features = tuple(cell.strip() for cell in row)
                    continue
            if len(row) != width:
                raise ValueError(f"line {rows.line_num}: expected {width} cells, got {len(row)}")
            try:
                values.extend(map(_number, row))
            except ValueError:
                column = len(values) % width  # the cells before it are in already
                raise ValueError(
                    f"line {rows.line_num}, column {column_name(column, features)}:"
                    f" {row[column][:40]!r} is not a number"
                ) from None
    if not values:
        raise ValueError("an empty table: no row of numbers")
    return np.array(values, np.float32).reshape(-1, width), features


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        if cell.strip().upper() in ("", "NA"):
            return math.nan
        raise
    if "_" in cell:  # 12_3 is an identifier, though Python reads 123
        raise ValueError(cell)
    return value


def is_header(row: Sequence[str]) -> bool:
    """Some text and no number. Text beside numbers is a row with a fault, to be reported."""
    text = False
    for cell in row:
        try:
            if not math.isnan(_number(cell)):
                return False
        except ValueError:
            text = True
    return text
