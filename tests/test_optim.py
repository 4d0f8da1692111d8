import copy
import itertools

import pytest
import torch
from torch.optim import Adam

from rvi_fast import RelayPosterior, testing
from rvi_fast.optim import MODES, RowAdam
from rvi_fast.testing import assert_close, cotangents, training_step

NUM_DATA = 40


def make_posterior(num_data=NUM_DATA, seed=0, **options):
    torch.manual_seed(seed)
    return RelayPosterior(num_data, 5, groups=(6,), **{"sparse": True} | options)


def test_inference_mode_reads_do_not_disturb_training():
    posterior = make_posterior()
    optimizer = RowAdam(posterior)
    for step in range(3):
        training_step(posterior, optimizer, step)
        with torch.inference_mode():
            posterior.mean()


@pytest.mark.parametrize("mode", MODES)
def test_a_row_that_stands_more_than_once_is_stepped_from_the_sum_of_its_gradients(mode):
    made = [make_posterior(sparse=sparse) for sparse in (True, False)]
    optimizers = [RowAdam(posterior, 0.05, mode=mode) for posterior in made]
    for step in range(5):
        index = torch.randint(12, (30,), generator=torch.Generator().manual_seed(step))
        for posterior, optimizer in zip(made, optimizers, strict=True):
            training_step(posterior, optimizer, step, index)
            # two passes before one step: their gradients lie one after the other
            for part in index.split(11):
                torch.autograd.backward(
                    posterior(part, seed=3), cotangents(posterior(part, seed=3))
                )
            optimizer.step()
    for got, expected in zip(made[0].parameters(), made[1].parameters(), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_sparse_gradient_is_stepped_as_it_comes(monkeypatch):
    posterior = make_posterior()
    optimizer = RowAdam(posterior, 0.05)
    monkeypatch.setattr(torch.Tensor, "coalesce", None)  # which sorts, and on a GPU waits
    training_step(posterior, optimizer, 0, torch.tensor([5, 1, 5]))
    assert optimizer.num_steps == 1


@pytest.mark.parametrize("mode", ["lazy", "row"])
def test_rows_outside_the_batch_rest_with_dense_gradients(mode):
    posterior = make_posterior(sparse=False)
    optimizer = RowAdam(posterior, mode=mode)
    training_step(posterior, optimizer, 0, torch.tensor([5]))
    before = posterior.rows.detach().clone()
    with pytest.raises(IndexError, match="index"):
        posterior(torch.tensor([NUM_DATA]))
    posterior.mean(torch.tensor([5]))
    sample = posterior(torch.tensor([1, 2]))
    optimizer.zero_grad()  # between forward and backward, as many write it
    torch.autograd.backward(sample, cotangents(sample))
    optimizer.step()
    assert (posterior.rows != before).any(-1).nonzero().flatten().tolist() == [1, 2]


@pytest.mark.parametrize("mode", ["lazy", "row"])
def test_rows_that_only_other_reads_differentiate_step_alone(mode):
    posterior = make_posterior(sparse=False)
    optimizer = RowAdam(posterior, mode=mode)
    training_step(posterior, optimizer, 0, torch.tensor([5]))
    before = posterior.rows.detach().clone()
    optimizer.zero_grad()
    posterior.mean(torch.tensor([3])).square().sum().backward()
    optimizer.step()
    assert (posterior.rows != before).any(-1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("mode", ["lazy", "row"])
def test_skipped_step_does_not_count_as_a_visit(mode):
    posterior = make_posterior(sparse=False)
    optimizer, scaler = RowAdam(posterior, mode=mode), torch.amp.GradScaler("cpu")
    training_step(posterior, optimizer, 0, torch.tensor([5]))
    before = posterior.rows.detach().clone()
    for factor, index in ((torch.inf, 5), (1.0, 3)):
        optimizer.zero_grad()
        scaler.scale(factor * posterior(torch.tensor([index])).kl.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert (posterior.rows != before).any(-1).nonzero().flatten().tolist() == [3]


def test_gradient_of_a_full_table_read_steps_every_row():
    posterior = make_posterior(sparse=False)
    optimizer = RowAdam(posterior, mode="lazy")
    before = posterior.rows.detach().clone()
    (posterior(torch.tensor([1])).kl.sum() + posterior.mean().square().sum()).backward()
    optimizer.step()
    assert (posterior.rows != before).any(-1).all()


@pytest.mark.parametrize("mode", MODES)
def test_training_continues_bit_for_bit_from_a_state_dict(mode):
    posterior, fresh = make_posterior(), make_posterior(seed=1)
    optimizer, restored = RowAdam(posterior, 0.05, mode=mode), RowAdam(fresh, 0.1, mode=mode)
    for step in range(7):
        training_step(posterior, optimizer, step)
    saved = copy.deepcopy((posterior.state_dict(), optimizer.state_dict()))
    fresh.load_state_dict(saved[0])
    restored.load_state_dict(saved[1])
    for step in range(7, 20):
        training_step(posterior, optimizer, step)
        training_step(fresh, restored, step)
    assert torch.equal(posterior.mean(), fresh.mean())
    assert torch.equal(posterior.rows, fresh.rows)


@pytest.mark.parametrize(("first", "second"), itertools.product((Adam, RowAdam), repeat=2))
def test_state_dict_is_interchangeable_with_adam(first, second):
    def make(kind, posterior):
        return kind(posterior if kind is RowAdam else [posterior.rows], lr=0.05)

    posterior, reference = (make_posterior(dtype=torch.float64, sparse=False) for _ in range(2))
    optimizer, peer = make(first, posterior), make(Adam, reference)
    for step in range(20):
        if step == 10:
            state = copy.deepcopy(optimizer.state_dict())
            getattr(optimizer, "detach", lambda: None)()
            optimizer = make(second, posterior)
            optimizer.load_state_dict(state)
        training_step(posterior, optimizer, step)
        training_step(reference, peer, step)
    assert_close([posterior.mean()], [reference.mean()], rtol=1e-7)


def test_lr_schedulers_drive_it_and_resume():
    def make(**options):
        optimizer = RowAdam(make_posterior(), 0.08)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5, **options)

    optimizer, scheduler = make()
    for step in range(5):
        training_step(optimizer.posterior, optimizer, step)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    resumed = RowAdam(make_posterior(), 1.0)
    resumed.load_state_dict(optimizer.state_dict())
    torch.optim.lr_scheduler.StepLR(resumed, 2, gamma=0.5, last_epoch=5)
    assert resumed.param_groups[0]["lr"] == pytest.approx(0.01)


def test_scaler_skips_the_step_of_an_infinite_gradient():
    posterior = make_posterior(sparse=False)
    optimizer, scaler = RowAdam(posterior, 0.05), torch.amp.GradScaler("cpu")
    before = posterior.rows.detach().clone()
    for factor, moves in ((torch.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(factor * posterior(torch.tensor([3])).kl.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert int(optimizer.state[posterior.rows]["step"]) == moves
        assert bool((posterior.rows != before).any()) == moves


def test_new_optimizer_takes_over_the_rows():
    posterior, peer = make_posterior(), make_posterior(sparse=False)
    first, adam = RowAdam(posterior, 0.05), Adam([peer.rows], 0.05)
    for step in range(5):
        training_step(posterior, first, step)
        training_step(peer, adam, step)
    second = RowAdam(posterior, 0.05)
    torch.testing.assert_close(posterior.rows, peer.rows)
    with pytest.raises(RuntimeError, match="another RowAdam has taken over"):
        training_step(posterior, first, 6)
    training_step(posterior, second, 6)


def test_functional_call_leaves_both_tables_alone():
    posterior, twin = make_posterior(), make_posterior()
    for each in (posterior, twin):
        optimizer = RowAdam(each)
        for step in range(3):
            training_step(each, optimizer, step)
    mine = {name: torch.ones_like(value) for name, value in posterior.named_parameters()}
    torch.func.functional_call(posterior, mine, (torch.arange(NUM_DATA),))
    assert all((value == 1).all() for value in mine.values())
    assert torch.equal(posterior.mean(), twin.mean())


def test_rows_are_up_to_date_before_they_are_converted_and_a_new_optimizer_takes_them():
    posterior, twin = make_posterior(), make_posterior()
    for each in (posterior, twin):
        optimizer = RowAdam(each)
        for step in range(5):
            training_step(each, optimizer, step)
    posterior.to(torch.float64)
    optimizer.flush()
    assert torch.equal(posterior.rows, twin.rows.double())
    training_step(posterior, RowAdam(posterior), 5)


def test_table_of_another_dtype_than_the_moments_is_named():
    posterior = make_posterior()
    optimizer = RowAdam(posterior)
    posterior.to(torch.float64)
    with pytest.raises((TypeError, ValueError), match="RowAdam after"):
        training_step(posterior, optimizer, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight_decay", 0.1), ("amsgrad", True), ("maximize", True), ("betas", (0.9, 0.5))],
)
def test_loading_what_adam_alone_can_do_is_refused(name, value):
    posterior = make_posterior()
    optimizer = RowAdam(posterior)
    with pytest.raises(ValueError, match=name):
        optimizer.load_state_dict(Adam([posterior.rows], **{name: value}).state_dict())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"posterior": torch.nn.Linear(2, 2)},
            TypeError,
            "posterior: .*RelayPosterior, got Linear",
        ),
        ({"mode": "fast"}, ValueError, "mode: expected one of dense, lazy, row, got 'fast'"),
        ({"lr": -1.0}, ValueError, "lr: expected a finite number >= 0, got -1.0"),
        ({"lr": "high"}, TypeError, "lr: expected a number, got 'high'"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas: expected .*, got \(1.0, 0.9\)"),
        ({"eps": 0.0}, ValueError, "eps: expected a finite number > 0, got 0.0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay: expected"),
        (
            {"weight_decay": 0.1, "mode": "lazy"},
            ValueError,
            "weight_decay: expected 0 in mode 'lazy'",
        ),
        (
            {"weight_decay": 0.1, "decoupled_weight_decay": False},
            ValueError,
            "decoupled_weight_decay: expected True, got False: coupled",
        ),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        RowAdam(**{"posterior": make_posterior()} | options)


def test_bad_state_is_refused_and_changes_nothing():
    posterior = make_posterior()
    optimizer = RowAdam(posterior, mode="row")
    training_step(posterior, optimizer, 0)
    before = optimizer.state_dict()
    state = copy.deepcopy(before)
    with pytest.raises(ValueError, match="mode: expected 'row', got 'lazy'"):
        optimizer.load_state_dict(RowAdam(make_posterior(), mode="lazy").state_dict())
    other = RowAdam(make_posterior(num_data=9), mode="row").state_dict()
    with pytest.raises(ValueError, match=r"exp_avg: expected shape \[40, 24\], got \[9, 24\]"):
        optimizer.load_state_dict(other)
    del state["state"][0]["row_step"]
    with pytest.raises(ValueError, match="state_dict: expected an entry 'row_step'"):
        optimizer.load_state_dict(state)
    testing.assert_bit_equal(optimizer.state_dict()["state"][0], before["state"][0])
    with pytest.raises(ValueError, match="param_group: RowAdam takes the rows of one posterior"):
        optimizer.add_param_group({"params": [posterior.relays]})
