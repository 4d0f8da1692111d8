"""Log-likelihood of rows of a table given the last layer, and its gradients, in pieces: two launches.

Math:
    That of `linear_log_likelihood` for one sample and a scale exp(log_scale), with g the gradient of the
    log-likelihood of every row: grad_log_scale = s grad_s.

Shapes:
    hidden [B, H] and weight [D, H], H up to 256, bias [D] or None: float32; x [N, D] uint8 (counts as
    x / 255), float16, bfloat16, float32 or float64; index [B] int64; log_scale None, [] or [D] float32;
    mask None (NaN in x marks what is missing), bool [N, D], or int32 [N, ceil(D / 32)] with entry d in
    bit d % 32 of word d // 32. log_prob [p, B] and grad_hidden [p, B, H] are pieces, to be added up by
    who reads them; so are the gradients of weight, bias and log_scale, n of [P] in `grads`.

Saved:
    The inputs alone: the second launch computes the output again.

Traffic:
    That of `linear_log_likelihood`, without a batch of x and mask written and read before: 4 D bytes of
    a float32 row, once in each launch. Pieces are written and never zeroed: 4 p (H + 1) for a row,
    4 D (H + 1) for each piece of the second launch.

Limits:
    Of rows outside the table log_prob and grad_hidden are 0, and they are in no gradient; they raise
    `row_error` unless they are -1, which stands for no row. A piece belongs to a program, or to the
    programs of one block: p and the counts of the second launch depend on B, D, H, the law and the kind
    of device alone (`weights.tile_of`), and on n where that is too small to fill a GPU. A log_scale of
    one number has one gradient for each program: they fill its block, `SHARED_BLOCK` to a piece, and
    their count is told with a minus sign.

Source:
    `rvi_fast.reference.fused_step.likelihood_rows` and `likelihood_features`.
"""

from __future__ import annotations

import triton
from torch import Tensor

from .data import kind_of_scale
from .likelihood_launches import Walk, inputs_of, over_features, over_rows, walk_over_rows
from .pieces import SHARED_BLOCK
from .weights import WIDE_LAW


def likelihood_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    index: Tensor,
    log_scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    grad: float,
) -> tuple[Tensor, Tensor]:
    """`reference.fused_step.likelihood_rows`."""
    inputs = inputs_of(hidden[None], weight, bias, x, index, log_scale, mask, law)
    log_prob, grad_hidden = over_features(grad, inputs)
    return log_prob.squeeze(1), grad_hidden.squeeze(1)


def likelihood_features(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    index: Tensor,
    log_scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    grad: float,
    grads: Tensor,
    places: tuple[int | None, int | None, int | None],
) -> tuple[int, int, int]:
    """`reference.fused_step.likelihood_features`; no more pieces than `grads` has room for."""
    if all(place is None for place in places):
        return 0, 0, 0
    walk = _walk(hidden, weight, log_scale, law, places[2] is not None, len(grads))
    parts = [None if place is None else grads[:, place:] for place in places]
    over_rows(
        walk,
        grad,
        inputs_of(hidden[None], weight, bias, x, index, log_scale, mask, law),
        parts,
        piece_stride=grads.shape[1],
    )
    counts = [0 if place is None else walk.pieces for place in places]
    if counts[2] and kind_of_scale(log_scale) == "scalar":
        counts[2] = -_pieces_of_numbers(walk)
    return counts[0], counts[1], counts[2]


def pieces_of_features(
    hidden: Tensor, weight: Tensor, log_scale: Tensor | None, mask: Tensor | None
) -> int:
    """`reference.fused_step.pieces_of_features`."""
    # of the law that has most
    walk = _walk(hidden, weight, log_scale, WIDE_LAW, log_scale is not None, None)
    scalar = kind_of_scale(log_scale) == "scalar"
    return max(walk.pieces, _pieces_of_numbers(walk) if scalar else 0)


def _walk(
    hidden: Tensor,
    weight: Tensor,
    log_scale: Tensor | None,
    law: str,
    need_scale: bool,
    room: int | None,
) -> Walk:
    """The walk over rows that fits into `room` pieces."""
    batch, hidden_dim = hidden.shape
    sizes = batch, len(weight), hidden_dim, law
    walk = walk_over_rows(*sizes, most=room)
    if room is None or not need_scale or kind_of_scale(log_scale) != "scalar":
        return walk
    most = room * SHARED_BLOCK // walk.programs
    if most == 0:
        raise ValueError(
            f"grads: expected at least {triton.cdiv(walk.programs, SHARED_BLOCK)} pieces for a "
            f"log_scale of one number, got {room}"
        )
    return walk_over_rows(*sizes, most=min(room, most))


def _pieces_of_numbers(walk: Walk) -> int:
    """Pieces that one number of each program takes, `SHARED_BLOCK` to a piece."""
    return triton.cdiv(walk.pieces * walk.programs, SHARED_BLOCK)
