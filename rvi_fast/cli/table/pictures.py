"""Pictures of a table that was filled in: how well columns are found, and what was filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..._figures import PALETTE, literal, name_ends, new_figure, style_of, tidy
from ...plot.tables import histograms
from .findings import Finding

# inches of a picture of one column; four of them lie side by side
_WIDTH, _HEIGHT = 2.6, 2.2
# points of a scatter, beyond which it would be a blot
_POINTS = 400
# classes with bars of their own
_CLASSES = 8
# letters of a name beside an axis
_LETTERS = 20
_LARGE = ((1e12, " tn"), (1e9, " bn"), (1e6, " M"))


def of_errors(found: Sequence[Finding], linear: Sequence[float]) -> Any:
    """How well held-out cells of each column are found, beside the mean and the linear member.

    Args:
        found: columns, from the top on.
        linear: relative errors of the linear member there.
    """
    figure = new_figure(4.9, 0.24 * len(found) + 1.2)
    axes = figure.subplots()
    places = np.arange(len(found))[::-1]
    errors = [own.relative for own in found]
    axes.hlines(places, 0, errors, color=PALETTE[0], linewidth=1.4, alpha=0.5)
    axes.plot([1, 1], [-0.6, len(found) - 0.4], color="#808080", linewidth=1.2, label="column mean")
    axes.plot(
        linear, places, "D", markersize=5, markerfacecolor="none", markeredgecolor=PALETTE[1],
        label="linear model",
    )  # fmt: skip
    axes.plot(errors, places, "o", markersize=6, color=PALETTE[0], label="this blend")
    axes.set(
        xlim=(0, 1.06 * max(1.0, *errors, *linear)), ylim=(-0.6, len(found) - 0.4),
        xlabel="error on held-out cells, column mean = 1",
    )  # fmt: skip
    axes.set_yticks(places, _names(own.label for own in found), fontsize=9)
    axes.tick_params(axis="y", length=0)
    tidy(axes)
    axes.grid(visible=False, axis="y")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], names[::-1], loc="outside upper center", ncols=3, frameon=False, fontsize=9,
        handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip
    return figure


def of_held_out(own: Finding) -> Any:
    """What held-out cells of a column of numbers or dates are, and what was filled in there."""
    figure, axes = _small()
    chosen = np.unique(np.linspace(0, len(own.truth) - 1, _POINTS).astype(int))
    truth, found = own.truth[chosen], own.found[chosen]
    low, high = min(truth.min(), found.min()), max(truth.max(), found.max())
    if own.logarithmic and low > 0:
        axes.set(xscale="log", yscale="log")
    margin = 0.04 * (high - low) or 1.0
    ends = (low, high) if axes.get_xscale() == "log" else (low - margin, high + margin)
    axes.plot(ends, ends, color="#808080", linewidth=1.0)
    size = float(np.clip(60 / len(truth) ** 0.5, 2.5, 5.0))
    axes.plot(
        truth, found, "o", markersize=size, color=PALETTE[0], alpha=0.55, markeredgewidth=0,
    )  # fmt: skip
    axes.set(xlabel="observed", ylabel="filled in")
    for axis in (axes.xaxis, axes.yaxis):
        _label(axis, own)
    tidy(axes)
    return figure


def of_distributions(own: Finding) -> Any:
    """What was observed in a column beside what was filled in."""
    figure, axes = _small()
    if own.of_classes:
        _bars(axes, own)
    else:
        bent = own.logarithmic and min(own.observed.min(), own.filled.min()) > 0
        cells = (np.log10(part) if bent else part for part in (own.observed, own.filled))
        histograms(axes, *cells)
        axes.set_ylabel("share of cells", fontsize=8)
        _percent(axes.yaxis)
        axes.tick_params(labelsize=8)
        _label(axes.xaxis, own)
        if bent:
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.xaxis.set_major_formatter(lambda x, _: number(10.0**x))
    return figure


def of_confusion(own: Finding) -> Any:
    """Which classes held-out cells have, and which were filled in there."""
    words = list(_words(own)[0])
    figure, axes = _small()
    rest = {word: len(words) - 1 for word in set(own.truth) | set(own.found) if word not in words}
    place = {word: at for at, word in enumerate(words)} | rest
    counts = np.zeros((len(words), len(words)))
    for truth, found in zip(own.truth, own.found, strict=True):
        counts[place[found], place[truth]] += 1
    shares = counts / np.maximum(counts.sum(0), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = shares[row, column] > 0.5
            axes.text(
                column, row, f"{count:,.0f}", ha="center", va="center", fontsize=8,
                color="white" if dark else "#101010",
            )  # fmt: skip
    names = _names(words, 9)
    turned = len(names) * max(map(len, names)) > 24
    axes.set_xticks(
        range(len(words)), names, fontsize=8, rotation=45 if turned else 0,
        ha="right" if turned else "center", rotation_mode="anchor" if turned else "default",
    )  # fmt: skip
    axes.set_yticks(range(len(words)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel("observed", fontsize=9)
    axes.set_ylabel("filled in", fontsize=9)
    axes.spines[:].set_visible(False)
    return figure


def of_looks(looks: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """The error on held-out cells while the relay model is trained.

    Args:
        looks: epochs and errors by where the training started, "own" or "linear".
    """
    figure = new_figure(4.9, 3.2)
    axes = figure.subplots()
    titles = {"own": "from random\nvalues", "linear": "from the\nlinear model"}
    ends: dict[str, tuple[float, str]] = {}
    for number, (start, points) in enumerate(looks.items()):
        epochs, errors = np.array(points, np.float64).T
        style = style_of(number)
        axes.plot(epochs, errors, marker="o", markersize=3, **style)
        best = int(errors.argmin())
        axes.plot(epochs[best], errors[best], "o", markersize=8, color=style["color"])
        ends[titles[start]] = (errors[-1], style["color"])
    axes.set(xlabel="epoch", ylabel="error on held-out cells\n(standard deviations)")
    tidy(axes)
    name_ends(axes, ends)
    return figure


def shortened(text: str, most: int = _LETTERS) -> str:
    """A name that fits beside an axis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _names(texts: Iterable[str], most: int = _LETTERS) -> list[str]:
    """Names that fit, as matplotlib is to write them."""
    return [literal(shortened(text, most)) for text in texts]


