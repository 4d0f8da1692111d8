"""Which table a model was trained on: a fingerprint that tells two tables apart.

Each row is reduced to 64 bits, a sum of its words times fixed odd numbers, which a change of any one
word changes; mixed with the row's number, these add up to the fingerprint. So the parts of a table,
read in whatever pieces by whatever processes, add up to that of the whole, and rows in another order
give another. It guards against mistakes, not against somebody who looks for a second table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ...data.tables import as_tensor
from .sources import DatasetRows, MappedArray, is_mapped

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# entries looked at once
_CHUNK = 1 << 20

Fingerprint = dict[str, Any]
"""{"rows": N, "features": D} and a sum in hex for each precision: "uint8", or "float32" and, where the
numbers came in it, "float64". JSON can hold it."""


def fingerprint(x: Any, mask: Any, num_features: int, first_row: int = 0) -> Fingerprint:
    """The fingerprint of a table as its user passes it, before anything is done to its numbers.

    Reads all of it: a data set is read once from end to end.

    Args:
        x: [N, D] as `fit` takes it.
        mask: bool [N, D] or None, true = observed. What is not observed does not count.
        num_features: D.
        first_row: number of the first row, where these are a part of a larger table.
    """
    sums: dict[str, int] = {}
    num_data = 0
    for values, observed in _parts(x, mask, num_features):
        for name, words in _words(values, observed).items():
            sums[name] = sums.get(name, 0) + _sum_of(words, first_row + num_data)
        num_data += len(values)
    digests = {name: f"{number & _MASK:016x}" for name, number in sums.items()}
    return {"rows": num_data, "features": num_features, **digests}


def first_fingerprint(
    x: Any, mask: Any, num_features: int, num_data: int, first_row: int = 0
) -> Fingerprint:
    """The fingerprint of those of these rows that are among the first `num_data` of the whole table.

    Args:
        x, mask, num_features, first_row: as in `fingerprint`.
        num_data: rows, of all processes.
    """
    count = num_data - first_row
    if count <= 0:
        return {"rows": 0, "features": num_features}
    if isinstance(x, Dataset):
        whole = min(count, len(x))  # type: ignore[arg-type]
        return fingerprint(Subset(x, range(whole)), mask, num_features, first_row)
    rows = slice(count)
    return fingerprint(x[rows], None if mask is None else mask[rows], num_features, first_row)


def added(parts: list[Fingerprint]) -> Fingerprint:
    """The fingerprint of the table whose parts these are."""
    whole: Fingerprint = {"rows": sum(part["rows"] for part in parts)}
    whole["features"] = parts[0]["features"]
    for name in parts[0].keys() - whole.keys():
        # a process without any of the rows has no sum
        whole[name] = f"{sum(int(part.get(name, '0'), 16) for part in parts) & _MASK:016x}"
    return whole


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of the same numbers, as far as the coarser of the two knows them."""
    for name in ("uint8", "float64", "float32"):
        if name in one and name in other:
            sizes = [(print_["rows"], print_["features"]) for print_ in (one, other)]
            return sizes[0] == sizes[1] and one[name] == other[name]
    return False


def _parts(x: Any, mask: Any, num_features: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    step = max(1, _CHUNK // max(1, num_features))
    if isinstance(x, np.ma.MaskedArray):
        shown = ~np.ma.getmaskarray(x)
        x, mask = x.data, shown if mask is None else shown & np.asarray(mask)
    if isinstance(x, Dataset) or is_mapped(x):
        if mask is not None and not isinstance(mask, np.ndarray):
            mask = as_tensor("mask", mask).cpu().numpy()
        source = DatasetRows(x, num_features) if isinstance(x, Dataset) else MappedArray(x, mask)
        for start in range(0, len(source), step):
            stop = min(start + step, len(source))
            yield source.read(np.arange(start, stop))
            source.release(start, stop)
        return
    values = as_tensor("x", x)
    observed = None if mask is None else as_tensor("mask", mask).to(values.device)
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        yield values[rows], None if observed is None else observed[rows]


def _words(values: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
    """The entries as whole numbers [n, D], [n, 2 D] in double precision; one for all that is missing."""
    if values.dtype == torch.uint8:
        words = values.to(torch.int64)
        return {"uint8": words if observed is None else torch.where(observed, words, -1)}
    if observed is not None:
        values = torch.where(observed, values, torch.nan)
    found = {"float32": values.float()}
    if values.dtype == torch.float64:
        found["float64"] = values
    for name, numbers in found.items():
        # -0 becomes 0, and all that is not a number the same
        numbers = torch.where(torch.isnan(numbers), torch.nan, numbers + 0.0)
        # a column of a wider table counts as contiguous, with the stride of that table
        whole = numbers.clone(memory_format=torch.contiguous_format).reshape(-1)
        found[name] = whole.view(torch.int32).view(len(numbers), -1).to(torch.int64)
    return found


def _sum_of(words: Tensor, first_row: int) -> int:
    device, width = words.device, words.shape[1]
    rows = (words * _keys(width, device)).sum(1)
    numbers = torch.arange(first_row + 1, first_row + 1 + len(words), device=device)
    return int(_mixed(rows + numbers * _signed(_GOLDEN)).sum())


def _keys(width: int, device: torch.device) -> Tensor:
    numbers = torch.arange(1, width + 1, device=device)
    return _mixed(numbers * _signed(_GOLDEN)) | 1


def _mixed(numbers: Tensor) -> Tensor:
    """SplitMix64 of int64, whose sums and products wrap."""
    for shift, factor in ((30, _FACTORS[0]), (27, _FACTORS[1])):
        numbers = (numbers ^ _shifted(numbers, shift)) * _signed(factor)
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, count: int) -> Tensor:
    # torch shifts copies of the sign in
    return (numbers >> count) & ((1 << (64 - count)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
