"""Arrays in HDF5 files and zarr stores, and one that ends its process, for the tests of them."""

import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import zarr

from rvi_fast.data import StoredArray

N, D = 50, 4


def numbers(rows=N, dtype=np.float32):
    generator = np.random.default_rng(0)
    z = generator.normal(size=(rows, 1))
    x = (z * [1.0, -2.0, 0.5, 3.0] + 0.1 * generator.normal(size=(rows, D))).astype(dtype)
    x[generator.random(x.shape) < 0.2] = np.nan
    return x


def hdf5(path, array, name="x", **options):
    with h5py.File(path / "table.h5", "w") as file:
        file.create_dataset(name, data=array, **options)
    return path / "table.h5"


def zarr_of(version):
    def write(path, array, name=None, chunks=(16, 3)):
        place = path / f"table{version}.zarr"
        options = {"shape": array.shape, "chunks": chunks, "dtype": array.dtype}
        if name is None:
            held = zarr.create_array(str(place), zarr_format=version, **options)
        else:
            group = zarr.open_group(str(place), mode="a", zarr_format=version)
            held = group.create_array(name, **options)
        held[...] = array
        return place

    return write


KINDS = {"hdf5": hdf5, "zarr 2": zarr_of(2), "zarr 3": zarr_of(3)}


class Troubled(StoredArray):
    """An array whose reader notes what it reads, in `notes`, and meets with trouble at one piece.

    Args:
        at: first row of that piece.
        trouble: a method below.
    """

    def __init__(self, place, notes, at=-1, trouble=None):
        super().__init__(place)
        self.notes, self.at, self.trouble = Path(notes), at, trouble

    def read(self, rows):
        self.notes.mkdir(exist_ok=True)
        (self.notes / f"{rows.start}-{os.getpid()}-{time.time_ns()}").touch()
        if rows.start == self.at and not (self.notes / "over").exists():
            (self.notes / "over").touch()
            getattr(self, self.trouble)(rows)
        return super().read(rows)

    def been_read(self):
        """First rows of pieces that were read, in order of the rows, each as often as it was."""
        return sorted(int(path.name.split("-")[0]) for path in self.notes.glob("*-*"))

    def readers(self):
        return {int(path.name.split("-")[1]) for path in self.notes.glob("*-*")}

    def killed(self, rows):
        """Dies with half of the rows written."""
        (own,) = self.path.parent.glob(".*.filling.npy")
        array = np.load(own, mmap_mode="r+")
        array[rows.start : rows.start + len(rows) // 2] = -7
        array.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def parent_killed(self, rows):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(300)

    def interrupted(self, rows):
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(300)

    def changed(self, rows):
        os.utime(self.path, (1, 1))

    def out_of_disk(self, rows):
        raise OSError(28, "No space left on device")
