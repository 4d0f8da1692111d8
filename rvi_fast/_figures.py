"""How pictures look: a canvas without global state, colours that everybody tells apart, names at curves.

Needs matplotlib (extra `plot`) when a picture is drawn, not before.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Okabe and Ito, "Color Universal Design" (2008); their yellow is too pale for lines on white and comes
# last but for black
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MISSING_COLOUR = (0.86, 0.80, 0.69)
# of the height of the axes: names of curves lie at least so far apart, for 2.4 inches of height
_APART = 0.075


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure of so many inches, which no other picture knows of.

    Raises:
        ImportError: matplotlib is missing; says how to install it.
    """
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


def axes_of(ax: Any, width: float, height: float) -> Any:
    """The axes to draw in: those that were given, or those of a new figure."""
    if ax is None:
        return new_figure(width, height).subplots()
    if not hasattr(ax, "plot"):
        raise TypeError(f"ax: expected matplotlib Axes or None, got {type(ax).__name__}")
    return ax


def style_of(number: int) -> dict[str, Any]:
    """Colour and dashes of the curve of that number: no two of 28 alike."""
    # yellow is left to areas
    colours = PALETTE[:-1]
    return {
        "color": colours[number % len(colours)],
        "linestyle": DASHES[number // len(colours) % len(DASHES)],
    }


def literal(text: str) -> str:
    """Text that matplotlib writes as it is: between two dollar signs it would read a formula."""
    return text.replace("$", r"\$")


def inline_svg(figure: Any, name: str) -> str:
    """A figure as an <svg> element for a page of HTML, which needs nothing from elsewhere.

    Text is text, in whatever font the page has. Black and what is not coloured take the page's colour of
    text, and the ground is that of the page, so that light and dark pages are alike.

    Args:
        figure: a matplotlib Figure.
        name: of letters and digits, another for each picture of a page, for the names within it.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    plain = rc_context({"svg.fonttype": "none", "svg.hashsalt": "rvi_fast"})
    with plain, warnings.catch_warnings():
        # a letter that matplotlib's font lacks is measured as a box; the page's fonts may have it
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for element in ("<!--.*?-->", "<metadata>.*?</metadata>", "<style.*?</style>"):
        svg = re.sub(rf"{element}\s*", "", svg, flags=re.DOTALL)
    width, height = (float(size) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2])
    head = (
        f'<svg width="{width * 4 / 3:.0f}" height="{height * 4 / 3:.0f}" '
        f'viewBox="0 0 {width:g} {height:g}">'
    )
    _, _, inside = svg.partition(">")
    # within tags alone: what stands between them are words of the user
    return head + re.sub("<[^>]*>", lambda tag: _tag_of_page(tag[0], name), inside).strip()


def _tag_of_page(tag: str, name: str) -> str:
    """A tag of an SVG file as one of a picture of that name within a page."""
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = tag.replace(' id="', f' id="{name}-').replace("url(#", f"url(#{name}-")
    tag = tag.replace(' xlink:href="#', f' href="#{name}-').replace(" xlink:href=", " href=")
    # the page's font; matplotlib before 3.10 says size and families in one
    tag = re.sub('font: [^;"]*?([\\d.]+px) [^;"]*', r"font-size: \1", tag)
    tag = re.sub('font-family: [^;"]*;? ?', "", tag)
    # blue is too dark on a dark page
    return tag.replace("#000000", "currentColor").replace("#0072b2", "var(--blue, #0072b2)")


def tidy(axes: Any, *, grid: bool = True) -> None:
    """Takes frames off axes that say nothing, and puts a pale grid behind what does."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)


def columns_for(count: int, most: int = 4) -> int:
    """Columns of a grid of so many panels: as many as leave the fewest places empty."""
    if count <= most:
        return max(count, 1)
    return min(range(most, max(most // 2, 1), -1), key=lambda columns: -count % columns)


def name_ends(axes: Any, curves: Mapping[str, tuple[float, str]], *, size: float = 8.0) -> None:
    """Writes the name of each curve beside its right end, in its colour, none over another.

    To be called when the limits of the axes are what they will be.

    Args:
        axes: where the curves are.
        curves: by name the last y and the colour.
        size: of the letters, in points.
    """
    low, high = axes.get_ylim()
    height = axes.figure.get_size_inches()[1] * axes.get_position().height
    apart = _APART * 2.4 / max(height, 0.5)
    to_axes = axes.transScale.transform
    ends = to_axes([(1.0, y) for y, _ in curves.values()])[:, 1] if curves else []
    bottom, top = to_axes([(1.0, low), (1.0, high)])[:, 1]
    wanted = [(end - bottom) / (top - bottom) for end in ends]
    for (name, (_, colour)), place in zip(curves.items(), _spread(wanted, apart), strict=True):
        axes.annotate(
            name, (1.0, place), (6, 0), xycoords="axes fraction", textcoords="offset points",
            color=colour, fontsize=size, va="center", annotation_clip=False,
        )  # fmt: skip


def _spread(wanted: Sequence[float], apart: float) -> list[float]:
    """Places at least so far apart, in the order of those wanted and near them."""
    order = np.argsort(wanted, kind="stable")
    # pools of names that lie against each other: their middle is the mean of what they want
    pools: list[list[float]] = []
    for place in np.asarray(wanted, np.float64)[order]:
        pools.append([place])
        while len(pools) > 1 and _top(pools[-2], apart) + apart > _bottom(pools[-1], apart):
            pools[-2:] = [pools[-2] + pools[-1]]
    placed = [
        _bottom(pool, apart) + number * apart for pool in pools for number in range(len(pool))
    ]
    result = np.empty(len(placed))
    result[order] = placed
    return result.tolist()


def _bottom(pool: Sequence[float], apart: float) -> float:
    return float(np.mean(pool)) - apart * (len(pool) - 1) / 2


def _top(pool: Sequence[float], apart: float) -> float:
    return _bottom(pool, apart) + apart * (len(pool) - 1)


def draw_history(history: Mapping[str, Sequence[float]], ax: Any = None) -> Any:
    """The curves of a training, see `History.plot`."""
    curves = {"loss": history["loss"], "KL divergence": history["kl"]}
    curves["-log p(x | z)"] = [-value for value in history["log_prob"]]
    if ax is not None or not history["evaluated"]:
        axes = axes_of(ax, 5.4, 3.4)
        _by_epoch(axes, curves, range(1, len(history["loss"]) + 1), "nats per row")
        return axes.figure
    figure = new_figure(10.0, 3.4)
    left, right = figure.subplots(1, 2)
    _by_epoch(left, curves, range(1, len(history["loss"]) + 1), "nats per row")
    errors = {"observed": history["elastic"]}
    held_out = history.get("held_out", [])
    if held_out:
        errors["held out"] = held_out
    _by_epoch(right, errors, history["evaluated"], "elastic error")
    if np.isfinite(held_out).any():
        best = int(np.nanargmin(held_out))
        at = (history["evaluated"][best], held_out[best])
        right.plot(*at, "o", color=style_of(1)["color"], markersize=5)
        right.set_title(
            f"held out: least, {at[1]:.3g}, in epoch {at[0]:.0f}", fontsize="small", loc="left"
        )
    return figure


def _by_epoch(
    axes: Any, curves: Mapping[str, Sequence[float]], epochs: Sequence[float], label: str
) -> None:
    """Curves with their names beside them; the first epochs may lie outside."""
    ends = {}
    for number, (name, values) in enumerate(curves.items()):
        marker = "o" if len(values) < 3 else None
        axes.plot(epochs, values, marker=marker, markersize=3, **style_of(number))
        ends[name] = (values[-1], style_of(number)["color"])
    axes.set(xlabel="epoch", ylabel=label)
    late = np.concatenate([np.asarray(v, np.float64)[len(v) // 50 :] for v in curves.values()])
    late = late[np.isfinite(late)]
    if len(late):
        low, high = float(late.min()), float(late.max())
        margin = 0.05 * (high - low or abs(high) or 1.0)
        axes.set_ylim(low - margin, high + margin)
    tidy(axes)
    name_ends(axes, ends)


def draw_images(figure: Any, rows: Mapping[str, np.ndarray], shape: tuple[int, int]) -> None:
    """Fills a figure with rows of images, each row with its name.

    Args:
        figure: an empty one.
        rows: by name, images [n, height * width] in [0, 1], or [n, height * width, 3] in colour; none
            where a row has fewer than others.
        shape: height and width.
    """
    count = max(len(images) for images in rows.values())
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, image in zip(line, images, strict=False):
            colours = image.shape[1:] if image.ndim == 2 else ()
            axes.imshow(
                np.clip(image, 0.0, 1.0).reshape(*shape, *colours), cmap="gray", vmin=0, vmax=1,
                interpolation="nearest",
            )  # fmt: skip
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)


def with_holes(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Grey images [n, D] in [0, 1] as colours [n, D, 3], in which missing pixels stand out.

    Args:
        images: what is missing in them may be NaN.
        mask: bool [n, D], true = observed.
    """
    grey = np.repeat(np.nan_to_num(images)[..., None], 3, -1)
    return np.where(mask[..., None], grey, MISSING_COLOUR)
