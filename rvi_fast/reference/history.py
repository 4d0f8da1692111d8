"""What rows that rest have missed of dense Adam's steps.

`clock` holds the steps taken and the steps taken when all rows were last up to date,
where `history` [steps, HISTORY_COLUMNS] float64 begins. Its entry for step tau is what a row last
updated at tau has missed since. In the missed step tau + j such a row moves by

    w_j m / (q_j sqrt(v) + eps),   w_j = lr_{tau+j} b1^j / (1 - b1^{tau+j}),
                                   q_j = b2^{j/2} / sqrt(1 - b2^{tau+j})

where each w_j is divided by the decay between tau and tau + j. With a number Q in the middle of the
q_j, r_j = q_j / Q and u = eps / (Q sqrt(v) + eps), between 0 and 1, the sum over j is

    m / (Q sqrt(v) + eps) sum_j w_j / (r_j + u (1 - r_j))

and each term a straight line between its ends u = 0 and u = 1 less what bends it, a geometric series
in the Chebyshev polynomials T_k of x = 2 u - 1:

    1 / (r + u (1 - r)) = (1 - u) / r + u - u (1 - u) (1 - r)^2 r^(-3/2) (1 + 2 sum_k t^k T_k(x)),
    t = (sqrt(r) - 1) / (sqrt(r) + 1)

The entry holds the sums over j of w_j and of w_j / q_j, the log of the decay up to tau, Q, and the
sums over j of the first HISTORY_TERMS coefficients. Cutting the series off there leaves a relative
error of the displacement of at most 1e-5 for betas up to (0.9, 0.95) and (0.99, 0.999), 1e-6 for
(0.9, 0.999), whatever sqrt(v), tau and j; where beta1 comes near beta2 up to 3e-2. It is nothing in
the limits of sqrt(v) far above and far below eps. Q is the geometric mean of the first q_j and one
farther on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._op_checks import HISTORY_COLUMNS, HISTORY_TERMS

WINDOW_TOLERANCE = 1e-9


def row_adam_window(beta1: float, beta2: float) -> int:
    """Missed steps that count: (beta1 / sqrt(beta2))^j falls below `WINDOW_TOLERANCE` after them."""
    rate = beta1 / math.sqrt(beta2)
    return max(1, math.ceil(math.log(WINDOW_TOLERANCE) / math.log(rate))) if rate > 0 else 1


def check_steps(index: Tensor, last: Tensor, clock: Tensor, history: Tensor, more: int) -> None:
    """Where the history is read and written: at the steps `last` [B] of rows `index`, and at `more`."""
    if type(clock) is not Tensor or clock.device.type != "cpu":  # without values, or dear to read
        return
    room = len(history) - more
    now, start = clock.tolist()
    if not 0 <= start <= now < start + room:
        raise ValueError(
            f"clock: expected 0 <= clock[1] <= clock[0] < clock[1] + {room}, as long as the history "
            f"is, got [{now}, {start}]"
        )
    wrong = (last < start) | (last > now)
    if bool(wrong.any()):
        first = int(wrong.to(torch.uint8).argmax())
        raise ValueError(
            f"row_step: expected {start} to {now}, got {int(last[first])} in row {int(index[first])}"
        )


def extend_history(
    history: Tensor, clock: Tensor, lr: Tensor, beta1: float, beta2: float, weight_decay: float
) -> None:
    """Adds the step just counted to what the rows last updated at earlier steps have missed."""
    step, now = clock[0].to(torch.float64), clock[0] - clock[1]
    log_decay = history[now - 1, 2] + torch.log1p(-lr * weight_decay)
    window = row_adam_window(beta1, beta2)
    missed = torch.arange(1, window + 1, device=history.device)
    tau = (now - missed).clamp(min=0)
    steps = missed.to(torch.float64)  # a power of integers would be float32
    weight = lr * beta1**steps / (1.0 - beta1**step) * torch.exp(history[tau, 2] - log_decay)
    weight = torch.where(missed <= now, weight, 0.0)
    root = (1.0 - beta2**step).sqrt()
    later = window // 8  # steps from the first missed one to the other in the middle's mean
    spread = root * (1.0 - beta2 ** (step + later)).sqrt()
    history[now - 1, 3] = (beta2 ** (0.5 * later + 1.0) / spread).sqrt()
    ratio = beta2 ** (0.5 * steps) / (root * history[tau, 3])
    quotient = (ratio.sqrt() - 1.0) / (ratio.sqrt() + 1.0)
    bend = weight * (1.0 - ratio) ** 2 * ratio**-1.5
    history[:, 0].index_add_(0, tau, weight)
    history[:, 1].index_add_(0, tau, weight * root * beta2 ** (-0.5 * steps))
    for k in range(HISTORY_TERMS):
        history[:, 4 + k].index_add_(0, tau, bend * quotient**k * (2.0 if k else 1.0))
    history[now, 2] = log_decay


def widened_history(history: Tensor) -> Tensor:
    """A history of version 0.1.0, [steps, 3], with the columns that came later; any other as it is.

    The steps that it holds keep the error they had there: the middle stands for all of them.
    """
    if history.shape[1] == HISTORY_COLUMNS:
        return history
    weight, inverse, _ = history.unbind(-1)
    middle = torch.where(inverse > 0, weight / inverse, 1.0)
    return torch.cat((history, middle[:, None], history.new_zeros(len(history), HISTORY_TERMS)), 1)
