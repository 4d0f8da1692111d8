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
from ..reference import PIXEL_SCALE
from ..training import distributed

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
        transform: what bends columns in training, of `data.ColumnTransform`.
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
    transform: str = "none"

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
            getattr(arguments, "transform", None) or default_transform(arguments.data),
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
        standardizer: their scale; None for pixels, and where the model takes the data as they are.
        transform: what bends them before that; None where nothing does.
    """

    columns: tuple[str, ...] | None
    count: int
    carried: tuple[str, ...] = ()
    unseen: tuple[int, ...] = ()
    pixels: bool | None = None
    standardizer: data.Standardizer | None = None
    transform: data.ColumnTransform | None = None

    @classmethod
    def of_run(cls, run: dict[str, Any] | None, count: int) -> Features:
        """Those of a model with so many features; without run.json nothing more is known of them."""
        if run is None:
            return cls(None, count)
        columns, scale, bent = run.get("columns"), run["standardizer"], run.get("column_transform")
        return cls(
            None if columns is None else tuple(columns),
            count,
            tuple(run.get("carried", ())),
            tuple(run.get("unseen", ())),
            run["pixels"],
            data.Standardizer.from_dict(scale) if scale else None,
            data.ColumnTransform.from_dict(bent) if bent else None,
        )


@dataclass(frozen=True)
class Table:
    """A table as a model sees it, and the way back.

    Args:
        name: what was asked for.
        source: as it was read.
        order: [D], the column of `source` that each feature of the model is.
        raw: [N, D] as read, in the model's order: uint8, or floats with NaN for missing.
        mask: bool [N, D], true = shown to the model.
        x: `raw`, or transformed and standardised on the training run's observed entries.
        seen: bool [D], false = never observed in training.
        standardizer: of `x`; None where `x` is `raw`.
        transform: between `raw` and what `standardizer` takes; None where they are the same.
    """

    name: str
    source: data.Table
    order: np.ndarray
    raw: np.ndarray
    mask: np.ndarray
    x: np.ndarray
    seen: np.ndarray
    standardizer: data.Standardizer | None
    transform: data.ColumnTransform | None = None

    @property
    def known(self) -> np.ndarray:
        """Entries whose true value the file holds, of features that the model knows."""
        return self.seen & (~np.isnan(self.raw) if self.raw.dtype != np.uint8 else True)

    @property
    def gaps(self) -> np.ndarray:
        """Entries to fill in: those that are not shown, of features that the model knows."""
        return ~self.mask & self.seen

    def part(self, rows: range) -> Table:
        """Some of its rows, as a model sees them."""
        own = slice(rows.start, rows.stop)
        return replace(self, raw=self.raw[own], mask=self.mask[own], x=self.x[own])

    def digest(self) -> str:
        """SHA-256 of all entries as they were read."""
        found = hashlib.sha256(f"{self.raw.dtype} {self.raw.shape}".encode())
        found.update(np.ascontiguousarray(self.raw).data)
        return found.hexdigest()

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """[..., D] as a model sees them (pixels in [0, 1]) -> in the units of `raw`, float64."""
        if self.raw.dtype == np.uint8:
            return np.clip(np.rint(values / PIXEL_SCALE), 0, 255)
        values = values.astype(np.float64)
        if self.standardizer is not None:
            values = values * self.standardizer.std + self.standardizer.mean
        if self.transform is not None:
            values = self.transform.inverse(values.reshape(-1, values.shape[-1])).reshape(
                values.shape
            )
        return values

    def in_file_order(self, values: np.ndarray) -> np.ndarray:
        """[..., D] in the model's order -> in that of the file."""
        out = np.empty_like(values)
        out[..., self.order] = values
        return out

    def label(self, feature: int) -> str:
        """What a message calls a feature."""
        return _label(self.source.features, int(self.order[feature]))

    def describe(self, model: str) -> str:
        """What was read, and what was assumed, in a few lines."""
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
        if self.transform is not None:
            kinds = enumerate(self.transform.kinds)
            named = [f"{self.label(feature)} ({kind})" for feature, kind in kinds if kind != "none"]
            lines.append(f"  heavy tails, transformed (--transform): {_list(named)}")
        return "\n".join(lines)


