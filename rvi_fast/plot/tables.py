"""Pictures of tables: what is missing in them, what was filled in, and how well it was known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._figures import (
    MISSING_COLOUR,
    PALETTE,
    axes_of,
    columns_for,
    draw_images,
    new_figure,
    tidy,
    with_holes,
)
from .arrays import array, shown, some

# rows and columns of a pattern beyond which one would be less than a dot
_ROWS, _COLUMNS = 400, 200
# columns with names
_NAMED = 40
# bins of a histogram; a column of fewer values has a bar for each
_BINS, _FEWEST_BINS = 24, 8


def missingness(
    x: Any, *, mask: Any = None, names: Sequence[str] | None = None, title: str | None = None
) -> Any:
    """Which entries of a table are missing, and how many of each column.

    Args:
        x: [N, D], NaN for missing; evenly spread rows are shown where there are many.
        mask: bool [N, D], true = observed.
        names: of the columns.
        title: of the picture.

    Returns:
        A matplotlib Figure: a bar for each column above the pattern.

    Raises:
        ValueError, TypeError: x is no table, or mask or names do not fit.
        ImportError: matplotlib is missing.
    """
    table = shown(x, mask, names)
    rows, columns = some(len(table.x), _ROWS), some(table.x.shape[1], _COLUMNS)
    width = min(9.0, max(4.5, 0.28 * len(columns) + 1.5))
    figure = new_figure(width, 4.6)
    bars, pattern = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.6))
    missing = 1.0 - table.mask.mean(0)
    bars.bar(range(len(columns)), 100 * missing[columns], color=PALETTE[1], width=0.8)
    bars.set(ylabel="missing (%)", ylim=(0, max(1.0, 105 * float(missing.max()))))
    tidy(bars)
    bars.tick_params(bottom=False)
    colours = np.where(
        table.mask[np.ix_(rows, columns)][..., None], _rgb(PALETTE[0]), MISSING_COLOUR
    )
    pattern.imshow(colours, aspect="auto", interpolation="nearest")
    pattern.set(ylabel="row", xlabel="column" if len(columns) > _NAMED else None)
    shown_rows = some(len(rows), 5)
    pattern.set_yticks(shown_rows, [f"{rows[place]:,}" for place in shown_rows])
    if len(columns) <= _NAMED:
        angle = 0 if sum(len(table.names[column]) + 1 for column in columns) < 9 * width else 60
        pattern.set_xticks(
            range(len(columns)),
            [table.names[column] for column in columns],
            rotation=angle,
            ha="right" if angle else "center",
            rotation_mode="anchor" if angle else "default",
            fontsize="small",
        )
    else:
        places = some(len(columns), 6)
        pattern.set_xticks(places, [table.names[columns[place]] for place in places])
    pattern.spines[:].set_visible(False)
    share = f"{1.0 - table.mask.mean():.1%} of {len(table.x):,} x {table.x.shape[1]:,} entries"
    figure.suptitle(title or f"Missing: {share} (pale below)", fontsize="medium")
    return figure


def imputations(
    x: Any,
    filled: Any,
    *,
    mask: Any = None,
    names: Sequence[str] | None = None,
    image_shape: tuple[int, int] | None = None,
    columns: int = 12,
) -> Any:
    """What was filled in beside what was observed: distributions by column, or images.

    Values that were filled in need not be distributed as those that were observed: where entries miss by
    what they would be, they must not. Estimates, of which `impute` gives one for each entry, are less
    spread than data are; draws (`num_draws=`) are spread as data are.

    Args:
        x: [N, D], NaN for missing.
        filled: [N, D] as `impute` gives it, or draws [S, N, D], of which images show the first.
        mask: bool [N, D], true = observed.
        names: of the columns.
        image_shape: height and width of rows that are images.
        columns: columns of the table, those with most missing first, or images, that are shown.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError, TypeError: the tables differ in shape, nothing is missing, or x is no table.
        ImportError: matplotlib is missing.
    """
    table = shown(x, mask, names)
    values = array("filled", filled).astype(np.float64)
    draws = values if values.ndim == 3 else values[None]
    if draws.shape[1:] != table.x.shape:
        expected = list(table.x.shape)
        raise ValueError(
            f"filled: expected {expected} or [S, *{expected}], got {list(values.shape)}"
        )
    if table.mask.all():
        raise ValueError("x: expected missing entries, got none")
    if image_shape is not None:
        _check_image_shape(image_shape, table.x.shape[1])
        rows = np.flatnonzero(~table.mask.all(1))
        rows = rows[some(len(rows), columns)]
        figure = new_figure(0.72 * len(rows) + 1.1, 1.9)
        seen = with_holes(table.x[rows], table.mask[rows])
        draw_images(figure, {"observed": seen, "imputed": draws[0, rows]}, image_shape)
        return figure
    missing = (~table.mask).sum(0)
    chosen = np.argsort(-missing, kind="stable")[:columns]
    chosen = np.sort(chosen[missing[chosen] > 0])
    across = columns_for(len(chosen))
    down = math.ceil(len(chosen) / across)
    figure = new_figure(2.6 * across + 0.4, 1.9 * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(chosen) :]:
        axes.remove()
    for axes, column in zip(grid.flat, chosen, strict=False):
        known = table.mask[:, column]
        histograms(axes, table.x[known, column], draws[:, ~known, column].ravel())
        axes.set_title(f"{table.names[column]}, {1 - known.mean():.0%} missing", fontsize="small")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.supylabel("share of entries", fontsize="small")
    return figure


def coverage(
    truth: Any,
    draws: Any,
    *,
    mask: Any = None,
    ax: Any = None,
) -> Any:
    """How often intervals of draws hold the truth, beside how often they should.

    For each level the central interval of the draws of an entry is taken; the share of the entries whose
    truth lies in it is drawn over the level. A curve under the diagonal is of draws that are too sure,
    one above it of draws that are not sure enough.

    Args:
        truth: [N, D], what the entries are; NaN is not judged.
        draws: [S, N, D] of `impute(num_draws=S)` for a table in which the judged entries were hidden; at
            least 2, and about 100 for a smooth curve.
        mask: bool [N, D], true where an entry is judged: those that were hidden.
        ax: matplotlib Axes to draw in.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError, TypeError: shapes differ, or nothing is judged.
        ImportError: matplotlib is missing.
    """
    table = shown(truth, mask)
    values = array("draws", draws).astype(np.float64)
    if values.ndim != 3 or len(values) < 2 or values.shape[1:] != table.x.shape:
        raise ValueError(
            f"draws: expected [S, {', '.join(map(str, table.x.shape))}] with S >= 2, got "
            f"{list(values.shape)}"
        )
    judged = table.mask
    if not judged.any():
        raise ValueError("mask: expected entries to judge, got none")
    levels, shares = covered(table.x[judged], values[:, judged])
    axes = axes_of(ax, 4.0, 3.8)
    axes.plot((0, 1), (0, 1), color="0.6", linewidth=1)
    axes.annotate(
        "as it should be", (0.5, 0.5), (4, -4), textcoords="offset points", color="0.45",
        fontsize=8, rotation=45, rotation_mode="anchor", ha="center", va="top",
    )  # fmt: skip
    axes.plot(levels, shares, color=PALETTE[0], linewidth=2)
    axes.fill_between(levels, levels, shares, color=PALETTE[0], alpha=0.15, linewidth=0)
    axes.set(
        xlabel="probability of the interval", ylabel="share of entries in it",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
        title=f"{int(judged.sum()):,} entries, {len(values)} draws each",
    )  # fmt: skip
    tidy(axes)
    return axes.figure


def covered(truth: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels of central intervals, and the share of entries that lie in them.

    Args:
        truth: [n].
        draws: [S, n].

    Returns:
        Levels [L] that S draws can have, from the widest interval down to none, and shares [L].
    """
    count = len(draws)
    # how many draws lie below; a truth among equal draws counts as in their middle
    below = (draws < truth).sum(0) + 0.5 * (draws == truth).sum(0)
    tail = np.minimum(below, count - below)
    edges = np.arange(count // 2 + 1)
    # between the k-th draw from below and from above lie all but 2 k of count + 1 places
    levels = 1.0 - 2.0 * edges / (count + 1)
    shares = np.array([(tail >= edge).mean() for edge in edges])
    levels, shares = levels[1:][::-1], shares[1:][::-1]
    return np.concatenate(([0.0], levels, [1.0])), np.concatenate(([0.0], shares, [1.0]))


def _check_image_shape(shape: tuple[int, int], features: int) -> None:
    if len(shape) != 2 or shape[0] * shape[1] != features:
        raise ValueError(f"image_shape: expected height * width = {features}, got {shape!r}")


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))


