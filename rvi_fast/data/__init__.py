"""Data: files to tables and back, laws of missingness, scores, and baselines to compare with.

A table is [N, D]: uint8 for pixels, else float32 with NaN for missing entries. Masks are bool,
True = observed.
"""

from .arrays import StoredArray
from .artificial import artificial
from .files import DataError
from .formats.npy import ArrayTable
from .formats.table import Table, fill, one_array
from .imputers import column_mean, conditional_gaussian, knn
from .metrics import elastic
from .missingness import mcar, missing_boxes
from .parquet import ParquetDirectory
from .readers import (
    SUFFIXES,
    check_target,
    load_data,
    read_table,
    save_table,
    write_table,
)
from .scaling import FarEntriesWarning, Standardizer
from .sets import DATASETS, Dataset
from .transforms import ColumnTransform

__all__ = [
    "DATASETS",
    "SUFFIXES",
    "ArrayTable",
    "ColumnTransform",
    "DataError",
    "Dataset",
    "FarEntriesWarning",
    "ParquetDirectory",
    "Standardizer",
    "StoredArray",
    "Table",
    "artificial",
    "check_target",
    "column_mean",
    "conditional_gaussian",
    "elastic",
    "fill",
    "knn",
    "load_data",
    "mcar",
    "missing_boxes",
    "one_array",
    "read_table",
    "save_table",
    "write_table",
]
