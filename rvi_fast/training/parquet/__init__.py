"""Directories of Parquet files through a trained model, file by file, in several processes."""

from .completing import impute_parquet, infer_parquet

__all__ = ["impute_parquet", "infer_parquet"]
