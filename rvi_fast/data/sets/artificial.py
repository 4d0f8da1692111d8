"""The artificial set, which is made on the spot."""

from __future__ import annotations

from ..artificial import artificial
from .registry import DataDir, Dataset, dataset


@dataset("artificial")
def load(name: str, data_dir: DataDir) -> Dataset:
    """10,000 rows to train on and 2,000 to test, see `rvi_fast.data.artificial`."""
    return Dataset(name, artificial(10_000), artificial(2_000, first=10_000))
