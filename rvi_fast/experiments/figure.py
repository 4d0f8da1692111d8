"""What a figure is: configurations, and how their results become a table and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_bytes, write_text
from .experiment import Experiment
from .pictures import Panels, save_panels
from .recipes import RECIPES
from .scales import Scale

Results = Sequence[tuple[Experiment, dict[str, Any]]]

LABELS = {
    "elastic": "elastic error, training",
    "train_observed": "elastic error, training",
    "test_observed": "elastic error, test",
    "test_missing": "elastic error, imputed (test)",
    "train_missing": "elastic error, imputed (training)",
    "cross_entropy": "cross-entropy (nats)",
    "accuracy": "accuracy",
    "stages": "elastic error",
    "off_data": "decoded: distance to the data",
    "off_data_pixels": "pixels blended: distance to the data",
    "agreement": "nearest neighbour has the same label",
    "missing": "missing rate",
    "lr": "learning rate",
    "hidden": "decoder",
    "posterior_lr": "learning rate of the posterior",
    "top": "ratio m/K",
    "boxes": "missing boxes",
    "point": "point of the line, first and last are its ends",
    "component": "principal components of the latent means",
    "latent_dim": "latent dimensions",
    "stage": "relay groups used; last: deviation as well",
}
MODELS = ("rvi", "vad", "vae")


class Bound(Enum):
    """One of the two numbers that mean and spread of two runs stand for; whose it is is not known."""

    LOW = -1
    HIGH = 1


@dataclass(frozen=True)
class Figure:
    """A figure: which runs it takes, and what is shown of them; see `figure`.

    Args:
        title: in words.
        configurations: the runs of a scale.
        quantities: entries of a run's result; numbers, or lists by epoch or stage.
        over: the x axis: a field of `Experiment`, or "epoch", "stage", "point", "component" for
            the position in a list.
        curves: fields whose values are told apart within a panel.
        panels: fields that get a panel each; what is in neither, seeds above all, is averaged over.
        log: logarithmic x axis.
        extra: writes further pictures from results and the directories of the runs.
        caption: what those show.
    """

    title: str
    configurations: Callable[[Scale], list[Experiment]]
    quantities: tuple[str, ...]
    over: str = "epoch"
    curves: tuple[str, ...] = ("model",)
    panels: tuple[str, ...] = ("data",)
    log: bool = False
    extra: Callable[[Path, Results, Sequence[Path]], None] | None = None
    caption: str = ""

    def table(self, results: Results) -> list[dict[str, Any]]:
        """Mean, population standard deviation and median over the runs of each point, and their numbers.

        Those, "values", are in the order of the results; none where it is not known which is whose.
        """
        points: dict[tuple[Any, ...], list[float]] = {}
        lost = set()
        keys = (*self.panels, *self.curves)
        for experiment, result in results:
            at = tuple(_text(getattr(experiment, key)) for key in keys)
            for quantity in self.quantities:
                for x, value in self._values(experiment, result[quantity]):
                    points.setdefault((quantity, *at, x), []).append(value)
                    if "bound" in result:
                        lost.add((quantity, *at, x))
        rows = []
        for point, values in points.items():
            quantity, *names, x = point
            finite = np.array(values, np.float64)
            rows.append(
                {
                    "quantity": quantity,
                    **dict(zip(keys, names, strict=True)),
                    self.over: x,
                    "mean": float(finite.mean()),
                    "std": float(finite.std()),
                    "median": float(np.median(finite)),
                    "runs": len(values),
                    "values": "" if point in lost else " ".join(map(repr, values)),
                }
            )
        return rows

    @staticmethod
    def text(experiment: Experiment, key: str) -> str:
        """A field of an experiment as the table has it."""
        return str(_text(getattr(experiment, key)))

    def _values(self, experiment: Experiment, value: Any) -> list[tuple[float, float]]:
        if value is None:  # nothing was missing, so nothing was imputed
            return []
        if isinstance(value, list):
            first = 0 if self.over == "stage" else 1
            return [(first + position, entry) for position, entry in enumerate(value)]
        return [(getattr(experiment, self.over), value)]

    def save(self, stem: Path, results: Results, directories: Sequence[Path]) -> None:
        """Writes `stem`.csv, `stem`.png, `stem`.svg, and what `extra` adds."""
        rows = self.table(results)
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(stem.with_suffix(".csv"), text.getvalue())
        self.draw(stem, rows)
        if self.extra is not None:
            self.extra(stem, results, directories)

    def redraw(self, stem: Path) -> None:
        """Writes `stem`.png and `stem`.svg anew from the numbers in `stem`.csv.

        Raises:
            FileNotFoundError: there is no such table.
            ValueError: it is not one of this figure.
        """
        path = stem.with_suffix(".csv")
        lines = list(csv.DictReader(io.StringIO(read_bytes(path).decode())))
        needed = {"quantity", *self.panels, *self.curves, self.over, "mean", "std", "median"}
        if not lines or not needed <= lines[0].keys():
            raise ValueError(f"{path}: expected columns {', '.join(sorted(needed))}")
        numbers = (self.over, "mean", "std", "median")
        self.draw(stem, [
            {key: float(value) if key in numbers else _read(value) for key, value in line.items()}
            for line in lines
        ])  # fmt: skip

    def draw(self, stem: Path, rows: Sequence[dict[str, Any]]) -> None:
        """Writes `stem`.png and `stem`.svg, the curves of a table as `table` makes one."""
        panels: Panels = {}
        for row in rows:
            panel = (row["quantity"], *(row[key] for key in self.panels))
            curve = ", ".join(named(key, row[key]) for key in self.curves)
            points = panels.setdefault(panel, {}).setdefault(curve, [])
            points.append((row[self.over], row["mean"], row["std"], row["median"]))
        titled = {
            (", ".join(map(named, self.panels, panel[1:])), LABELS[panel[0]]): curves
            for panel, curves in panels.items()
        }
        label = LABELS.get(self.over, self.over)
        save_panels(stem.with_suffix(".png"), titled, label, self.title, log=self.log)


REGISTERED: dict[str, Figure] = {}

Configurations = Callable[[Scale], list[Experiment]]


def figure(
    name: str,
    title: str,
    quantities: tuple[str, ...],
    *,
    labels: dict[str, str] | None = None,
    **options: Any,
) -> Callable[[Configurations], Configurations]:
    """Registers a figure: decorates the function that gives the runs of a scale.

    Args:
        name: what `rvi-fast reproduce` calls it.
        title, quantities, options: as in `Figure`.
        labels: words for quantities and fields that `LABELS` does not know.

    Raises:
        ValueError: there is a figure of that name already, or a quantity without a label.

    Example:
        >>> from rvi_fast.experiments.figure import REGISTERED, figure
        >>> @figure("batch", "Batch sizes", ("test_observed",), over="batch_size", log=True)
        ... def runs(scale):
        ...     return [scale.experiment(data="digits", batch_size=size) for size in (16, 64, 256)]
        >>> REGISTERED.pop("batch").title
        'Batch sizes'
    """
    LABELS.update(labels or {})
    for quantity in quantities:
        if quantity not in LABELS:
            raise ValueError(f"quantities: expected a label for each, got none for {quantity!r}")

    def register(configurations: Configurations) -> Configurations:
        if name in REGISTERED:
            raise ValueError(f"name: expected another one than that of a figure, got {name!r}")
        REGISTERED[name] = Figure(title, configurations, quantities, **options)
        return configurations

    return register


def _text(value: Any) -> Any:
    """As tables have it: what is None is left to whoever takes it."""
    if value is None:
        return "default"
    return "-".join(map(str, value)) if isinstance(value, tuple) else value


def _read(text: str) -> Any:
    """A field of a table as `_text` had it."""
    try:
        return float(text)
    except ValueError:
        return text


def shown(value: Any) -> str:
    """A field of an experiment in words."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return str(_text(value))


def named(key: str, value: Any) -> str:
    """The value of a field, with the name of the field where it needs one."""
    if key == "model":
        return RECIPES[value].label
    if key in ("data", "method"):
        return str(value)
    return f"{LABELS.get(key, key)} {shown(value)}"
