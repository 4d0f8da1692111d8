"""`rvi-fast demo`: handwritten digits with half of the pixels missing, trained and filled in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from .. import data, models
from ..data.pixels import fractions
from ..training import fit, impute
from .pictures import save_imputations, save_loss

MISSING = 0.5
EPOCHS = 300
_SHOWN = 12


def run(run_dir: Path, *, epochs: int = EPOCHS, progress: bool = True) -> dict[str, float]:
    """Trains RVI on scikit-learn's digits, imputes them, and writes pictures to `run_dir`.

    A demo that ran in `run_dir` before is overwritten.

    Returns:
        Imputer -> elastic error over the missing entries.
    """
    digits = data.load_data("digits")
    assert digits.image_shape is not None
    mask = data.mcar(digits.train.shape, MISSING, seed=0)
    truth = fractions(digits.train, np.float32)
    seen = np.where(mask, truth, np.nan)

    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    model = models.rvi(*digits.train.shape, generator=torch.Generator().manual_seed(0))
    history = fit(model, digits.train, mask=mask, epochs=epochs, run_dir=run_dir, progress=progress)
    filled = impute(model, digits.train, mask=mask).numpy()

    scores = {
        "column mean": data.elastic(truth, data.column_mean(seen), ~mask),
        "KNN (k = 5)": data.elastic(truth, data.knn(seen), ~mask),
        "RVI": data.elastic(truth, filled, ~mask),
    }
    save_loss(run_dir / "loss.png", history)
    save_imputations(
        run_dir / "imputations.png",
        truth[:_SHOWN],
        mask[:_SHOWN],
        filled[:_SHOWN],
        digits.image_shape,
    )
    return scores
