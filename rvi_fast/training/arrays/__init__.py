"""Arrays in HDF5 files and zarr stores through a trained model, piece by piece, in several processes."""

from .completing import impute_array, infer_array

__all__ = ["impute_array", "infer_array"]
