"""scikit-learn's handwritten digits, which need no file."""

from __future__ import annotations

import numpy as np

from ..files import require
from .registry import DataDir, Dataset, dataset


@dataset("digits")
def load(name: str, data_dir: DataDir) -> Dataset:
    """1,797 images of 8x8 pixels, with labels and without a test part."""
    digits = require("sklearn.datasets", "sklearn").load_digits()
    pixels = np.rint(digits.data * (255 / 16)).astype(np.uint8)  # grey levels 0..16
    labels = digits.target.astype(np.int64)
    return Dataset(name, pixels, train_labels=labels, image_shape=(8, 8))
