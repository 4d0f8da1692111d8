"""Arrays in HDF5 files and zarr stores as tables of which some rows at a time are in memory."""

from .stored import StoredArray, stored_place, write_stored

__all__ = ["StoredArray", "stored_place", "write_stored"]