def histograms(axes: Any, known: np.ndarray, found: np.ndarray) -> None:
    """Shares of what was observed, as an area, and of what was filled in, as a line."""
    both = np.concatenate((known, found))
    distinct = np.unique(both)
    if len(distinct) <= _BINS:
        gap = np.diff(distinct).min() if len(distinct) > 1 else 1.0
        edges = np.concatenate(
            (distinct[:1] - gap / 2, (distinct[1:] + distinct[:-1]) / 2, distinct[-1:] + gap / 2)
        )
    else:
        # the farthest of a thousand would leave all others in a single bin
        low, high = np.quantile(both, (0.001, 0.999))
        # of few entries a fine histogram shows nothing but which they are (Rice's rule)
        bins = int(np.clip(2 * min(len(known), len(found)) ** (1 / 3), _FEWEST_BINS, _BINS))
        edges = np.linspace(low, high, bins + 1)
        if (distinct == np.rint(distinct)).all():
            # as many whole numbers in each bin, or bins would differ by nothing else
            step = max(1, int(np.ceil((high - low + 1) / bins)))
            edges = np.arange(np.floor(low) - 0.5, np.ceil(high) + step, step)
    clipped = [np.clip(part, edges[0], edges[-1]) for part in (known, found)]
    shares = [np.histogram(part, edges)[0] / max(len(part), 1) for part in clipped]
    axes.stairs(shares[0], edges, fill=True, color=PALETTE[5], alpha=0.6, label="observed")
    axes.stairs(shares[1], edges, color=PALETTE[1], linewidth=1.8, label="filled in")
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None))
    axes.tick_params(labelsize="x-small")
    axes.xaxis.get_major_locator().set_params(nbins=4)
    tidy(axes)
