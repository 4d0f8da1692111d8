"""What is done to a table before and after a model: rows drawn, entries hidden, units, scores.

One recipe for the command line, the figures, the demo and the estimators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from .metrics import elastic
from .missingness import mcar, missing_boxes
from .pixels import is_pixels, pixels
from .scaling import Standardizer
from .transforms import ColumnTransform

# share of the rows of a set without a test part that become one
_TEST_SHARE = 0.25
_ROWS = 1  # use of the seed


def rows_of(
    count: int, wanted: int | None, generator: np.random.Generator, name: str
) -> np.ndarray:
    """Numbers of `wanted` rows of `count`, drawn at random, in rising order; all of them for None.

    Args:
        name: what an error calls `wanted`.

    Raises:
        ValueError: more rows than there are, or none.
    """
    order = generator.permutation(count)
    if wanted is not None and not 1 <= wanted <= count:
        raise ValueError(f"{name}: expected 1 to {count} rows, got {wanted}")
    return np.sort(order[:wanted])


def rows_of_figure(
    num_train: int, num_test: int | None, split: str, wanted: int | None, seed: int, name: str
) -> tuple[str, np.ndarray]:
    """Rows of a run of a figure: of which part of the data set, and their numbers there.

    A quarter of the rows of a set without a test part become one, the same for every seed.

    Args:
        num_train, num_test: rows of the parts of the set; None where there is no test part.
        split: "train" or "test".
        wanted, name: as in `rows_of`.
        seed: that of the run.

    Raises:
        ValueError: as `rows_of`; a set of one row without a test part.
    """
    pools = {"train": ("train", np.arange(num_train)), "test": ("test", np.arange(num_test or 0))}
    if num_test is None:
        order = np.random.default_rng(0).permutation(num_train)
        held_out = max(1, round(_TEST_SHARE * num_train))
        if held_out == num_train:
            raise ValueError("data: expected at least two rows, to hold one out, got one")
        pools = {
            "train": ("train", np.sort(order[held_out:])),
            "test": ("train", np.sort(order[:held_out])),
        }
    generator = np.random.default_rng((seed, _ROWS))
    if split == "test":  # drawn after those of training
        generator.permutation(len(pools["train"][1]))
    part, pool = pools[split]
    return part, pool[rows_of(len(pool), wanted, generator, name)]


def shown(
    shape: tuple[int, int],
    missing: float,
    boxes: int | None,
    image_shape: tuple[int, int] | None,
    seed: int,
    name: str = "boxes",
) -> np.ndarray:
    """Which entries a model is shown, bool [N, D]: all but those that are hidden at random.

    Args:
        shape: N and D.
        missing: rate of entries that are hidden.
        boxes: boxes of 4x4 pixels that are hidden in each row; none for None and 0.
        image_shape: height and width of the images that rows are; None where they are none.
        seed: of both.
        name: what an error calls `boxes`.

    Raises:
        ValueError: boxes of rows that are no images.
    """
    mask = mcar(shape, missing, seed=seed)
    if boxes:
        if image_shape is None:
            raise ValueError(f"{name}: expected images, the rows of the data are none")
        mask &= missing_boxes(shape[0], image_shape, boxes, seed=seed)
    return mask


@dataclass(frozen=True)
class Units:
    """Between the units of a table and those of a model: columns are bent, then shifted and scaled.

    Args:
        scale: centre and spread of each bent column; None for pixels, which are bytes here and
            fractions there.
        transform: what bends columns; None where all stay as they are.
    """

    scale: Standardizer | None
    transform: ColumnTransform | None = None

    @classmethod
    def fit(
        cls,
        x: np.ndarray,
        mask: np.ndarray,
        *,
        kind: str = "none",
        robust: bool = True,
        columns: np.ndarray | None = None,
    ) -> Self:
        """The units of the observed entries of a table [N, D].

        Args:
            x: numbers or pixels.
            mask: bool [N, D], True = observed.
            kind: what bends columns, of `ColumnTransform`; pixels stay as they are.
            robust: as in `Standardizer.fit`.
            columns: bool [D]: those that have units, all if not given; others keep their numbers.
        """
        if is_pixels(x):
            return cls(None)
        transform = ColumnTransform.fit(x, mask, kind=kind, columns=columns)
        units = cls(None, None if set(transform.kinds) == {"none"} else transform)
        scale = Standardizer.fit(units.bent(x), mask, robust=robust, columns=columns)
        return cls(scale, units.transform)

    def bent(self, x: np.ndarray) -> np.ndarray:
        """[N, D] as a table holds it -> the same with its columns bent."""
        return x if self.transform is None else self.transform.transform(x)

    def to_model(self, x: np.ndarray) -> np.ndarray:
        """[N, D] as a table holds it -> float32 as a model takes it; pixels stay pixels."""
        return x if self.scale is None else self.scale.transform(self.bent(x))

    def to_data(self, values: np.ndarray) -> np.ndarray:
        """[..., D] as a model gives it -> float64 as a table holds it; pixels are whole numbers."""
        if self.scale is None:
            return pixels(values)
        bent = values.astype(np.float64) * self.scale.std + self.scale.mean
        if self.transform is None:
            return bent
        return self.transform.inverse(bent.reshape(-1, bent.shape[-1])).reshape(bent.shape)


def scores(
    x: np.ndarray, reconstruction: np.ndarray, mask: np.ndarray, known: np.ndarray
) -> dict[str, tuple[float, int]]:
    """Elastic error and count of "observed" entries, which the model was shown, and of "missing" ones.

    Args:
        x: [N, D] in the model's units, or pixels.
        reconstruction: likewise.
        mask: bool [N, D], True = shown.
        known: bool [N, D], True = there is a true value; without those that are shown they are missing.

    Returns:
        The error is NaN where the count is 0.
    """
    parts = {"observed": mask, "missing": known & ~mask}
    return {
        name: (elastic(x, reconstruction, part) if part.any() else float("nan"), int(part.sum()))
        for name, part in parts.items()
    }
