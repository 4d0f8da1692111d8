"""The table of a command as a model sees it, the way back, and its scores."""

from __future__ import annotations

import argparse
import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import data
from ..data.pixels import is_pixels, observed, pixels
from ..data.recipe import Units, rows_of, rows_of_figure, scores, shown
from ..models import LatentModel
from ..scaler import Scaler
from ..training import distributed
from .laws import laws_of, standardizable

_SHOWN = 10  # names in a message


@dataclass(frozen=True)
class Source:
    """Which table: the options about data.

    Args:
        name: a data set or a path.
        data_dir: where data sets lie.
        split: "train", "test", or None for test where there is one.
        header: whether the first line of a text file holds names; None guesses.
        ignore: columns to carry along.
        subset: how many random rows; None for all.
        missing, boxes: what to hide.
        seed: of the above.
        recipe: "table", or "figure" for rows, holes and scale of a run of a figure.
        transform: what bends columns in training, of `data.ColumnTransform`.
        binarize: pixels above that share of 255 become 255, the others 0; None leaves them.
        likelihood: words of --likelihood in training.
    """

    name: str
    data_dir: Path | None
    split: str | None
    header: bool | None
    ignore: tuple[str, ...]
    subset: int | None
    missing: float
    boxes: int | None
    seed: int
    recipe: str = "table"
    transform: str = "none"
    binarize: float | None = None
    likelihood: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: argparse.Namespace, split: str | None = "train") -> Source:
        """What the command line says."""
        return cls(
            arguments.data,
            arguments.data_dir,
            split,
            arguments.header,
            tuple(arguments.ignore),
            arguments.subset,
            arguments.missing,
            arguments.missing_boxes,
            arguments.seed,
            arguments.recipe or "table",
            getattr(arguments, "transform", None) or default_transform(arguments),
            getattr(arguments, "binarize", None),
            tuple(getattr(arguments, "likelihood", None) or ()),
        )

    @classmethod
    def of_run(cls, run: dict[str, Any], data_dir: Path | None) -> Source:
        """What a run was trained on."""
        return cls(
            run["data"],
            data_dir,
            "train",
            run.get("header"),
            tuple(run.get("ignore", ())),
            run["subset"],
            run["missing"],
            run.get("missing_boxes"),
            run["seed"],
            run.get("recipe", "table"),
            binarize=run.get("binarize"),
        )


@dataclass(frozen=True)
class Features:
    """The features of a trained model.

    Args:
        columns: their names, or None.
        count: D.
        carried: names of columns that training did not take as numbers.
        unseen: features that training never observed: they stay missing.
        pixels: uint8; None if that is not known.
        units: what a table has to go through for a model of 0.1 or 0.2, which has no scale of its own;
            None where the model takes the data as they are.
        single: numbers are rounded to float32 before that, as 0.1 read them.
    """

    columns: tuple[str, ...] | None
    count: int | None
    carried: tuple[str, ...] = ()
    unseen: tuple[int, ...] = ()
    pixels: bool | None = None
    units: Units | None = None
    single: bool = False

    @classmethod
    def of_run(cls, run: dict[str, Any] | None, count: int | None) -> Features:
        """Those of a model with so many features; without run.json nothing more is known of them."""
        if run is None:
            return cls(None, count)
        columns, scale, bent = (
            run.get(name) for name in ("columns", "standardizer", "column_transform")
        )
        units = Units(
            data.Standardizer.from_dict(scale) if scale else None,
            data.ColumnTransform.from_dict(bent) if bent else None,
        )
        return cls(
            None if columns is None else tuple(columns),
            count,
            tuple(run.get("carried", ())),
            tuple(run.get("unseen", ())),
            run["pixels"],
            units if scale else None,
            "digest" not in run,
        )

    @classmethod
    def of_training(cls, run: dict[str, Any] | None) -> Features | None:
        """Those of a run that goes on; None where the table says, as in a new run."""
        if run is None:
            return None
        # what differs from the table of then is said by `runs.check_run`
        return replace(cls.of_run(run, None), columns=None, carried=(), pixels=None)


