"""Pictures of training runs and imputations; needs matplotlib (extra `plot`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._figures import (
    PALETTE,
    columns_for,
    draw_images,
    name_ends,
    new_figure,
    style_of,
    tidy,
    with_holes,
)
from ..training import History

# by title and label of the y axis, by curve: x, mean, std and median
Panels = dict[Any, dict[str, list[tuple[float, float, float, float]]]]

_MOST_COLUMNS = 3
# letters of a line beside an axis
_LINE = 30
# panels of a row share an axis where the widest of their ranges is at most so many times the narrowest
_ALIKE = 2.5


def save_loss(path: Path, history: History) -> None:
    """The loss and the elastic error over observed entries, by epoch."""
    history.plot().savefig(path)


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
    figure = new_figure(0.72 * len(original) + 1.1, 2.7)
    rows = {"original": original, "observed": with_holes(original, mask), "imputed": imputed}
    draw_images(figure, rows, image_shape)
    figure.savefig(path)


def check_matplotlib() -> None:
    """Raises the ImportError of a picture before the work for it is done."""
    new_figure(1.0, 1.0)


def save_panels(path: Path, panels: Panels, label: str, title: str, *, log: bool = False) -> None:
    """Curves with their spread: mean (line), mean +- std (band), median (dots) where it is another.

    Quantities that are shown of the same things lie below each other. A curve has the same colour in
    all panels, and its name beside its end in a single panel, else in one legend outside of all.

    Args:
        path: where to, with any ending: .png and .svg are written.
        panels: by (title, label of the y axis), by curve, points (x, mean, std, median).
        label: of the x axis.
        title: of the whole.
        log: logarithmic x axis.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    styles = {name: style_of(number) for number, name in enumerate(names)}
    order, columns = _arranged(panels)
    rows = -(-len(order) // columns)
    named = len(order) == 1 and len(names) > 1
    figure = new_figure(3.9 * columns + (2.2 if named else 0.3), 2.9 * rows + 0.7)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(order) :]:
        axes.remove()
    for number, (axes, key) in enumerate(zip(grid.flat, order, strict=False)):
        _draw_curves(axes, panels[key], styles)
        # said once where a whole column is of the same
        if number < columns or order[number - columns][0] != key[0]:
            axes.set_title(key[0], fontsize="medium")
        axes.set_ylabel(textwrap.fill(key[1], _LINE))
        if log:
            axes.set_xscale("log")
        tidy(axes)
    lines = [grid[row, : len(order) - row * columns] for row in range(rows)]
    for line, above in zip(lines[::-1], [0, *map(len, lines[:0:-1])], strict=True):
        for axes in line[above:]:
            axes.set_xlabel(label)
    for line in lines:
        _share(line)
    if named:
        curves = panels[order[0]]
        figure.canvas.draw()
        ends = {name: (max(points)[1], styles[name]["color"]) for name, points in curves.items()}
        name_ends(grid[0, 0], ends)
    elif len(names) > 1:
        handles = [grid[0, 0].plot([], [], label=name, **styles[name])[0] for name in names]
        across = min(len(names), max(2, 2 * columns))
        figure.legend(
            handles=handles, loc="outside lower center", ncols=across, frameon=False,
            handlelength=3,
        )  # fmt: skip
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """Writes a figure as .png and .svg; neither says when or by what, the same numbers are one file."""
    from matplotlib import rc_context

    figure.savefig(path.with_suffix(".png"), metadata={"Software": None})
    with rc_context({"svg.hashsalt": "rvi_fast"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(path.with_suffix(".svg"), metadata=nothing)


def _arranged(panels: Panels) -> tuple[list[Any], int]:
    """Keys of panels in the order in which they fill a grid, and its columns."""
    titles = list(dict.fromkeys(title for title, _ in panels))
    quantities = list(dict.fromkeys(quantity for _, quantity in panels))
    whole = [(title, quantity) for quantity in quantities for title in titles]
    if len(quantities) > 1 and len(titles) <= _MOST_COLUMNS and set(whole) == set(panels):
        return whole, len(titles) if len(titles) > 1 else columns_for(len(whole), _MOST_COLUMNS)
    return list(panels), columns_for(len(panels), _MOST_COLUMNS)


def _draw_curves(
    axes: Any,
    curves: dict[str, list[tuple[float, float, float, float]]],
    styles: dict[str, dict[str, Any]],
) -> None:
    for name, points in curves.items():
        x, mean, std, median = np.array(sorted(points), np.float64).T
        style = styles[name]
        marker = "o" if len(x) < 30 else None
        axes.plot(x, mean, marker=marker, markersize=3, linewidth=1.6, **style)
        axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)
        if not np.allclose(median, mean, rtol=1e-9, atol=0.0):
            axes.plot(x, median, ":", linewidth=1.0, color=style["color"])


def _share(line: Sequence[Any]) -> None:
    """One y axis for panels of one quantity side by side, where they show about the same range."""
    if len({axes.get_ylabel() for axes in line}) > 1:
        return
    limits = [axes.get_ylim() for axes in line]
    sizes = [high - low for low, high in limits]
    if max(sizes) <= _ALIKE * min(sizes):
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        for axes in line:
            axes.set_ylim(low, high)
        for axes in line[1:]:
            axes.tick_params(labelleft=False)
    for axes in line[1:]:
        axes.set_ylabel(None)


def save_image_rows(
    path: Path, images: np.ndarray, names: Sequence[str], image_shape: tuple[int, int]
) -> None:
    """Rows of grey images [rows, n, D] in [0, 1], each with a name."""
    rows, count, _ = images.shape
    figure = new_figure(0.72 * count + 1.6, 0.76 * rows + 0.2)
    draw_images(figure, dict(zip(names, images, strict=True)), image_shape)
    figure.savefig(path)


def save_map(path: Path, panels: dict[str, np.ndarray]) -> None:
    """Points in the plane coloured by label, one panel each.

    Args:
        path: where to.
        panels: title -> [n, 3]: coordinates and label.
    """
    figure = new_figure(4.2 * len(panels) + 0.8, 4.0)
    grid = figure.subplots(1, len(panels), squeeze=False)
    classes = 1 + max(int(points[:, 2].max()) for points in panels.values())
    for axes, (title, points) in zip(grid.flat, panels.items(), strict=True):
        for label in range(classes):
            x, y = points[points[:, 2] == label, :2].T
            # ten digits are more than there are colours: the numbers from the eighth on have a shape
            marker = "." if label < len(PALETTE) else "+"
            colour = PALETTE[label % len(PALETTE)]
            axes.plot(x, y, marker, markersize=3, label=str(label), color=colour)
        axes.set(title=title, xlabel="first principal component", ylabel="second")
        axes.set_aspect("equal", adjustable="datalim")
        tidy(axes, grid=False)
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
