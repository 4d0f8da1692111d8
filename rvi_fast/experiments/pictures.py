"""Pictures of training runs and imputations; needs matplotlib (extra `plot`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..training import History

# by title and label of the y axis, by curve: x, mean, std and median
Panels = dict[Any, dict[str, list[tuple[float, float, float, float]]]]

_MOST_COLUMNS = 3
_MISSING_COLOUR = (0.86, 0.80, 0.69)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'pictures need matplotlib: pip install "rvi-fast[plot]"', name="matplotlib"
        ) from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_loss(path: Path, history: History) -> None:
    """The loss and the elastic error over observed entries, by epoch."""
    figure = _figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    left.plot(range(1, history.epochs + 1), history["loss"], color="#1f4e79")
    left.set(xlabel="epoch", ylabel="loss (nats per datapoint)", title="Negative ELBO")
    right.plot(history["evaluated"], history["elastic"], color="#b03a2e")
    right.set(xlabel="epoch", ylabel="elastic error", title="Reconstruction, observed entries")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def save_imputations(
    path: Path,
    original: np.ndarray,
    mask: np.ndarray,
    imputed: np.ndarray,
    image_shape: tuple[int, int],
) -> None:
    """Originals, what was observed, and what was filled in; one column an image.

    Args:
        path: where to.
        original: [n, D] in [0, 1].
        mask: bool [n, D], true = observed.
        imputed: [n, D], observed entries unchanged.
        image_shape: height and width, height * width = D.
    """
    count = len(original)
    figure = _figure(0.72 * count + 1.1, 2.7)
    grid = figure.subplots(3, count, squeeze=False)
    grey = np.repeat(original[..., None], 3, -1)
    observed = np.where(mask[..., None], grey, _MISSING_COLOUR)
    filled = np.repeat(np.clip(imputed, 0.0, 1.0)[..., None], 3, -1)
    names = ("original", "observed", "imputed")
    for row, (name, images) in enumerate(zip(names, (grey, observed, filled), strict=True)):
        grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
        for column in range(count):
            axes = grid[row, column]
            axes.imshow(images[column].reshape(*image_shape, 3), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    figure.savefig(path)


def check_matplotlib() -> None:
    """Raises the ImportError of a picture before the work for it is done."""
    _figure(1.0, 1.0)


def save_panels(path: Path, panels: Panels, label: str, title: str, *, log: bool = False) -> None:
    """Curves with their spread: mean (line), mean +- std (band), median (dots).

    Args:
        path: where to.
        panels: by (title, label of the y axis), by curve, points (x, mean, std, median).
        label: of the x axis.
        title: of the whole.
        log: logarithmic x axis.
    """
    columns = min(len(panels), _MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    figure = _figure(4.2 * columns, 3.2 * rows + 0.4)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, ((name, quantity), curves) in zip(grid.flat, panels.items(), strict=False):
        for curve, points in curves.items():
            x, mean, std, median = np.array(sorted(points), np.float64).T
            marker = "o" if len(x) < 30 else None
            (line,) = axes.plot(x, mean, label=curve, marker=marker, markersize=3)
            axes.fill_between(x, mean - std, mean + std, color=line.get_color(), alpha=0.15)
            axes.plot(x, median, ":", color=line.get_color())
        axes.set(xlabel=label, ylabel=quantity, title=name)
        if log:
            axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small")
    figure.savefig(path)


def save_image_rows(
    path: Path, images: np.ndarray, names: Sequence[str], image_shape: tuple[int, int]
) -> None:
    """Rows of grey images [rows, n, D] in [0, 1], each with a name."""
    rows, count, _ = images.shape
    figure = _figure(0.72 * count + 1.6, 0.76 * rows + 0.2)
    grid = figure.subplots(rows, count, squeeze=False)
    for row, name in enumerate(names):
        grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
        for column in range(count):
            axes = grid[row, column]
            axes.imshow(
                images[row, column].reshape(image_shape), cmap="gray", vmin=0, vmax=1,
                interpolation="nearest",
            )  # fmt: skip
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    figure.savefig(path)


def save_map(path: Path, panels: dict[str, np.ndarray]) -> None:
    """Points in the plane coloured by label, one panel each.

    Args:
        path: where to.
        panels: title -> [n, 3]: coordinates and label.
    """
    figure = _figure(4.2 * len(panels) + 0.8, 4.0)
    grid = figure.subplots(1, len(panels), squeeze=False)
    classes = 1 + max(int(points[:, 2].max()) for points in panels.values())
    for axes, (title, points) in zip(grid.flat, panels.items(), strict=True):
        for label in range(classes):
            x, y = points[points[:, 2] == label, :2].T
            axes.plot(x, y, ".", markersize=3, label=str(label), color=f"C{label % 10}")
        axes.set(title=title, xlabel="first principal component", ylabel="second")
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize="small", markerscale=3)
    figure.savefig(path)


def square(features: int) -> tuple[int, int]:
    """Height and width of square images of so many pixels.

    Raises:
        ValueError: no square has that many.
    """
    side = int(np.sqrt(features))
    if side * side != features:
        raise ValueError(f"images: expected square ones, got {features} pixels")
    return side, side
