"""The table of a command as a model sees it, and its scores."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .. import data
from ..training import distributed


class Table(NamedTuple):
    """A table as the model sees it, and the way back."""

    dataset: data.Dataset
    raw: np.ndarray  # [N, D] as read: uint8, or float32 with NaN for missing
    mask: np.ndarray  # bool [N, D], true = shown to the model
    x: np.ndarray  # raw, or standardised on the training run's observed entries

    @property
    def known(self) -> np.ndarray:
        """Entries whose true value the file holds."""
        return ~np.isnan(self.raw) if self.raw.dtype != np.uint8 else np.ones_like(self.mask)

    def part(self, rows: range) -> Table:
        """Some of its rows."""
        own = slice(rows.start, rows.stop)
        return Table(self.dataset, self.raw[own], self.mask[own], self.x[own])


def load_table(
    name: str,
    data_dir: Path | None,
    split: str | None,
    subset: int | None,
    missing: float,
    boxes: int | None,
    seed: int,
    standardizer: data.Standardizer | None = None,
) -> tuple[Table, data.Standardizer | None]:
    dataset = data.load_data(name, data_dir=data_dir)
    if split is None:
        split = "train" if dataset.test is None else "test"
    raw = dataset.train if split == "train" else dataset.test
    if raw is None:
        raise ValueError(f"split: {name} has no test part")
    if subset is not None:
        if not 1 <= subset <= len(raw):
            raise ValueError(f"subset: expected 1 to {len(raw)} rows, got {subset}")
        raw = raw[np.sort(np.random.default_rng(seed).permutation(len(raw))[:subset])]
    mask = data.mcar(raw.shape, missing, seed=seed)
    if boxes is not None:
        if dataset.image_shape is None:
            raise ValueError(f"missing-boxes: expected images, {name} holds none")
        mask &= data.missing_boxes(len(raw), dataset.image_shape, boxes, seed=seed)
    if raw.dtype == np.uint8:
        return Table(dataset, raw, mask, raw), None
    mask &= ~np.isnan(raw)
    standardizer = standardizer or data.Standardizer.fit(raw, mask)
    if len(standardizer.mean) != raw.shape[1]:
        raise ValueError(
            f"data: expected {len(standardizer.mean)} features as in training, got {raw.shape[1]}"
        )
    return Table(dataset, raw, mask, standardizer.transform(raw)), standardizer


def print_scores(table: Table, reconstruction: np.ndarray) -> None:
    """Elastic errors in the model's units: pixels in [0, 1], other features standardised."""
    rows = [("observed entries", table.mask), ("hidden entries", table.known & ~table.mask)]
    say("\nelastic error (mean of |error| + error^2, from the posterior mean)")
    for name, scored in rows:
        count = int(scored.sum())
        error = data.elastic(table.x, reconstruction, scored) * count if count else 0.0
        # of the rows of all processes, where there are several
        error, count = distributed.total(torch.tensor([error, count], dtype=torch.float64)).tolist()
        if count:
            say(f"  {name:<18} {error / count:.4f}")


def say(text: str) -> None:
    """Prints, in the first process alone where there are several."""
    distributed.first(lambda: print(text, flush=True))
