"""Data: files to tables and back, laws of missingness, scores, and baselines to compare with.

A table is [N, D]: uint8 for pixels, else float32 with NaN for missing entries. Masks are bool,
True = observed.
"""

from .artificial import artificial
from .files import DataError
from .imputers import column_mean, conditional_gaussian, knn
from .metrics import Standardizer, elastic
from .missingness import mcar, missing_boxes
from .readers import load_data, read_table, save_table, write_table
from .sets import DATASETS, Dataset

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "Standardizer",
    "artificial",
    "column_mean",
    "conditional_gaussian",
    "elastic",
    "knn",
    "load_data",
    "mcar",
    "missing_boxes",
    "read_table",
    "save_table",
    "write_table",
]
