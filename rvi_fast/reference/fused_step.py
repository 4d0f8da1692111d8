"""The six launches that a training step of a small batch is on a GPU.

For a relay posterior whose rows dense `row_adam` drives, hidden layers with ReLU between, and a
likelihood that is fused with the last layer. Each row stands once in the batch, and one sample is drawn:

    catch_up_and_select -> relay_decode -> likelihood_rows -> likelihood_features -> backward_to_rows
    -> finish_step

What all rows share lies in one buffer of P numbers, in which each tensor begins at a multiple of
`SHARED_BLOCK`; its gradient is written in pieces, to `grads` [n, P], of which a tensor has as many as
its writer says, and `finish_step` adds them up. Where several processes share it, `sum_gradients` does,
and they sum what it gives before `finish_step`.

Each process has its rows of a batch alone. So that launches are of as many rows in all of them, -1
stands for no row in `index` and `order`: what is computed for it is 0, and it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from .._op_checks import HISTORY_COLUMNS, layout_of
from ._common import rows_at, spread, those_there
from .adam_step import adam_step
from .bits import pack_bits
from .history import extend_history
from .linear_log_likelihood import linear_log_likelihood_bwd
from .relay_sample import relay_sample_bwd, relay_sample_fwd, selected
from .row_adam import row_adam_catch_up, row_adam_step

# elements between which tensors of the shared buffer begin
SHARED_BLOCK = 32


def catch_up_and_select(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    clock: Tensor,
    history: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    latent_dim: int,
    groups: list[int],
    kept: list[int],
    order: Tensor | None = None,
    position: Tensor | None = None,
    key_index: Tensor | None = None,
) -> Tensor:
    """`row_adam_catch_up` for rows `index` [B], in place, and their kept bits [B, words] after it.

    With `order` [R, B or more] and `position`, int64 [1] from 0 to R - 1, the first B numbers in that
    row of `order` are written to `index` first: batches of many steps are on the device beforehand.
    `key_index` is that of `row_adam_catch_up`.
    """
    if order is not None and position is not None:
        index.copy_(order[position, : len(index)][0])
    there, index, key_index = those_there(index, key_index)
    state = (rows, exp_avg, exp_avg_sq, row_step, index, clock, history)
    row_adam_catch_up(*state, beta1, beta2, eps, key_index)
    layout = layout_of(latent_dim, tuple(groups), tuple(kept), "linear")
    words = [pack_bits(marks) for marks in selected(rows_at(rows, index), layout)]
    bits = torch.cat([*words, index.new_empty((len(index), 0), dtype=torch.int32)], -1)
    return spread(bits, there)


def relay_decode(
    rows: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise_index: Tensor | None,
    bits: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    groups: list[int],
    kept: list[int],
    form: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """z [B, T], kl [B], mu [B, T], and what each hidden layer gives: relu(W h + b), [B, H] each.

    `bits` are those of `catch_up_and_select`; weights [H, T], [H', H], ... and biases [H] or None.
    """
    there, index, noise_index = those_there(index, noise_index)
    z, kl, _, mean = relay_sample_fwd(
        rows, relays, index, seed, None, groups, kept, form, 1, noise_index
    )
    hidden, last = [], z[0]
    for weight, bias in zip(weights, biases, strict=True):
        last = linear(last, weight, bias).relu()
        hidden.append(last)
    given = [spread(values, there) for values in (z[0], kl, mean, *hidden)]
    return given[0], given[1], given[2], given[3:]


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
    """Pieces of the log-likelihood, [p, B], and of the gradient of hidden, [p, B, H].

    Args:
        hidden: input of the last layer, [B, H].
        weight: [D, H].
        bias: [D].
        x: data [N, D], NaN = missing where there is no mask; uint8 counts as x / 255.
        index: rows of the batch in x and mask, [B].
        log_scale: logarithm of the scale, [] or [D]; None for a law without one.
        mask: bool [N, D], or packed words [N, ceil(D / 32)].
        law: as in `linear_log_likelihood_bwd`.
        grad: gradient of the log-likelihood of each row.
    """
    log_prob, grad_hidden, *_ = _likelihood(
        hidden, weight, bias, x, index, log_scale, mask, law, grad
    )
    return log_prob, grad_hidden


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
    """Writes the gradients of weight, bias and log_scale to `grads` [n, P].

    Args:
        places: element at which weight, bias and log_scale begin; None for what has no gradient.
        others: as in `likelihood_rows`.

    Returns:
        How many pieces of each were written; 0 for what has no gradient. Negative for a log_scale of
        one number if its pieces are blocks of parts, all to be added up; this one writes the number.
    """
    _, _, *found, grad_scale = _likelihood(
        hidden, weight, bias, x, index, log_scale, mask, law, grad
    )
    grad_log_scale = grad_scale if log_scale is None else grad_scale * log_scale.exp()
    for part, place in zip((*found, grad_log_scale), places, strict=True):
        _put(grads, place, part)
    weight_place, bias_place, scale_place = (int(place is not None) for place in places)
    return weight_place, bias_place, scale_place


def pieces_of_features(
    hidden: Tensor, weight: Tensor, log_scale: Tensor | None, mask: Tensor | None
) -> int:
    """Pieces of `grads` that `likelihood_features` fills if it has them, for tensors of these shapes."""
    return 1


def _likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    index: Tensor,
    log_scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    grad: float,
) -> tuple[Tensor, ...]:
    scale, own_mask = log_scale if log_scale is None else log_scale.exp(), None
    there, index = those_there(index)
    if mask is not None:
        own_mask = mask[index]
    log_prob, grad_hidden, *found = linear_log_likelihood_bwd(
        hidden.new_full((1, len(index)), grad),
        hidden[None, there],
        weight,
        bias,
        x[index],
        scale,
        own_mask,
        law,
        True,
        True,
        scale is not None,
    )
    return *(spread(part[0], there)[None] for part in (log_prob, grad_hidden)), *found


def pieces_for(batch: int) -> int:
    """Pieces of `grads` that `backward_to_rows` writes for a batch of so many rows."""
    return 1


def backward_to_rows(
    grad_hidden: Tensor,
    hidden: Sequence[Tensor],
    z: Tensor,
    mean: Tensor,
    bits: Tensor,
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    relays: Tensor,
    index: Tensor,
    seed: Tensor,
    noise_index: Tensor | None,
    weights: Sequence[Tensor],
    kl_weight: Tensor,
    full_size: int,
    clock: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    groups: list[int],
    kept: list[int],
    form: str,
    grads: Tensor,
    places: Sequence[int | None],
) -> list[int]:
    """Backward through hidden layers and posterior, and the step of dense Adam for the batch's rows.

    Rows are up to date with `clock`, as `catch_up_and_select` leaves them, and are then up to date with
    the step after it; the clock itself stays. The gradient of each row's KL divergence is
    kl_weight / full_size.

    Args:
        grad_hidden: pieces of the gradient of the last hidden layer's output, [p, B, H]; of z where
            there is no hidden layer.
        hidden, z, mean: from `relay_decode`.
        noise_index: numbers [B] that key noise and rounding of bfloat16 moments; else `index` does.
        kl_weight: one element.
        places: element at which the relays, and weight and bias of each hidden layer, begin in `grads`;
            None for what has no gradient.

    Returns:
        How many pieces of each were written; 0 for what has no gradient.
    """
    there, index, noise_index = those_there(index, noise_index)
    z, mean, bits = z[there], mean[there], bits[there]
    hidden, grad = [values[there] for values in hidden], grad_hidden.sum(0)[there]
    found: list[Tensor] = []
    before = [z, *hidden][: len(hidden)]
    for weight, given, after in zip(weights[::-1], before[::-1], hidden[::-1], strict=True):
        grad = torch.where(after <= 0, 0.0, grad)
        found = [grad.mT @ given, grad.sum(0), *found]
        grad = grad @ weight
    grad_kl = (kl_weight / full_size).to(grad.dtype).expand(len(index))
    grad_rows, grad_relays = relay_sample_bwd(
        grad[None],
        grad_kl,
        rows,
        relays,
        index,
        seed,
        None,
        bits,
        mean,
        groups,
        kept,
        form,
        True,
        True,
        noise_index,
    )
    for part, place in zip((grad_relays, *found), places, strict=True):
        _put(grads, place, part)
    # of copies: `finish_step` counts up
    history = torch.zeros((2, HISTORY_COLUMNS), dtype=torch.float64, device=clock.device)
    clock = clock[:1].repeat(2)
    row_adam_step(
        rows,
        exp_avg,
        exp_avg_sq,
        row_step,
        index,
        grad_rows,
        clock,
        history,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        "dense",
        key_index=noise_index,
    )
    return [int(place is not None) for place in places]


def sum_gradients(grads: Tensor, parts: Tensor) -> None:
    """The first piece of `grads` becomes the gradient that `finish_step` would make of all its pieces.

    Args:
        grads, parts: as in `finish_step`.
    """
    grads[0] = _gradient(grads, parts)


def finish_step(
    params: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grads: Tensor,
    parts: Tensor,
    group: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    clock: Tensor,
    history: Tensor,
    row_lr: Tensor,
    row_beta1: float,
    row_beta2: float,
    row_weight_decay: float,
    log_prob: Tensor,
    kl: Tensor,
    kl_weight: Tensor,
    result: Tensor,
    position: Tensor | None = None,
    weight_decay: Tensor | None = None,
) -> None:
    """Adam for what all rows share, the clock of the rows, and the objective of the batch; in place.

    Args:
        params, exp_avg, exp_avg_sq: [P].
        grads: pieces of the gradient, [n, P].
        parts: how many of them each `SHARED_BLOCK` elements have, int32 [P / SHARED_BLOCK]. Negative
            where all elements of all pieces add up to the gradient of the first element alone.
        group: which learning rate is theirs, int32 [P / SHARED_BLOCK].
        step: steps taken, int64, one element or one for each group, all equal; all count up.
        lr: learning rate of each group, float64 [G].
        clock, history: as in `row_adam_step`, with room for one more step; the clock counts up.
        row_lr: learning rate of the rows, float64, one element.
        log_prob: pieces of the log-likelihood, [p, B].
        kl: [B].
        kl_weight: one element.
        result: [3], becomes the means kl_weight kl - log_prob, kl and log_prob.
        position: int64 [1]; result is [R, 3] then, of which row `position` becomes them, and position
            counts up, from R - 1 to 0.
        weight_decay: decay of each group, decoupled, float64 [G]; none if not given.
    """
    whole = _gradient(grads, parts)
    decays = [0.0] * len(lr) if weight_decay is None else weight_decay.tolist()
    for number, (rate, decay) in enumerate(zip(lr, decays, strict=True)):
        own = (group == number).repeat_interleave(SHARED_BLOCK)
        values, moment, square = params[own], exp_avg[own], exp_avg_sq[own]
        taken = step[:1].clone()
        adam_step(values, moment, square, whole[own][None], taken, rate, beta1, beta2, eps, decay)
        params[own], exp_avg[own], exp_avg_sq[own] = values, moment, square
    step += 1
    clock[0] += 1
    extend_history(history, clock, row_lr.reshape(()), row_beta1, row_beta2, row_weight_decay)
    divergence, likelihood = kl.mean(), log_prob.sum(0).mean()
    objective = kl_weight.reshape(()) * divergence - likelihood
    means = torch.stack((objective, divergence, likelihood))
    if position is None:
        result.copy_(means)
        return
    result[position] = means
    position.copy_((position + 1) % len(result))


def _put(grads: Tensor, place: int | None, gradient: Tensor) -> None:
    if place is not None:
        grads[0, place : place + gradient.numel()] = gradient.reshape(-1)


def _gradient(grads: Tensor, parts: Tensor) -> Tensor:
    blocks = grads.unflatten(1, (-1, SHARED_BLOCK))
    whole = grads.new_zeros(blocks.shape[1:])
    for piece, values in enumerate(blocks):
        whole += torch.where(parts.abs()[:, None] > piece, values, 0.0)
    number = torch.zeros_like(whole)
    number[:, 0] = whole.sum(1)
    return torch.where(parts[:, None] < 0, number, whole).flatten()
