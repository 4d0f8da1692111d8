"""Pictures of what a model has learned: reconstructions, relays, the map of its latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._figures import PALETTE, axes_of, draw_images, literal, new_figure, tidy, with_holes
from ..models import LatentModel, alone
from ..posteriors.base import as_posterior
from ..posteriors.relay import RelayPosterior
from .arrays import Shown, shown, some, spread
from .tables import _check_image_shape

# standard deviations at which a heat map has its last colour
_FAR = 3.0
# points of a map
_POINTS = 20_000


@torch.no_grad()
def reconstructions(
    model: LatentModel,
    x: Any,
    *,
    mask: Any = None,
    posterior: RelayPosterior | None = None,
    rows: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    image_shape: tuple[int, int] | None = None,
) -> Any:
    """Rows of a table beside what the model makes of them, as images or as heat maps.

    Args:
        model: a trained model.
        x: [N, D] as in `fit`, the training data unless there is a posterior.
        mask: bool [N, D], true = observed.
        posterior: of the rows of x, from `infer`; the model's own if not given.
        rows: numbers of those that are shown; a few, evenly spread, if not given.
        names: of the columns.
        image_shape: height and width of rows that are images. Without it the picture is two heat maps
            in standard deviations of each column's observed entries, white where an entry misses.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError, TypeError: as `impute`; rows or image_shape do not fit.
        ImportError: matplotlib is missing.
    """
    table = shown(x, mask, names)
    known = model.posterior if posterior is None else posterior
    if posterior is None and model.amortized:
        raise ValueError("posterior: expected infer(model, x), got None: an encoder keeps no rows")
    if len(table.x) != known.num_data:
        raise ValueError(
            f"x: expected {known.num_data} rows, as the posterior has, got {len(table.x)}"
        )
    chosen = some(len(table.x), 12 if image_shape is not None else 60)
    if rows is not None:
        chosen = np.asarray(rows, np.int64)
        if (
            chosen.ndim != 1
            or not len(chosen)
            or not (0 <= chosen.min() <= chosen.max() < len(table.x))
        ):
            raise ValueError(f"rows: expected numbers from 0 to {len(table.x) - 1}, got {rows!r}")
    index = torch.from_numpy(chosen).to(next(model.parameters()).device)
    found = _in_eval(model, lambda: model.reconstruct(index, posterior=posterior))
    values = found.double().cpu().numpy()
    own = Shown(table.x[chosen], table.mask[chosen], table.names)
    if image_shape is not None:
        _check_image_shape(image_shape, table.x.shape[1])
        figure = new_figure(0.72 * len(chosen) + 1.6, 1.9)
        seen = with_holes(own.x, own.mask)
        draw_images(figure, {"observed": seen, "reconstructed": values}, image_shape)
        return figure
    mean, std = spread(table.x)
    panels = {"observed": (own.x - mean) / std, "reconstructed": (values - mean) / std}
    return _heat_maps(panels, table.names, [str(row) for row in chosen], "row")


@torch.no_grad()
def relays(
    model: LatentModel,
    *,
    names: Sequence[str] | None = None,
    image_shape: tuple[int, int] | None = None,
) -> Any:
    """What each relay vector stands for: the decoder's mean at the relay, group by group.

    Args:
        model: whose posterior has relays.
        names: of the columns.
        image_shape: height and width where rows are images. Without it the picture is a heat map, in
            standard deviations of each column of the training data.

    Returns:
        A matplotlib Figure: up to 20 relays of each group, evenly spread.

    Raises:
        ValueError: the posterior has no relays, or image_shape or names do not fit.
        ImportError: matplotlib is missing.
    """
    posterior = model.posterior
    groups = posterior.layout.groups if isinstance(posterior, RelayPosterior) else ()
    if not groups:
        raise ValueError("model: expected a posterior with relay groups, got one without")
    decoded = _in_eval(
        model, lambda: model.ability("mean")(model.decode(posterior.relays.detach()))
    )
    starts = np.cumsum((0, *groups))[:-1]
    places = [start + some(size, 20) for start, size in zip(starts, groups, strict=True)]
    titles = [f"group {number}, {size} relays" for number, size in enumerate(groups, 1)]
    if image_shape is not None:
        values = model.to_data(decoded).double().cpu().numpy()
        _check_image_shape(image_shape, values.shape[1])
        rows = {title: values[own] for title, own in zip(titles, places, strict=True)}
        figure = new_figure(0.5 * max(map(len, places)) + 1.4, 0.56 * len(rows) + 0.2)
        draw_images(figure, rows, image_shape)
        return figure
    columns = _named(model, names)
    values = decoded.double().cpu().numpy()
    panels = {title: values[own] for title, own in zip(titles, places, strict=True)}
    return _heat_maps(panels, columns, None, "relay")


@torch.no_grad()
def latents(
    model: LatentModel | RelayPosterior,
    *,
    labels: Any = None,
    dimensions: tuple[int, int] | None = None,
    ax: Any = None,
) -> Any:
    """A map of posterior means, one point a row of the table.

    Args:
        model: a trained model whose rows own their posteriors, or the posterior of other rows from
            `infer`.
        labels: [N] that colour the points: up to seven kinds get a colour and a name each, other numbers
            a scale.
        dimensions: the two latent dimensions that are shown; the first two principal components of the
            means if not given.
        ax: matplotlib Axes to draw in.

    Returns:
        The matplotlib Figure: of many rows 20,000, evenly spread.

    Raises:
        ValueError: the model keeps no rows, or dimensions or labels do not fit.
        ImportError: matplotlib is missing.
    """
    posterior: Any = model.posterior if isinstance(model, LatentModel) else model
    if not as_posterior(posterior).owns_rows:
        raise ValueError("model: expected infer(model, x), got a model whose encoder keeps no rows")
    chosen = some(posterior.num_data, _POINTS)
    index = torch.from_numpy(chosen).to(next(posterior.parameters()).device)
    means = posterior.mean(index).double().cpu().numpy()
    given = None
    if labels is not None:
        given = np.asarray(labels)
        if given.shape != (posterior.num_data,):
            raise ValueError(f"labels: expected {posterior.num_data}, got {list(given.shape)}")
        given = given[chosen]
    points, names = _plane(means, dimensions)
    axes = axes_of(ax, 5.2, 4.2)
    size = float(np.clip(4000 / len(points), 1.0, 12.0))
    _scatter(axes, points, given, size)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    tidy(axes)
    return axes.figure


def _plane(means: np.ndarray, dimensions: tuple[int, int] | None) -> tuple[np.ndarray, list[str]]:
    """Coordinates [n, 2], and what they are called."""
    if dimensions is not None:
        width = means.shape[1]
        if len(dimensions) != 2 or not all(0 <= place < width for place in dimensions):
            raise ValueError(f"dimensions: expected two below {width}, got {dimensions!r}")
        return means[:, list(dimensions)], [f"latent {place}" for place in dimensions]
    centred = means - means.mean(0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    axes = np.pad(axes, ((0, max(0, 2 - len(axes))), (0, 0)))[:2]
    shares = np.pad(lengths**2 / max(float((lengths**2).sum()), 1e-300), (0, 2))[:2]
    names = [f"component {n} ({share:.0%} of variance)" for n, share in enumerate(shares, 1)]
    return centred @ axes.T, names


def _scatter(axes: Any, points: np.ndarray, labels: np.ndarray | None, size: float) -> None:
    kinds = [] if labels is None else list(np.unique(labels))
    if labels is None or not (len(kinds) <= len(PALETTE) - 1 or labels.dtype.kind in "fiu"):
        axes.scatter(*points.T, s=size, color=PALETTE[0], linewidths=0, alpha=0.7)
        return
    if len(kinds) > len(PALETTE) - 1:
        drawn = axes.scatter(*points.T, s=size, c=labels, cmap="cividis", linewidths=0)
        axes.figure.colorbar(drawn, ax=axes, label="label")
        return
    for kind, colour in zip(kinds, PALETTE, strict=False):
        own = points[labels == kind].T
        axes.scatter(*own, s=size, color=colour, linewidths=0, label=str(kind))
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, markerscale=3 / size**0.5
    )


def _heat_maps(
    panels: dict[str, np.ndarray], names: list[str], rows: list[str] | None, what: str
) -> Any:
    """Tables in standard deviations, one beside the other, with one scale of colours."""
    width = min(6.0, max(2.6, 0.24 * len(names) + 0.8))
    figure = new_figure(width * len(panels) + 1.0, 4.2)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    drawn = None
    for axes, (title, values) in zip(grid, panels.items(), strict=True):
        drawn = axes.imshow(
            values, aspect="auto", cmap="RdBu_r", vmin=-_FAR, vmax=_FAR, interpolation="nearest"
        )
        axes.set_title(title, fontsize="medium")
        few = len(names) <= 30
        places = np.arange(len(names)) if few else some(len(names), 6)
        axes.set_xticks(
            places, [names[int(place)] for place in places], fontsize="x-small",
            rotation=60 if few and max(map(len, names)) > 2 else 0,
        )  # fmt: skip
        places = some(len(values), 6)
        axes.set_yticks(places, [rows[int(place)] if rows else str(place) for place in places])
        axes.spines[:].set_visible(False)
    grid[0].set_ylabel(what)
    figure.colorbar(drawn, ax=list(grid), label="standard deviations", extend="both", shrink=0.8)
    return figure


def _named(model: LatentModel, names: Sequence[str] | None) -> list[str]:
    given = model.columns if names is None else names
    found = [str(n) for n in range(model.num_features)] if given is None else list(given)
    if len(found) != model.num_features:
        raise ValueError(f"names: expected {model.num_features}, one a column, got {len(found)}")
    return [literal(str(name)) for name in found]


def _in_eval(model: LatentModel, action: Any) -> Any:
    """What an action gives while the model is in eval mode."""
    with alone(model):
        modes = [(part, part.training) for part in model.modules()]
        model.eval()
        try:
            return action()
        finally:
            for part, training in modes:
                part.training = training
