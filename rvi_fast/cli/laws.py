"""`--likelihood`: the law of each column of a table, from words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..data.pixels import is_pixels
from ..data.tables import row_chunks
from ..likelihoods import LAWS, Likelihood, make
from ..models import LatentModel

NAMES = tuple(name for name in LAWS if name != "mixed")
_CLASSES = "categorical"


def laws_of(words: Sequence[str], raw: np.ndarray, names: tuple[str, ...] | None) -> Any:
    """What builders take as `likelihood` and run.json holds: a name, or a list with one for each column.

    Args:
        words: LAW for all columns, COLUMN=LAW for one of them, by name or number from 0. LAW is a name,
            or categorical:K; without K the largest code in the column says how many classes there are.
        raw: the table [N, D], NaN = missing.
        names: of the columns, if they have some.

    Raises:
        ValueError: names the word, and the column where it is one's.
    """
    whole = [word for word in words if "=" not in word]
    if len(whole) > 1:
        raise ValueError(
            f"--likelihood: expected one LAW for all columns, and COLUMN=LAW for others, got {whole}"
        )
    rest = whole[0] if whole else "gaussian"
    given = {}
    for word in words:
        column, is_one, law = word.rpartition("=")
        if is_one:
            given[_number(column, raw.shape[1], names)] = law
    if not given and rest.partition(":")[0] != _CLASSES:
        return _law(rest, raw, None, names)
    return [_law(given.get(d, rest), raw, d, names) for d in range(raw.shape[1])]


def standardizable(spec: Any, num_features: int) -> np.ndarray:
    """bool [D]: columns whose law lets them be shifted and scaled."""
    law = make(spec, num_features)
    assert isinstance(law, Likelihood)
    return np.array(law.standardizable)


def check_laws(model: LatentModel, raw: np.ndarray, mask: np.ndarray, labels: list[str]) -> None:
    """Refuses what a column's law cannot give, in the words of the file.

    Args:
        model: has the laws.
        raw: [N, D] as the file holds it, or pixels.
        mask: bool [N, D], true = shown to the model.
        labels: what a message calls each column.

    Raises:
        ValueError: names value, row and column.
    """
    law = model.law
    if not law.restricted:
        return
    for part in row_chunks(raw.shape):
        rows = range(part.start, min(part.stop, len(raw)))
        x, shown = (torch.from_numpy(np.ascontiguousarray(own[part])) for own in (raw, mask))
        try:
            law.check(x, shown, rows=rows, columns=labels)
        except (ValueError, TypeError) as error:
            advice = "; --binarize makes pixels 0 or 255" if is_pixels(raw) else ""
            text = str(error).removeprefix("x: ")
            raise ValueError(f"--data: {text}{advice} (--likelihood)") from error


def _number(column: str, count: int, names: tuple[str, ...] | None) -> int:
    found = [d for d, name in enumerate(names or ()) if name == column]
    if len(found) == 1:
        return found[0]
    if not found and column.isdecimal() and int(column) < count:
        return int(column)
    known = f", or one of {', '.join(names[:10])}" if names else ""
    raise ValueError(f"--likelihood: expected a column 0 to {count - 1}{known}, got {column!r}")


def _law(word: str, raw: np.ndarray, column: int | None, names: tuple[str, ...] | None) -> Any:
    name, _, classes = word.partition(":")
    where = "" if column is None else f" for column {names[column] if names else column!r}"
    if name not in NAMES or (classes and name != _CLASSES):
        raise ValueError(
            f"--likelihood: expected one of {', '.join(NAMES)}, or {_CLASSES}:K with K classes, got "
            f"{word!r}{where}"
        )
    if name != _CLASSES:
        return name
    if not classes:
        values = raw[:, column]
        known = values[~np.isnan(values.astype(np.float64))]
        # one class alone is a law without anything to learn, and none is none
        return [name, max(2, int(known.max()) + 1 if len(known) else 2)]
    if not classes.isdecimal() or int(classes) < 2:
        raise ValueError(f"--likelihood: expected K classes, at least 2, got {word!r}{where}")
    return [name, int(classes)]
