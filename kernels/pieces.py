"""Walks that several programs share, and sums over what each of them has found."""

from __future__ import annotations

import triton
from torch import Tensor

from ._common import sum_pieces

# programs of a kernel where the batch is small: two to a processor of a large GPU, and no more, which
# would wait for a second turn. Sums have as many pieces as that takes.
PROGRAMS = 256


def share(steps: int, walks: int) -> int:
    """Steps of a walk that a program takes: then `PROGRAMS` do for all walks, or as many as walks."""
    return triton.cdiv(steps, max(1, PROGRAMS // walks))


def pieces_of(total: Tensor, pieces: int) -> Tensor:
    """Room for `pieces` parts of a sum; the sum itself where there is but one."""
    return total if pieces == 1 else total.new_empty((pieces, *total.shape))


def add_up(pieces: Tensor, total: Tensor) -> None:
    """Writes the sum of what `pieces_of` has made room for to `total`."""
    if pieces is not total and total.numel():
        sum_pieces(pieces, total)
