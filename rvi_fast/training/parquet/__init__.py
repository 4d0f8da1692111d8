"""Directories of Parquet files through a trained model, file by file, in several processes."""

from .completing import Completed, impute_parquet, infer_parquet

__all__ = ["Completed", "impute_parquet", "infer_parquet"]
