"""Steps that rows have missed: exact in the places where a gradient is about eps, too."""

import math

import pytest
import torch
from torch.optim import Adam

from rvi_fast import RelayPosterior
from rvi_fast.optim import RowAdam
from rvi_fast.reference import HISTORY_COLUMNS, widened_history
from rvi_fast.testing import assert_bit_equal

EPS = 1e-8


def change(step, *optimizers):
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.01 * (1.0 + 0.5 * math.sin(step)) / (1.0 + step / 50)


def displacement_error(betas, last, gaps):
    """Largest relative error of what rows move in `gaps` steps after step `last`, against Adam.

    Row 1 + i rests for gaps[i] steps, and row 0 is trained all along. The gradients of the elements
    run from 1e-2 eps to 1e8 eps.
    """
    torch.manual_seed(0)
    posterior = RelayPosterior(1 + len(gaps), 12, groups=(6,), sparse=True, dtype=torch.float64)
    optimizer = RowAdam(posterior, betas=betas, eps=EPS)
    table = torch.nn.Parameter(posterior.rows.detach().clone())
    peer = Adam([table], betas=betas, eps=EPS)
    size = EPS * torch.logspace(-2, 8, table.shape[1], dtype=torch.float64)
    before, errors = None, []
    for step in range(1, last + max(gaps) + 1):
        resting = step > last
        grad = torch.zeros_like(table)
        grad[: 1 if resting else None] = size * (1.0 + 0.5 * math.cos(step))
        change(step, optimizer, peer)
        index = torch.arange(1 if resting else len(table))
        optimizer.step_batch(index, grad[index])
        table.grad = grad
        peer.step()
        if step == last:
            before = table.detach().clone()
        if step - last in gaps:
            row = 1 + gaps.index(step - last)
            optimizer.before_read(torch.tensor([row]))
            moved, expected = (t.detach()[row] - before[row] for t in (posterior.rows, table))
            errors.append(float((moved / expected - 1.0).abs().max()))
    return max(errors)


@pytest.mark.parametrize("last", [1, 10, 1000])
@pytest.mark.parametrize(
    ("betas", "bound"),
    [
        ((0.9, 0.999), 1e-6),
        ((0.9, 0.99), 1e-6),
        ((0.99, 0.999), 1e-5),
        ((0.5, 0.999), 1e-6),
        ((0.9, 0.95), 1e-5),
        ((0.5, 0.5), 3e-2),
        ((0.9, 0.9), 3e-2),
    ],
)
def test_rows_rest_as_under_adam_whatever_the_size_of_their_gradients(betas, bound, last):
    assert displacement_error(betas, last, (1, 2, 5, 20, 100, 400)) <= bound


def test_rows_without_momentum_do_not_move():
    posterior = RelayPosterior(3, 4, groups=(5,), sparse=True, dtype=torch.float64)
    optimizer = RowAdam(posterior, betas=(0.0, 0.9))
    optimizer.step_batch(torch.arange(3), torch.ones_like(posterior.rows))
    before = posterior.rows.detach().clone()
    for _ in range(3):
        optimizer.step_batch(torch.tensor([0]), torch.ones_like(before[:1]))
    optimizer.flush()
    assert torch.equal(posterior.rows[1:], before[1:])


def trained(steps):
    torch.manual_seed(0)
    posterior = RelayPosterior(9, 4, groups=(5,), sparse=True, dtype=torch.float64)
    optimizer = RowAdam(posterior, lr=0.01)
    for step in range(steps):
        index = torch.tensor([step % 2, 2 + step % 3])
        optimizer.step_batch(index, torch.full((2, posterior.rows.shape[1]), 1e-3 * (1 + step)))
    return posterior, optimizer


@pytest.mark.parametrize("later", [0, 1, 30])
def test_a_history_of_version_0_1_0_is_taken_on(later):
    """Far above eps the three columns of 0.1.0 say all there is; what comes later is exact."""
    (posterior, optimizer), (other, restored) = trained(40), trained(0)
    state = {name: value.clone() for name, value in optimizer.raw_state().items()}
    state["history"] = state["history"][:, :3]
    for name, table in restored.raw_tables().items():
        table.copy_(optimizer.raw_tables()[name])
    restored.load_raw_state(state)
    for step in range(later):
        for racer in (optimizer, restored):
            racer.step_batch(torch.tensor([step % 3]), torch.full_like(other.rows[:1], 1e-3))
    optimizer.flush()
    restored.flush()
    torch.testing.assert_close(other.rows, posterior.rows, rtol=1e-5, atol=0.0)


def test_a_history_of_today_is_kept_to_the_bit():
    history = torch.rand(7, HISTORY_COLUMNS, dtype=torch.float64)
    assert_bit_equal({"history": widened_history(history)}, {"history": history})


def test_rows_read_one_at_a_time_are_those_read_together():
    (posterior, optimizer), (other, _) = trained(40), trained(40)
    for row in range(len(posterior.rows)):
        posterior.mean(torch.tensor([row]))
    assert (optimizer.raw_tables()["row_step"] == 40).all()
    other.mean()
    assert torch.equal(posterior.rows, other.rows)