@dataclass(frozen=True)
class Table:
    """A table as a model takes it, and the way back.

    Args:
        name: what was asked for.
        source: as it was read.
        order: [D], the column of `source` that each feature of the model is.
        raw: [N, D] as read, in the model's order: uint8, or floats with NaN for missing.
        mask: bool [N, D], true = shown to the model.
        x: `raw`, or for a model of 0.1 or 0.2 what `units` makes of it.
        seen: bool [D], false = never observed in training.
        units: between `raw` and `x`; None where they are the same.
        learned: in training, the units that the model is to have; None where no column has some, as
            pixels have none.
        likelihood: in training, the laws of the columns as the builders take them.
    """

    name: str
    source: data.Table
    order: np.ndarray
    raw: np.ndarray
    mask: np.ndarray
    x: np.ndarray
    seen: np.ndarray
    units: Units | None = None
    learned: Units | None = None
    likelihood: Any = "gaussian"

    @property
    def known(self) -> np.ndarray:
        """Entries whose true value the file holds, and that the model knows of."""
        return observed(self.raw) & self.seen

    @property
    def gaps(self) -> np.ndarray:
        """Entries to fill in: those that are not shown, of features that the model knows."""
        return ~self.mask & self.seen

    def part(self, rows: range) -> Table:
        """Some of its rows, as a model sees them."""
        own = slice(rows.start, rows.stop)
        return replace(self, raw=self.raw[own], mask=self.mask[own], x=self.x[own])

    def digest(self, rows: int | None = None) -> str:
        """SHA-256 of all entries as they were read, or of those of the first rows."""
        raw = self.raw[:rows]
        found = hashlib.sha256(f"{raw.dtype} {raw.shape}".encode())
        found.update(np.ascontiguousarray(raw).data)
        return found.hexdigest()

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """[..., D] as the model gives them (pixels in [0, 1]) -> in the units of `raw`, float64."""
        if is_pixels(self.raw):
            return pixels(values)
        return values.astype(np.float64) if self.units is None else self.units.to_data(values)

    def in_file_order(self, values: np.ndarray) -> np.ndarray:
        """[..., D] in the model's order -> in that of the file."""
        out = np.empty_like(values)
        out[..., self.order] = values
        return out

    def label(self, feature: int) -> str:
        """What a message calls a feature."""
        return _label(self.source.features, int(self.order[feature]))

    @property
    def labels(self) -> list[str]:
        """What messages call the features."""
        return [self.label(feature) for feature in range(self.raw.shape[1])]

    def describe(self, model: str, scaler: Scaler | None = None) -> str:
        """What was read, and what was assumed, in a few lines.

        Args:
            model: what is done with the table.
            scaler: that of a trained model.
        """
        lines = [
            f"{self.name}: {self.raw.shape[0]} rows, {self.raw.shape[1]} features, "
            f"{1 - self.mask.mean():.1%} missing; {model}"
        ]
        if self.source.assumed:
            lines.append(f"  read as: {', '.join(self.source.assumed)}")
        if self.source.carried:
            named = [f"{label} ({reason})" for label, reason in self.source.carried]
            lines.append(f"  not modelled, carried along: {_list(named)}")
        if not self.seen.all():
            named = [self.label(int(feature)) for feature in np.flatnonzero(~self.seen)]
            lines.append(f"  never observed, stay empty: {_list(named)}")
        units = self.learned or self.units
        transform = scaler.transform() if scaler else units.transform if units else None
        if transform is not None:
            kinds = enumerate(transform.kinds)
            named = [f"{self.label(feature)} ({kind})" for feature, kind in kinds if kind != "none"]
            lines.append(f"  heavy tails, transformed (--transform): {_list(named)}")
        return "\n".join(lines)


