"""Batches, epochs and learning rates with which a table of any size trains."""

from __future__ import annotations

import math
from typing import NamedTuple

from .. import _checks

# what is taken where a table is small
_LR, _BATCH, _LEAST_BATCH = 0.01, 256, 16
# steps in all, and visits of each row, at least
_STEPS, _VISITS = 2000, 50
# steps in an epoch from which on batches grow instead, and the largest batch
_STEPS_IN_AN_EPOCH, _LARGEST_BATCH = 128, 4096
# how far the decoder may walk between two visits of a row: lr times steps in an epoch
_WALK = 0.6
# visits of a row are that of dense Adam when there are so many steps between them
_USUAL_STEPS = 20


class Recipe(NamedTuple):
    """How a table is trained: arguments of `fit`."""

    batch_size: int
    epochs: int
    lr: float
    posterior_lr: float


def recipe(
    num_data: int,
    *,
    batch_size: int | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    posterior_lr: float | None = None,
) -> Recipe:
    """What `fit` is asked for a table of so many rows, where it is not said.

    Between two visits of a row the decoder makes as many steps as an epoch has. Where it walks too far
    meanwhile, what the row has learned is about a decoder that is no more; the decoder then learns to
    leave rows alone, and the model collapses to the means of columns. So lr times the steps of an
    epoch stays below 0.6, and batches grow with the table. A visit of a row moves it by
    lr sqrt((1 - b2^k) / (1 - b2)) in dense Adam, with k steps between visits and b2 = 0.999: the
    learning rate of rows makes that no more than it is for k = 20.

    Args:
        num_data: N, rows of the table.
        batch_size: rows in a batch. None: a quarter of the rows, between 16 and 256; from 32,768 rows
            on a 128th, up to 4,096.
        epochs: visits of each row. None: at least 50, and so many that 2,000 steps are made.
        lr: learning rate of decoder and scale. None: 0.6 over the steps of an epoch, 0.01 at most.
        posterior_lr: learning rate of rows and relays. None: `lr` where that is given; else see above,
            0.01 at most.

    Raises:
        ValueError, TypeError: an argument is out of its range.

    Example:
        >>> recipe(1000)
        Recipe(batch_size=250, epochs=500, lr=0.01, posterior_lr=0.01)
        >>> [recipe(10**6).batch_size, round(recipe(10**6).lr, 5)]
        [4096, 0.00245]
    """
    num_data = _checks.check_positive_int("num_data", num_data)
    if batch_size is None:
        # a table of a few hundred rows still has some steps in an epoch
        batch_size = min(_BATCH, max(_LEAST_BATCH, num_data // 4))
        batch_size = max(batch_size, min(_LARGEST_BATCH, num_data // _STEPS_IN_AN_EPOCH))
    steps = -(-num_data // _checks.check_positive_int("batch_size", batch_size))
    if epochs is None:
        epochs = max(_VISITS, -(-_STEPS // steps))
    if lr is None:
        lr = min(_LR, _WALK / steps)
        if posterior_lr is None:
            posterior_lr = min(_LR, _LR * math.sqrt(_moved(_USUAL_STEPS) / _moved(steps)))
    return Recipe(batch_size, epochs, lr, lr if posterior_lr is None else posterior_lr)


def _moved(steps: int) -> float:
    """The square of what a visit moves a row by, over its learning rate; (1 - b2) times it."""
    return -math.expm1(steps * math.log(0.999))
