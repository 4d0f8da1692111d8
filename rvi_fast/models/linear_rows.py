"""A table with missing entries as linear-Gaussian models read it: some rows at a time, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.pixels import fractions, observed

# entries of a batch of matrices at a time: 4 MiB of float64, which caches hold
_BLOCK = 1 << 19
# rows at a time
_FEWEST, _MOST = 16, 8192


class Rows(NamedTuple):
    """Standardised entries [B, D], 0 where missing; and 1 where observed, else 0 [B, D]; float64."""

    x: Tensor
    known: Tensor


@dataclass(frozen=True)
class Data:
    """Rows of a table, in units of its features' spreads.

    Args:
        x: [N, D], NaN = missing.
        mask: bool [N, D], true = observed; all that is not NaN if None.
        centre, spread: [D] float64: entries count as (x - centre) / spread.
        order: the rows [M] that count; all if None.
    """

    x: Tensor
    mask: Tensor | None
    centre: Tensor
    spread: Tensor
    order: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows that count."""
        return len(self.x) if self.order is None else len(self.order)

    def blocks(self, entries: int) -> Iterator[Rows]:
        """All rows, as many at a time as matrices of so many entries, one for each, leave room for."""
        for part in parts(self.num_rows, entries):
            place = part if self.order is None else self.order[part]
            known = observed(self.x[place], None if self.mask is None else self.mask[place])
            x = (fractions(self.x[place], torch.float64) - self.centre) / self.spread
            yield Rows(torch.where(known, x, 0.0), known.to(torch.float64))


def parts(num_rows: int, entries: int) -> Iterator[slice]:
    """Slices of rows with a matrix of so many entries each."""
    size = max(_FEWEST, min(_MOST, _BLOCK // max(entries, 1)))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)


def opened(x: Tensor, mask: Tensor | None, *, scalar: bool) -> tuple[Data, Tensor]:
    """The rows that show anything, in units of their own spread; and which features do, bool [D].

    Args:
        x: [N, D], NaN = missing.
        mask: bool [N, D], true = observed.
        scalar: one spread for all features, not one for each.
    """
    features, fixed = x.shape[1], torch.Generator().manual_seed(0)
    count, total, square = torch.zeros(3, features, dtype=torch.float64, device=x.device)
    shown, hashes = [], []
    code = torch.randint(1 << 40, (features,), generator=fixed, device="cpu")
    code = code.to(x.device, torch.float64)
    plain = Data(x, mask, torch.zeros_like(count), torch.ones_like(count))
    for rows in plain.blocks(features):
        shown.append(rows.known.any(1))
        # sums of whole numbers below 2^53: equal patterns have equal ones
        hashes.append(rows.known @ code)
        count += rows.known.sum(0)
        total += rows.x.sum(0)
    centre = total / count.clamp_min(1.0)
    for rows in plain.blocks(features):
        square += (rows.x - centre * rows.known).square().sum(0)
    if scalar:
        spread = (square.sum() / count.sum().clamp_min(1.0)).sqrt().expand(features)
    else:
        spread = (square / count.clamp_min(1.0)).sqrt()
    # what rounding leaves of a constant feature is no spread
    flat = spread <= 1e-12 * centre.abs()
    spread = torch.where(flat | (spread == 0), 1.0, spread)
    order = _order(torch.cat(shown), torch.cat(hashes))
    return Data(x, mask, centre, spread, order), count > 0


def _order(shown: Tensor, hashes: Tensor) -> Tensor | None:
    """The rows that show anything, alike ones side by side where that saves half of the matrices."""
    ordered, order = hashes.sort(stable=True)
    if 2 * int((ordered[1:] == ordered[:-1]).sum()) >= len(hashes):
        return order[shown[order]]
    return None if bool(shown.all()) else shown.nonzero()[:, 0]


def patterns(known: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Of rows [B, D] the different ones [U, D], which of them each row is, and how many are.

    Alike ones are those that follow one another. Where that saves less than half, each row is its own,
    and None is said of which.
    """
    alike = (known[1:] == known[:-1]).all(1)
    if 2 * int(alike.sum()) < len(known):
        return known, None, known.new_ones(len(known))
    first = torch.cat([alike.new_ones(1), ~alike])
    place = first.cumsum(0) - 1
    return known[first], place, torch.bincount(place).to(known.dtype)
