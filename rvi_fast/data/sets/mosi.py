"""CMU-MOSI: text, audio and video features of utterances."""

from __future__ import annotations

import os

import numpy as np

from ..files import DataError, blaming
from ..formats.npy import read_npz
from ..formats.table import check_finite, check_table, single_precision
from .registry import DataDir, Dataset, candidates, dataset, not_found

_PARTS = ("text", "audio", "video")


@dataset("mosi")
def load(name: str, data_dir: DataDir) -> Dataset:
    """Features of utterances, their sentiment as labels; never downloaded."""
    tried = candidates("mosi", ("mosi_utterance.npz",), data_dir)
    path = next(filter(os.path.isfile, tried), None)
    if path is None:
        raise DataError(not_found("mosi", "mosi_utterance.npz (it cannot be downloaded)", tried))
    with blaming(path):
        arrays = read_npz(path, (*_PARTS, "label", "split"))
        parts = [arrays[part] for part in _PARTS]
        features = tuple(
            f"{part}_{column}" for part in _PARTS for column in range(arrays[part].shape[1])
        )
        table = np.concatenate(parts, axis=1)
        check_table(table)
        check_finite(table, features)
        table = single_precision(table)
        label, split = arrays["label"].astype(np.int64), arrays["split"]
        if not label.shape == split.shape == (len(table),):
            raise ValueError(f"label and split: expected one entry for each of {len(table)} rows")
        train, test = split == 0, split == 2
        if not train.any() or not test.any():
            raise ValueError("split: expected rows marked 0 (train) and 2 (test)")
    return Dataset("mosi", table[train], table[test], label[train], label[test], features=features)
