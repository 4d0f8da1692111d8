"""A step of six launches does what the step of any model does; the launches are plain torch here."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.reference import fused_step as six
from rvi_fast.training.inputs.feed import HostInputs, Visit
from rvi_fast.training.inputs.prepare import Inputs
from rvi_fast.training.loop import fused_step
from rvi_fast.training.loop.ahead import STEPS
from rvi_fast.training.loop.capture import BatchStep
from rvi_fast.training.loop.fused_step import FusedStep, fits
from rvi_fast.training.loop.step import make_step

N, D, T, B = 60, 21, 6, 16
CPU = torch.device("cpu")


def make(
    law="gaussian", hidden=(7, 8), groups=(5, 9), form="linear", dtype=torch.float64, **options
):
    torch.manual_seed(3)
    model = rvi_fast.models.rvi(
        N, D, latent_dim=T, hidden=hidden, groups=groups, likelihood=law, form=form
    ).to(dtype)
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior, lr=3e-2, **options)
    others = [p for n, p in model.named_parameters() if not n.startswith("posterior")]
    groups = [{"params": [model.posterior.relays], "lr": 2e-2}, {"params": others, "lr": 1e-2}]
    return model, rows, shared_adam(groups)


def data(law="gaussian", masked=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(N, D, dtype=dtype, generator=generator)
    mask = torch.rand(N, D, generator=generator) < 0.6 if masked else None
    return Inputs(x.round() if law == "bernoulli" else x, mask)


def batch(number):
    index = torch.randperm(N, generator=torch.Generator().manual_seed(number))
    return index[: 5 if number % 3 == 2 else B]


def fused(made, inputs):
    step = make_step(*made)
    assert fits(step, inputs) or made[0].posterior.relays.dtype == torch.float64
    return FusedStep(step, inputs, B, six)


def take_steps(run, first, last):
    """What each step gave; every third batch is short."""
    found = []
    for number in range(first, last):
        run.seed.fill_(number)
        run.kl_weight.fill_(0.3 + number)
        found.append(run(batch(number), B).clone())
    return torch.stack(found)


def left_behind(model, rows, shared):
    """All that the next step depends on."""
    return {
        **rows.raw_tables(),
        **rows.raw_state(),
        **{name: tensor.detach() for name, tensor in model.named_parameters() if name != "rows"},
        **{
            f"{name}.{entry}": value
            for name, parameter in model.named_parameters()
            for entry, value in shared.state.get(parameter, {}).items()
        },
    }


def assert_same_steps(made, other, inputs, steps=7):
    plain = BatchStep(make_step(*made), inputs, CPU, made[0].posterior.relays.dtype)
    expected = take_steps(plain, 0, steps)
    torch.testing.assert_close(take_steps(fused(other, inputs), 0, steps), expected)
    found = left_behind(*other)
    for name, value in left_behind(*made).items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert made[1].num_steps == other[1].num_steps == steps


@pytest.mark.parametrize("law", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_six_launches_are_the_step_of_any_model(law, masked):
    assert_same_steps(make(law), make(law), data(law, masked))


@pytest.mark.parametrize("hidden", [(), (9,), (7, 8, 9)])
def test_any_number_of_hidden_layers_is_stepped(hidden):
    assert_same_steps(make(hidden=hidden), make(hidden=hidden), data())


@pytest.mark.parametrize(("groups", "form"), [((), "linear"), ((5, 9), "cluster")])
def test_other_posteriors_are_stepped(groups, form):
    options = {"groups": groups, "form": form}
    assert_same_steps(make(**options), make(**options), data())


def test_a_scale_that_is_not_learned_stays():
    law = rvi_fast.GaussianLikelihood(D, scale="fixed", initial_scale=0.7)
    made = [make(copy.deepcopy(law)) for _ in range(2)]
    assert_same_steps(*made, data())
    torch.testing.assert_close(made[1][0].likelihood.scale.item(), 0.7)


def test_layers_without_bias_are_stepped():
    made = []
    for _ in range(2):
        model, *_ = make()
        for layer in (model.decoder[0], model.decoder[-1]):
            layer.bias = None
        rows = rvi_fast.optim.RowAdam(model.posterior, lr=3e-2, weight_decay=0.1)
        others = [p for n, p in model.named_parameters() if n != "posterior.rows"]
        made.append((model, rows, shared_adam([{"params": others, "lr": 1e-2}])))
    assert_same_steps(*made, data())


def test_learning_rates_that_change_are_followed():
    made, other, inputs = make(), make(), data()
    plain = BatchStep(make_step(*made), inputs, CPU, torch.float64)
    six_launches = fused(other, inputs)
    for number, lr in enumerate((1e-2, 1e-2, 3e-2, 0.0, 2e-2)):
        for model, rows, shared in (made, other):
            rows.param_groups[0]["lr"] = 2 * lr
            shared.param_groups[1]["lr"] = lr
        for run in (plain, six_launches):
            take_steps(run, number, number + 1)
    found = left_behind(*other)
    for name, value in left_behind(*made).items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_batches_told_of_beforehand_are_those_asked_for_one_by_one():
    sizes = [B] * (2 * STEPS + 3) + [5]
    rows = torch.randint(0, N, (sum(sizes),), generator=torch.Generator().manual_seed(0))
    rows = [part.unique() for part in rows.split(sizes)]  # of many sizes, each row once
    for batches in (rows, [*torch.arange(N).split(B)] * 40):
        results = []
        for told in (False, True):
            run = fused(make(), data())
            visits = iter([Visit(index, 0) for index in batches])
            if told:
                visits = run.ahead(visits)
            results.append(torch.stack([run(index, B).clone() for index, _ in visits]))
        assert len(results[0]) == len(batches)
        assert torch.equal(*results)


def test_what_a_step_gives_is_there_for_64_steps():
    run, inputs = fused(make(), data()), [batch(number) for number in range(STEPS)]
    given = [run(index, B) for index in inputs]
    again = fused(make(), data())
    for index, result in zip(inputs, given, strict=True):
        assert torch.equal(again(index, B), result)


@pytest.mark.parametrize("block_rows", [None, 7])
def test_fit_trains_in_six_launches_as_it_does_without(monkeypatch, block_rows):
    x, steps = data().x, []

    class Watched(FusedStep):
        def launch(self, index, full_size):
            steps.append(len(index))
            return super().launch(index, full_size)

    def trained():
        torch.manual_seed(0)
        model = rvi_fast.models.rvi(N, D, latent_dim=T, hidden=(7, 8), groups=(5, 9))
        history = rvi_fast.fit(
            model, x, epochs=12, batch_size=7, block_rows=block_rows, progress=False
        )
        return dict(history), model.state_dict()

    expected = trained()
    monkeypatch.setattr(fused_step, "FusedStep", Watched)
    monkeypatch.setattr(fused_step, "launches_on", lambda _: six)
    history, state = trained()
    assert steps == ([7] * 8 + [4]) * 12
    for name, values in expected[0].items():
        assert history[name] == pytest.approx(values, rel=1e-4), name
    for name, value in expected[1].items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=name)
