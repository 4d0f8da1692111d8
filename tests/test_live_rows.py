"""Readers of the rows, gradients of rows that have moved, learning rates, clipping."""

import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim import Adam, SparseAdam
from torch.optim.swa_utils import AveragedModel

from rvi_fast import RelayPosterior, optim
from rvi_fast.optim import MODES, RowAdam, row_adam
from rvi_fast.testing import training_step

NUM_DATA = 40


def make_posterior(**options):
    torch.manual_seed(0)
    return RelayPosterior(NUM_DATA, 5, groups=(6,), **{"sparse": True} | options)


def averaged(posterior):
    average = AveragedModel(posterior, avg_fn=lambda mean, value, count: value)
    for _ in range(2):
        average.update_parameters(posterior)
    return average.module.rows


@pytest.mark.parametrize(
    "read",
    [
        averaged,
        lambda posterior: dict(posterior.named_parameters())["rows"],
        lambda posterior: parameters_to_vector(posterior.parameters())[-NUM_DATA * 24 :],
        lambda posterior: load(save(posterior.state_dict()))["rows"],
        lambda posterior: posterior.rows.data,
        lambda posterior: torch.stack([posterior.rows, posterior.rows])[1],
        lambda posterior: torch.tensor(posterior.rows.tolist()),
    ],
)
def test_every_reader_sees_what_adam_would_show(read):
    posterior, peer = make_posterior(), make_posterior(sparse=False)
    optimizer, adam = RowAdam(posterior, 0.05), Adam([peer.rows], 0.05)
    for step in range(9):
        training_step(posterior, optimizer, step)
        training_step(peer, adam, step)
    torch.testing.assert_close(read(posterior).reshape(NUM_DATA, -1), peer.rows.detach())


def test_a_step_of_a_loop_flushes_nothing(monkeypatch):
    posterior = make_posterior()
    optimizer, index = RowAdam(posterior), torch.tensor([3, 1])
    monkeypatch.setattr(
        RowAdam, "flush", lambda self: pytest.fail("all rows were brought up to date")
    )
    for step in range(3):
        training_step(posterior, optimizer, step, index)
        posterior.mean(index), posterior.std(index)
        optim.clip_grad_norm_(posterior.parameters(), 1.0)
        posterior.zero_grad()


def test_the_optimiser_gives_a_plain_parameter_back():
    posterior = make_posterior()
    RowAdam(posterior).detach()
    assert type(posterior.rows) is nn.Parameter
    assert not vars(posterior.rows)


# A backward after the step


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sparse", [True, False])
def test_backward_through_rows_that_have_been_stepped_is_refused(mode, sparse):
    posterior = make_posterior(sparse=sparse)
    optimizer = RowAdam(posterior, mode=mode)
    z, kl = posterior(torch.tensor([1, 2]))
    kl.sum().backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.square().sum().backward()


def test_catch_up_between_forward_and_backward_disturbs_no_gradient():
    posterior = make_posterior()
    optimizer = RowAdam(posterior)
    for step in range(3):
        training_step(posterior, optimizer, step)
    first, second = posterior(torch.tensor([1, 2])), posterior(torch.tensor([30]))
    posterior.mean()
    (first.kl.sum() + second.kl.sum()).backward()
    first = posterior(torch.tensor([1])).kl.sum()
    first.backward()
    optimizer.step()


# Learning rates


@pytest.mark.parametrize("lr", [-0.01, math.nan, math.inf])
@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("mode", MODES)
def test_learning_rates_out_of_range_are_refused_before_anything_moves(lr, kind, mode):
    posterior = make_posterior()
    with pytest.raises(ValueError, match="lr: expected a finite number >= 0"):
        RowAdam(posterior, kind(lr), mode=mode)
    optimizer = RowAdam(posterior, mode=mode)
    training_step(posterior, optimizer, 0)
    before = posterior.rows.detach().clone()
    optimizer.param_groups[0]["lr"] = kind(lr)
    with pytest.raises(ValueError, match="lr: expected a finite number >= 0"):
        training_step(posterior, optimizer, 1)
    assert torch.equal(posterior.rows, before)
    assert optimizer.num_steps == 1


