"""Directories of Parquet files as one table, read in pieces."""

from .directory import ParquetDirectory

__all__ = ["ParquetDirectory"]
