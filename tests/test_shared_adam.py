"""One buffer for all shared parameters, and torch's Adam to the letter."""

import copy

import pytest
import torch
from torch import nn

from rvi_fast.optim.shared_adam import SharedAdam, shared_adam

SHAPES = [(5, 3), (), (7,), (0, 4), (33,)]


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in SHAPES
    ]


def groups(values):
    return [{"params": values[:2], "lr": 0.1}, {"params": values[2:], "lr": 0.01}]


def take_steps(optimizer, values, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for value in values:
            value.grad = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        optimizer.step()


def test_steps_equal_torch():
    values, expected = parameters(), parameters()
    optimizer = SharedAdam(groups(values))
    take_steps(optimizer, values, 0, 9)
    take_steps(torch.optim.Adam(groups(expected)), expected, 0, 9)
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-14)


def test_weight_decay_is_that_of_adamw_in_its_group_alone():
    def own(values):
        first, second = groups(values)
        return [first, second | {"weight_decay": 0.25}]

    values, expected = parameters(), parameters()
    optimizer = SharedAdam(own(values))
    assert optimizer.weight_decay.tolist() == [0.0, 0.25]
    assert SharedAdam(groups(parameters())).weight_decay is None
    take_steps(optimizer, values, 0, 9)
    take_steps(torch.optim.AdamW(own(expected), weight_decay=0.0), expected, 0, 9)
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-14)


def test_a_missing_gradient_counts_as_zero():
    values, expected = parameters(), parameters()
    optimizer, other = SharedAdam(groups(values)), torch.optim.Adam(groups(expected))
    take_steps(optimizer, values, 0, 2)
    take_steps(other, expected, 0, 2)
    for value in values:
        value.grad = None
    for value in expected:
        value.grad = torch.zeros_like(value)
    optimizer.step()
    other.step()
    for value, wanted in zip(values, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-14)


def test_detached_parameters_lie_where_they_lay():
    values = parameters()
    before = [value.data_ptr() for value in values]
    alias = values[0].data
    optimizer = SharedAdam(groups(values))
    take_steps(optimizer, values, 0, 3)
    trained = [value.detach().clone() for value in values]
    optimizer.detach()
    assert [value.data_ptr() for value in values] == before
    assert all(torch.equal(*pair) for pair in zip(values, trained, strict=True))
    assert torch.equal(alias, trained[0])


def test_state_survives_a_round_trip():
    values, again = parameters(), parameters()
    optimizer, other = SharedAdam(groups(values)), SharedAdam(groups(again))
    take_steps(optimizer, values, 0, 3)
    with torch.no_grad():
        for value, copy_ in zip(values, again, strict=True):
            copy_.copy_(value)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(optimizer, values, 3, 6)
    take_steps(other, again, 3, 6)
    assert all(torch.equal(*pair) for pair in zip(values, again, strict=True))


def test_a_state_that_does_not_fit_changes_nothing():
    values = parameters()
    optimizer = SharedAdam(groups(values))
    take_steps(optimizer, values, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())
    wrong = copy.deepcopy(before)
    wrong["state"][4]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match="exp_avg"):
        optimizer.load_state_dict(wrong)
    for position, entries in before["state"].items():
        for name, value in entries.items():
            assert torch.equal(optimizer.state_dict()["state"][position][name], value)


def test_parameters_of_several_kinds_take_torch():
    mixed = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    assert type(shared_adam([{"params": mixed, "lr": 0.1}])) is torch.optim.Adam
    assert type(shared_adam([{"params": mixed[:1], "lr": 0.1}])) is SharedAdam


def test_parameters_of_several_kinds_are_decayed_alike():
    def mixed():
        return [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]

    values = mixed()
    sole = [
        {"params": values[:1], "lr": 0.1, "weight_decay": 0.5},
        {"params": values[1:], "lr": 0.2},
    ]
    optimizer = shared_adam(sole)
    for value in values:
        value.grad = torch.zeros_like(value)
    optimizer.step()
    assert [value.tolist() for value in values] == [pytest.approx([0.95] * 2), [1.0] * 2]


def test_sums_begin_where_they_are_told_to_and_are_waited_for_in_the_step():
    values, expected = parameters(), parameters()
    optimizer, own = SharedAdam(groups(values)), SharedAdam(groups(expected))
    calls = []

    def reduce(gradients):
        calls.append("begun")

        def wait():
            calls.append("done")
            gradients.mul_(2)  # as another process with the same gradients

        return wait

    optimizer.reduce = reduce
    for number in range(4):
        for value, other in zip(values, expected, strict=True):
            value.grad = torch.full_like(value, 1.0 + number)
            other.grad = torch.full_like(other, 2.0 + 2 * number)
        if number % 2:
            optimizer.begin()
            calls.append("rows")
            for value in values:  # what comes later belongs to the next step
                value.grad = None
        optimizer.step()
        own.step()
    assert calls == ["begun", "done", "begun", "rows", "done"] * 2
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=0)


def test_where_there_is_nobody_else_nothing_is_begun():
    values, expected = parameters(), parameters()
    optimizer = SharedAdam(groups(values))
    optimizer.begin()  # before there is any gradient
    take_steps(optimizer, values, 0, 3)
    take_steps(SharedAdam(groups(expected)), expected, 0, 3)
    assert all(map(torch.equal, values, expected))
