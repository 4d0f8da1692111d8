"""How large the figures are made: every size in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scale:
    """Sizes and grids of all figures.

    Args:
        images: sets of images; the first one serves figures of one set.
        tables: further sets without images.
        common: fields of every `Experiment`.
        seeds: runs of each configuration.
        lrs, decoders: the grid of Figure 1.
        grid_missing, curve_missing, missing: missing rates of Figures 1, 2, and 3 to 4.
        posterior_lrs: of Figure 6.
        ratios: m/K of Figure 10.
        boxes: missing boxes of Figure 11.
        classifier_epochs: of Figure 5.
    """

    images: tuple[str, ...]
    tables: tuple[str, ...]
    common: dict[str, Any]
    seeds: int
    lrs: tuple[float, ...]
    decoders: tuple[tuple[int, ...], ...]
    grid_missing: tuple[float, ...]
    curve_missing: tuple[float, ...]
    missing: tuple[float, ...]
    posterior_lrs: tuple[float, ...]
    ratios: tuple[float, ...]
    boxes: tuple[int, ...]
    classifier_epochs: int


_TENTHS = tuple(tenth / 10 for tenth in range(10))

# where the paper names no values (lrs, posterior_lrs, seeds), they are ours
SCALES = {
    # digits need no file
    "quick": Scale(
        images=("digits",),
        tables=("artificial",),
        common={
            "rows": 1000,
            "test_rows": 300,
            "epochs": 40,
            "batch_size": 32,
            "infer_steps": 50,
        },
        seeds=2,
        lrs=(1e-3, 1e-2),
        decoders=((64,), (64, 64)),
        grid_missing=(0.0, 0.5),
        curve_missing=(0.0, 0.5, 0.9),
        missing=(0.0, 0.3, 0.6, 0.9),
        posterior_lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        ratios=tuple(tenth / 10 for tenth in (1, 3, 5, 7, 9)),
        boxes=(1, 2),
        classifier_epochs=30,
    ),
    "paper": Scale(
        images=("mnist", "fashion-mnist"),
        tables=("mosi", "artificial"),
        common={"epochs": 250, "batch_size": 256},
        seeds=5,
        lrs=(1e-4, 1e-3, 1e-2),
        decoders=((64,), (64, 64), (64, 64, 64)),
        grid_missing=_TENTHS,
        curve_missing=(0.0, 0.5, 0.9),
        missing=_TENTHS,
        posterior_lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        ratios=_TENTHS[1:],
        boxes=(10, 20),
        classifier_epochs=250,
    ),
}
