"""What the latent space looks like: straight lines between images, and a map of the test rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import data
from ..data.pixels import fractions

_PAIRS, _STEPS = 64, 9  # lines, and points of each, both ends among them
_SHOWN = 8  # lines whose images are kept
_MAPPED = 2000  # rows of the map: distances between all of them are computed


@torch.no_grad()
def explore(
    decoder: Callable[[Tensor], Tensor],
    means: Tensor,
    x: np.ndarray,
    test_means: Tensor,
    test_labels: np.ndarray,
    directory: Path,
) -> dict[str, list[float]]:
    """Scores, and arrays for pictures in `directory`.

    Args:
        decoder: from latents [..., T] to the rows [..., D] that they stand for.
        means: posterior means of the training rows [N, T].
        x: training rows [N, D], standardised or uint8.
        test_means: [n, T]; the first 2,000 rows are mapped.
        test_labels: integers [n].
        directory: gets interpolation.npy [lines, points + 2, D], decoded between the originals, and
            map.npy [n, 3], the first two principal components of the test means and the label.

    Returns:
        "off_data": by point of a line, the root mean square difference per feature between its
        decoded image and the nearest training row, mean over 64 lines (fewer if there are fewer
        rows); "off_data_pixels": the same for lines drawn between the images themselves;
        "agreement": by the number of leading principal components, the share of test rows whose
        nearest neighbour has the same label.
    """
    real = np.nan_to_num(fractions(x, np.float32))
    pairs = min(_PAIRS, len(real) // 2)
    if not pairs or len(test_means) < 2:
        raise ValueError(f"rows: expected at least 2 of each part, got {len(x)}, {len(test_means)}")
    # neighbours in the table are strangers: rows were drawn at random
    first, second = means[: 2 * pairs : 2], means[1 : 2 * pairs : 2]
    decoded = decoder(_between(first, second)).numpy()
    ends = torch.from_numpy(real[: 2 * pairs])
    blended = _between(ends[::2], ends[1::2]).numpy()
    originals = ends.numpy().reshape(pairs, 2, -1)
    kept = np.concatenate((originals[:, :1], decoded, originals[:, 1:]), 1)[:_SHOWN]
    data.save_table(directory / "interpolation.npy", kept)

    components = _principal(test_means[:_MAPPED].detach().double().numpy())
    labels = test_labels[:_MAPPED]
    plane = np.zeros((len(labels), 3), np.float32)
    plane[:, : min(2, components.shape[1])] = components[:, :2]
    plane[:, 2] = labels
    data.save_table(directory / "map.npy", plane)
    return {
        "off_data": _off_data(decoded, real),
        "off_data_pixels": _off_data(blended, real),
        "agreement": _agreement(components, labels),
    }


def _between(first: Tensor, second: Tensor) -> Tensor:
    """[pairs, points, ...] along straight lines, both ends among them."""
    weight = torch.linspace(0, 1, _STEPS, device=first.device)[:, None]
    return first[:, None] * (1 - weight) + second[:, None] * weight


def _off_data(points: np.ndarray, real: np.ndarray) -> list[float]:
    # in float64: differences of large squares
    table, steps = torch.from_numpy(real).double(), torch.from_numpy(points).double().unbind(1)
    nearest = [torch.cdist(step, table).amin(dim=1) for step in steps]
    return [float(step.mean()) / real.shape[1] ** 0.5 for step in nearest]


def _principal(rows: np.ndarray) -> np.ndarray:
    """Scores on the principal components, by variance; the largest loading is positive."""
    centred = rows - rows.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(1)]
    return centred @ (axes * np.where(largest < 0, -1, 1)[:, None]).T


def _agreement(components: np.ndarray, labels: np.ndarray) -> list[float]:
    distances = np.zeros((len(labels), len(labels)))
    np.fill_diagonal(distances, np.inf)  # nobody is its own neighbour
    shares = []
    for component in components.T:
        distances += (component[:, None] - component) ** 2
        shares.append(float((labels[distances.argmin(1)] == labels).mean()))
    return shares