def load_table(source: Source, features: Features | None = None, *, learn: bool = False) -> Table:
    """Reads a table, and hides what is to be hidden.

    Args:
        source: which one.
        features: what a trained model expects; None where the table says.
        learn: the units of the table are those that a model is to have.
    """
    read, image_shape = _read(source, features)
    if source.binarize is not None:
        read = _binarized(read, source.binarize)
    order = _order(read, features)
    ordered = bool((order == np.arange(len(order))).all())
    raw = read.values if ordered else read.values[:, order]
    if features is not None and features.pixels not in (None, is_pixels(raw)):
        kinds = ("pixels (uint8)", "a table of numbers")
        expected, got = kinds if features.pixels else kinds[::-1]
        raise ValueError(f"--data: expected {expected} as in training, got {got}")
    seed = source.seed
    if source.recipe == "figure":
        seed = 2 * seed + (source.split != "train")
    mask = shown(raw.shape, source.missing, source.boxes, image_shape, seed, "missing-boxes")
    mask &= observed(raw)
    if is_pixels(raw) and source.transform in ("log", "quantile"):
        raise ValueError(
            f"--transform: expected auto or none for pixels (uint8), got {source.transform}"
        )
    seen: np.ndarray = np.ones(raw.shape[1], bool)
    if features is not None:
        seen[list(features.unseen)] = False
    elif not is_pixels(raw):
        seen = np.any(mask, axis=0)
        if not seen.any():
            raise ValueError(f"--data: expected numbers, every entry of {source.name} is missing")
    # a model has learned nothing from, and knows nothing of, what it never saw
    mask &= seen
    units = None if features is None else features.units
    likelihood = laws_of(source.likelihood, raw, read.features)
    learned = _learned(raw, mask, source, read.features, likelihood) if learn else None
    x = raw
    if features is not None and features.units is not None:
        x = features.units.to_model(raw.astype(np.float32) if features.single else raw)
    return Table(source.name, read, order, raw, mask, x, seen, units, learned, likelihood)


def print_scores(table: Table, model: LatentModel, posterior: Any = None) -> None:
    """Elastic errors in the model's units: pixels in [0, 1], others transformed and standardised.

    Of a class it is that of 1 and the probability of the one that was observed.

    Args:
        table: what the model is given.
        model: a trained model.
        posterior: of the rows; the model's own if not given.
    """
    x, mask = (torch.from_numpy(np.ascontiguousarray(own)) for own in (table.x, table.mask))
    if model.scaler is not None:
        x = model.scaler.to_model(x, torch.float32)
    device = next(model.parameters()).device
    pair = model.scored(x.to(device), mask.to(device), posterior=posterior)
    truth, decoded = (part.cpu().numpy() for part in pair)
    say("\nelastic error (mean of |error| + error^2, from the posterior mean)")
    names = {"observed": "observed entries", "missing": "hidden entries"}
    for name, (error, count) in scores(truth, decoded, table.mask, table.known).items():
        # of the rows of all processes, where there are several
        sums = torch.tensor(
            [error * count if count else 0.0, count], dtype=torch.float64, device="cpu"
        )
        total, entries = distributed.total(sums).tolist()
        if entries:
            say(f"  {names[name]:<18} {total / entries:.4f}")


def say(text: str) -> None:
    """Prints, in the first process alone where there are several."""
    distributed.first(lambda: print(text, flush=True))


def say_added(run_dir: Path, before: int | None, rows: int) -> None:
    """Says how many rows a run goes on with that it had not so far, if it does."""
    if before is not None:
        say(
            f"  {rows - before} rows added to the {before} of {run_dir}: they start at the mean of "
            "those, and the scale of the columns stays"
        )


def default_transform(arguments: argparse.Namespace) -> str:
    """What bends the columns of a data set or a file where --transform says nothing."""
    plain = arguments.data is None or arguments.data in data.DATASETS
    return "none" if plain or arguments.recipe == "figure" else "auto"


def _learned(
    raw: np.ndarray,
    mask: np.ndarray,
    source: Source,
    names: tuple[str, ...] | None,
    likelihood: Any,
) -> Units | None:
    """The units of a table in training, see `Table`; warnings are in the words of the file."""
    columns = standardizable(likelihood, raw.shape[1])
    if is_pixels(raw) or not columns.any():
        return None
    if source.transform == "log":
        wrong = np.argwhere(mask & (raw <= 0) & columns)
        if len(wrong):
            row, column = wrong[0]
            raise ValueError(
                f"--transform: expected positive numbers for log, got {raw[row, column]} in row {row}, "
                f"column {_label(names, column)}; auto takes log only where it fits"
            )
    robust = source.recipe == "table"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", data.FarEntriesWarning)
        units = Units.fit(raw, mask, kind=source.transform, robust=robust, columns=columns)
    if robust:
        _warn_of_far_entries(raw, mask, units, names)
    return units