def load_table(source: Source, features: Features | None = None) -> Table:
    """Reads a table, and hides what is to be hidden.

    Args:
        source: which one.
        features: what a trained model expects; None in training, where the table says.
    """
    read, image_shape = _read(source, features)
    if source.subset is not None:
        count = len(read.values)
        if not 1 <= source.subset <= count:
            raise ValueError(f"subset: expected 1 to {count} rows, got {source.subset}")
        generator = np.random.default_rng(source.seed)
        read = read.rows(np.sort(generator.permutation(count)[: source.subset]))
    order = _order(read, features)
    ordered = bool((order == np.arange(len(order))).all())
    raw = read.values if ordered else read.values[:, order]
    pixels = raw.dtype == np.uint8
    if features is not None and features.pixels not in (None, pixels):
        kinds = ("pixels (uint8)", "a table of numbers")
        expected, got = kinds if features.pixels else kinds[::-1]
        raise ValueError(f"--data: expected {expected} as in training, got {got}")
    mask = data.mcar(raw.shape, source.missing, seed=source.seed)
    if source.boxes is not None:
        if image_shape is None:
            raise ValueError(f"missing-boxes: expected images, {source.name} holds none")
        mask &= data.missing_boxes(len(raw), image_shape, source.boxes, seed=source.seed)
    seen: np.ndarray = np.ones(raw.shape[1], bool)
    if pixels:
        if source.transform in ("log", "quantile"):
            raise ValueError(
                f"--transform: expected auto or none for pixels (uint8), got {source.transform}"
            )
        return Table(source.name, read, order, raw, mask, raw, seen, None)
    mask &= ~np.isnan(raw)
    if features is None:
        seen = np.any(mask, axis=0)
        if not seen.any():
            raise ValueError(f"--data: expected numbers, every entry of {source.name} is missing")
        transform = _transform(raw, mask, source, read.features)
        bent = raw if transform is None else transform.transform(raw)
        standardizer: data.Standardizer | None = _scale(raw, bent, mask, read.features)
    else:
        seen[list(features.unseen)] = False
        standardizer, transform = features.standardizer, features.transform
        bent = raw if transform is None else transform.transform(raw)
    # a model has learned nothing from, and knows nothing of, what it never saw
    mask &= seen
    x = bent if standardizer is None else standardizer.transform(bent)
    return Table(source.name, read, order, raw, mask, x, seen, standardizer, transform)


def print_scores(table: Table, reconstruction: np.ndarray) -> None:
    """Elastic errors in the model's units: pixels in [0, 1], others transformed and standardised."""
    rows = [("observed entries", table.mask), ("hidden entries", table.known & ~table.mask)]
    say("\nelastic error (mean of |error| + error^2, from the posterior mean)")
    for name, scored in rows:
        count = int(scored.sum())
        error = data.elastic(table.x, reconstruction, scored) * count if count else 0.0
        # of the rows of all processes, where there are several
        error, count = distributed.total(torch.tensor([error, count], dtype=torch.float64)).tolist()
        if count:
            say(f"  {name:<18} {error / count:.4f}")


def say(text: str) -> None:
    """Prints, in the first process alone where there are several."""
    distributed.first(lambda: print(text, flush=True))


def default_transform(name: str | None) -> str:
    """What bends the columns of a data set or a file where --transform says nothing."""
    return "none" if name is None or name in data.DATASETS else "auto"


def _transform(
    raw: np.ndarray, mask: np.ndarray, source: Source, names: tuple[str, ...] | None
) -> data.ColumnTransform | None:
    """What bends the columns of a table in training; None where all stay as they are."""
    if source.transform == "log":
        wrong = np.argwhere(mask & (raw <= 0))
        if len(wrong):
            row, column = wrong[0]
            raise ValueError(
                f"--transform: expected positive numbers for log, got {raw[row, column]} in row {row}, "
                f"column {_label(names, column)}; auto takes log only where it fits"
            )
    transform = data.ColumnTransform.fit(raw, mask, kind=source.transform)
    return None if set(transform.kinds) == {"none"} else transform


def _scale(
    raw: np.ndarray, bent: np.ndarray, mask: np.ndarray, names: tuple[str, ...] | None
) -> data.Standardizer:
    """The scale of transformed columns; what it warns of is said in the words of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", data.FarEntriesWarning)
        scale = data.Standardizer.fit(bent, mask)
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
    return scale


def _label(names: tuple[str, ...] | None, column: int) -> str:
    return repr(names[column]) if names else str(column)


def _read(source: Source, features: Features | None) -> tuple[data.Table, Any]:
    if source.name not in data.DATASETS:
        if source.split == "test":
            raise ValueError(f"--split: {source.name} has no test part")
        also = () if features is None else features.carried
        read = data.read_table(source.name, header=source.header, ignore=source.ignore, also=also)
        return read, read.image_shape
    for option, value in (("header", source.header), ("ignore", source.ignore or None)):
        if value is not None:
            raise ValueError(f"--{option}: expected a file, got the data set {source.name}")
    dataset = data.load_data(source.name, data_dir=source.data_dir)
    split = source.split or ("train" if dataset.test is None else "test")
    array = dataset.train if split == "train" else dataset.test
    if array is None:
        raise ValueError(f"--split: {source.name} has no test part")
    return data.ArrayTable(array, dataset.features, dataset.image_shape), dataset.image_shape


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
    if features is not None and features.count != count:
        raise ValueError(f"--data: expected {features.count} features as in training, got {count}")
    return np.arange(count)


def _list(names: Any) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
