"""Data: files to tables and back, laws of missingness, scores, and baselines to compare with.

A table is [N, D]: uint8 for pixels, else float32 with NaN for missing entries. Masks are bool,
True = observed.
"""

from .artificial import artificial
from .imputers import column_mean, conditional_gaussian, knn
from .metrics import elastic
from .missingness import mcar, missing_boxes
from .readers import DATASETS, DataError, Dataset, load_data, save_table
from .scaling import FarEntriesWarning, Standardizer
from .transforms import ColumnTransform

__all__ = [
    "DATASETS",
    "ColumnTransform",
    "DataError",
    "Dataset",
    "FarEntriesWarning",
    "Standardizer",
    "artificial",
    "column_mean",
    "conditional_gaussian",
    "elastic",
    "knn",
    "load_data",
    "mcar",
    "missing_boxes",
    "save_table",
]
