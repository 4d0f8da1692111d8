"""Walks that several programs share, and sums over what each of them has found."""

from __future__ import annotations

import triton
from torch import Tensor

from ._common import sum_pieces

# programs of a kernel where the batch is small: two to a processor of a large GPU, and no more, which
# would wait for a second turn. Sums have as many pieces as that takes.
PROGRAMS = 256
# reference.fused_step.SHARED_BLOCK
SHARED_BLOCK = 32


def share(steps: int, walks: int) -> int:
    """Steps of a walk that a program takes: then `PROGRAMS` do for all walks, or as many as walks."""
    return triton.cdiv(steps, max(1, PROGRAMS // walks))


def add_up(pieces: Tensor) -> Tensor:
    """The sum of pieces [n, ...], always in the same order; the piece itself where there is but one."""
    if len(pieces) == 1:
        return pieces[0]
    total = pieces.new_empty(pieces.shape[1:])
    if total.numel():
        sum_pieces(pieces, total)
    return total