def _warn_of_far_entries(
    raw: np.ndarray, mask: np.ndarray, units: Units, names: tuple[str, ...] | None
) -> None:
    scale, bent = units.scale, units.bent(raw)
    assert scale is not None
    far = []
    for column in range(bent.shape[1]):
        distance = np.where(mask[:, column], np.abs(bent[:, column] - scale.mean[column]), 0)
        row = int(distance.argmax())
        if distance[row] > scale.limit[column] * scale.std[column]:
            far.append(f"{raw[row, column]} in row {row}, column {_label(names, column)}")
    if far:
        warnings.warn(
            f"{_list(far)}: too far from the other entries of the column to share a scale with them; "
            "median and quartiles give the scale, and within the model such entries count as nearer. "
            "Leave them empty if they are wrong",
            data.FarEntriesWarning,
            stacklevel=2,
        )


def _label(names: tuple[str, ...] | None, column: int) -> str:
    return repr(names[column]) if names else str(column)


def _read(source: Source, features: Features | None) -> tuple[data.Table, Any]:
    """The rows of a table that are asked for, and the shape of its images."""
    parts: dict[str, data.Table] = {}
    if source.name in data.DATASETS:
        for option, value in (("header", source.header), ("ignore", source.ignore or None)):
            if value is not None:
                raise ValueError(f"--{option}: expected a file, got the data set {source.name}")
        dataset = data.load_data(source.name, data_dir=source.data_dir)
        for split, array in (("train", dataset.train), ("test", dataset.test)):
            if array is not None:
                parts[split] = data.ArrayTable(array, dataset.features, dataset.image_shape)
    else:
        also = () if features is None else features.carried
        parts["train"] = data.read_table(
            source.name, header=source.header, ignore=source.ignore, also=also
        )
    if source.recipe == "figure":
        tests = len(parts["test"].values) if "test" in parts else None
        part, rows = rows_of_figure(
            len(parts["train"].values),
            tests,
            source.split or "test",
            source.subset,
            source.seed,
            "subset",
        )
        return parts[part].rows(rows), parts[part].image_shape
    split = source.split or ("test" if "test" in parts else "train")
    if split not in parts:
        raise ValueError(f"--split: {source.name} has no test part")
    table = parts[split]
    if source.subset is not None:
        generator = np.random.default_rng(source.seed)
        table = table.rows(rows_of(len(table.values), source.subset, generator, "subset"))
    return table, parts[split].image_shape


def _binarized(read: data.Table, threshold: float) -> data.Table:
    """A table of pixels with 255 where they are above a share of 255, and 0 elsewhere."""
    if not is_pixels(read.values):
        raise ValueError("--binarize: expected pixels (uint8), got a table of numbers")
    if not 0 <= threshold < 1:
        raise ValueError(f"--binarize: expected a threshold from 0 to below 1, got {threshold}")
    values = np.where(read.values > threshold * 255, np.uint8(255), np.uint8(0))
    return read.filled(values, np.ones(values.shape, bool))


def _order(read: data.Table, features: Features | None) -> np.ndarray:
    """Which column of a table each feature of the model is: by name where both have names."""
    count, names = read.values.shape[1], read.features
    if features is not None and features.columns is not None and names is not None:
        wanted = features.columns
        if names == wanted:
            return np.arange(count)
        lacking = [name for name in wanted if name not in names]
        extra = [name for name in names if name not in wanted]
        if lacking or extra:
            raise ValueError(
                f"--data: expected the columns of training; missing: {_list(lacking) or 'none'}; "
                f"extra: {_list(extra) or 'none'} (--ignore carries columns along)"
                + (f"; {read.text}" if lacking and read.text else "")
            )
        if len(set(names)) < count or len(wanted) != count:
            raise ValueError(
                f"--data: expected names that differ, to match them with those of training, got "
                f"{_list(names)}"
            )
        return np.array([names.index(name) for name in wanted])
    if features is not None and features.count not in (None, count):
        raise ValueError(f"--data: expected {features.count} features as in training, got {count}")
    return np.arange(count)


def _list(names: Any) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