def test_a_learning_rate_on_a_device_is_reported_when_all_rows_are_read(monkeypatch):
    posterior = make_posterior()
    optimizer = RowAdam(posterior, torch.tensor(0.05))
    monkeypatch.setattr(row_adam, "_READABLE", ())
    for lr in (0.05, -0.05, 0.05):
        optimizer.param_groups[0]["lr"].fill_(lr)
        training_step(posterior, optimizer, 0)
    with pytest.raises(ValueError, match=r"lr: expected .* taken with lr = 0"):
        posterior.mean()
    assert posterior.mean().isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("eps", -1.0), ("betas", (0.9, 1.5)), ("weight_decay", 2e3), ("mode", "lazy")],
)
def test_options_that_are_changed_later_are_checked(name, value):
    posterior = make_posterior()
    optimizer = RowAdam(posterior)
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"{name}"):
        training_step(posterior, optimizer, 0)
    assert optimizer.num_steps == 0


def test_rows_are_flushed_with_the_betas_that_they_missed_steps_under():
    posterior, peer = (
        make_posterior(sparse=sparse, dtype=torch.float64) for sparse in (True, False)
    )
    optimizers = RowAdam(posterior, 0.05, eps=1e-12), Adam([peer.rows], 0.05, eps=1e-12)
    for step in range(12):
        for optimizer, module in zip(optimizers, (posterior, peer), strict=True):
            if step == 6:
                optimizer.param_groups[0]["betas"] = (0.5, 0.9)
            training_step(module, optimizer, step, torch.tensor([step, step + 12]))
    torch.testing.assert_close(posterior.rows, peer.rows, rtol=1e-7, atol=1e-9)


# Presence


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("mode", ["lazy", "row"])
def test_a_row_of_the_batch_is_stepped_though_its_gradient_is_zero(mode, sparse):
    posterior, peer = make_posterior(sparse=sparse), make_posterior()
    optimizer, sparse_adam = RowAdam(posterior, 0.05, mode=mode), SparseAdam([peer.rows], 0.05)
    for factor in (1.0, 0.0):
        for module, each in ((posterior, optimizer), (peer, sparse_adam)):
            each.zero_grad()
            (factor * module(torch.tensor([5]), seed=1).kl.sum()).backward()
            each.step()
    torch.testing.assert_close(posterior.rows, peer.rows)
    assert (posterior.rows - make_posterior().rows).any(-1).nonzero().flatten().tolist() == [5]


# Clipping


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_sparse_and_dense_gradients_are_clipped_by_one_norm(norm_type):
    posterior, peer = make_posterior(), make_posterior(sparse=False)
    for module in (posterior, peer):
        sample = module(torch.tensor([3, 1, 3, 3]), seed=1)
        (sample.kl.sum() + sample.z.square().sum()).backward()
    norm = optim.clip_grad_norm_(posterior.parameters(), 0.1, norm_type)
    expected = nn.utils.clip_grad_norm_(peer.parameters(), 0.1, norm_type)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(posterior.rows.grad.to_dense(), peer.rows.grad)
    torch.testing.assert_close(posterior.relays.grad, peer.relays.grad)
    posterior.relays.grad[0, 0] = math.nan
    before = posterior.rows.grad.values().clone()
    with pytest.raises(RuntimeError, match="finite norm"):
        optim.clip_grad_norm_(posterior.parameters(), 0.1, error_if_nonfinite=True)
    assert torch.equal(posterior.rows.grad.values(), before)


# Other packages


def test_every_key_of_a_state_dict_is_a_parameter_or_a_buffer():
    # accelerate's loaders look for it there
    posterior = make_posterior()
    assert posterior.state_dict().keys() <= posterior._parameters.keys() | posterior._buffers.keys()


def test_distributed_data_parallel_takes_a_sparse_posterior(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        posterior, twin = make_posterior(), make_posterior()
        wrapped = nn.parallel.DistributedDataParallel(posterior)
        optimizers = RowAdam(posterior, 0.05), RowAdam(twin, 0.05)
        for step in range(3):
            for module, optimizer in zip((wrapped, twin), optimizers, strict=True):
                optimizer.zero_grad()
                sample = module(torch.tensor([step, 7]), seed=step)
                (sample.kl.sum() + sample.z.sum()).backward()
                optimizer.step()
        torch.testing.assert_close(posterior.rows, twin.rows)
    finally:
        torch.distributed.destroy_process_group()