def number(x: float) -> str:
    """A number with separators of thousands, millions in words."""
    for size, sign in _LARGE:
        if abs(x) >= size:
            return f"{x / size:,.10g}{sign}"
    return f"{x:,.10g}"


def _small() -> tuple[Any, Any]:
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return figure, axes


def _label(axis: Any, own: Finding) -> None:
    """Ticks of numbers with separators, and of dates as dates."""
    from matplotlib import dates

    if own.kind == "date":
        locator = dates.AutoDateLocator(minticks=2, maxticks=4)
        axis.set_major_locator(locator)
        axis.set_major_formatter(dates.ConciseDateFormatter(locator, show_offset=False))
    elif axis.get_scale() == "linear":
        axis.get_major_locator().set_params(nbins=4, integer=own.kind == "integer")
        axis.set_major_formatter(lambda x, _: number(x))
    else:
        axis.set_major_formatter(lambda x, _: number(x))
        axis.set_minor_formatter(lambda x, _: "")


def _percent(axis: Any) -> None:
    axis.get_major_locator().set_params(nbins=4)
    axis.set_major_formatter(lambda x, _: f"{100 * x:.6g}%")


def _words(own: Finding) -> tuple[list[str], dict[str, int]]:
    """The most frequent classes of a column with what is left as one, and the counts of all."""
    words, counts = np.unique(own.observed.astype(str), return_counts=True)
    by_count = dict(zip(words.tolist(), counts.tolist(), strict=True))
    order = sorted(by_count, key=lambda word: -by_count[word])
    if len(order) > _CLASSES:
        order = [*order[: _CLASSES - 1], f"{len(order) - _CLASSES + 1} others"]
    return order, by_count


def _bars(axes: Any, own: Finding) -> None:
    """Shares of each class among observed cells and those that were filled in."""
    words, _ = _words(own)
    places = np.arange(len(words))[::-1]
    for cells, move, colour, name in (
        (own.observed, 0.19, PALETTE[5], "observed"),
        (own.filled, -0.19, PALETTE[1], "filled in"),
    ):
        shares = [float(np.mean(cells == word)) for word in words]
        if len(set(own.observed)) > len(words):
            shares[-1] = 1.0 - sum(shares[:-1])
        axes.barh(places + move, shares, height=0.36, color=colour, label=name)
    axes.set_yticks(places, _names(words, 12), fontsize=8)
    axes.tick_params(axis="y", length=0)
    _percent(axes.xaxis)
    axes.set_xlabel("share of cells", fontsize=9)
    tidy(axes)
    axes.grid(visible=False, axis="y")
