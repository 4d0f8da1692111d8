"""The scale from residuals, and its annealing: what they are, in every step of `fit`."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast import GaussianLikelihood, fit, likelihoods, models
from rvi_fast.optim.residual_scale import ResidualScale
from rvi_fast.optim.shared_adam import SharedAdam, shared_adam
from rvi_fast.training.inputs.prepare import Inputs
from rvi_fast.training.loop import capture
from rvi_fast.training.loop.fused_step import fits
from rvi_fast.training.loop.step import AutogradStep, DirectStep, make_step
from rvi_fast.training.settings import Settings

N, D = 60, 5


def table():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) * torch.linspace(0.6, 1.8, D)
    return x.masked_fill(torch.rand(N, D, generator=generator) < 0.3, math.nan)


def make(law="gaussian", silent=False):
    """A small model in float64; a silent one decodes every row to 0."""
    generator = torch.Generator().manual_seed(1)
    model = models.rvi(
        N, D, latent_dim=3, hidden=(6,), groups=(4,), likelihood=law, generator=generator
    ).double()
    if silent:
        model.decoder[-1].weight.data.zero_()
        model.decoder[-1].bias.data.zero_()
    return model


def run(model, **options):
    chosen = {"epochs": 3, "batch_size": 16, "lr": 0.02, "standardize": False, "eval_every": 0}
    fit(model, table(), progress=False, **chosen | {"scale_update": "closed-form"} | options)
    return model


@pytest.mark.parametrize("kind", ["scalar", "feature"])
def test_the_scale_of_one_batch_is_the_root_mean_square_of_its_residuals(kind):
    x = table()
    model = make(GaussianLikelihood(D, scale=kind), silent=True)
    run(model, epochs=1, batch_size=N, lr=1e-9)
    expected = (x.square().nanmean(0) if kind == "feature" else x.square().nanmean()).sqrt()
    torch.testing.assert_close(model.likelihood.scale.detach(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("lr", [1e-9, 1e-7])
def test_the_scale_is_a_running_average_over_entries_whatever_the_learning_rate(lr):
    model, orders = make(GaussianLikelihood(D, scale="feature"), silent=True), []
    model.posterior.register_forward_pre_hook(lambda _, given: orders.append(given[0].clone()))
    run(model, epochs=30, lr=lr)
    variance, x = torch.ones(D, dtype=torch.float64), table()
    usual = 16 * (~x.isnan()).double().mean(0)
    for step, index in enumerate(orders, start=1):
        own = x[index]
        weight = (~own.isnan()).sum(0) / usual
        rate = torch.maximum(torch.tensor(1.0 / step), (usual / 500).clamp(max=0.02))
        growth = 1 + rate * weight * (own.square().nanmean(0).nan_to_num() / variance - 1)
        variance = variance * growth.clamp(0.25, 4.0)
    assert len(orders) == 120
    torch.testing.assert_close(
        model.likelihood.scale.detach(), variance.sqrt(), rtol=1e-4, atol=0.0
    )


def test_a_step_moves_a_variance_by_a_factor_of_four_at_most():
    rule = ResidualScale([torch.tensor(10.0), torch.tensor(10.0), torch.tensor(0.0)], 8)
    values, step = [torch.zeros(()) for _ in range(3)], torch.tensor([4])
    rule.step(values, [torch.tensor(-1e6), torch.tensor(1e6), torch.tensor(0.0)], step)
    assert step.item() == 5
    assert [value.item() for value in values] == pytest.approx([math.log(2), -math.log(2), 0.0])


def test_steps_by_hand_and_by_autograd_move_it_alike(monkeypatch):
    by_hand, models_ = make(), []

    def autograd(model, rows, shared, drawing=None):
        models_.append(type(make_step(model, rows, shared, drawing)))
        return AutogradStep(model, rows, shared, drawing)

    run(by_hand)
    monkeypatch.setattr(capture, "make_step", autograd)
    other = run(make())
    assert models_ == [DirectStep]
    for name, tensor in by_hand.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), tensor, msg=name)
    assert by_hand.likelihood.scale.item() != pytest.approx(1.0, rel=0.05)


def test_gaussian_columns_of_a_mixed_table_have_it_and_others_keep_adam():
    model = make(["gaussian", "student_t", "gaussian", "student_t", "gaussian"], silent=True)
    run(model, epochs=1, batch_size=N, lr=1e-6)
    gaussian, student = model.likelihood.parts
    expected = table()[:, [0, 2, 4]].square().nanmean(0).sqrt()
    torch.testing.assert_close(gaussian.scale.detach(), expected, rtol=1e-5, atol=0.0)
    moved = student.log_scale.detach().abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-6), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    "law", [likelihoods.StudentT(D), GaussianLikelihood(D, scale="fixed", initial_scale=0.5)]
)
def test_a_law_without_such_a_scale_is_trained_as_ever(law):
    models_ = [
        run(make(copy.deepcopy(law)), scale_update=update) for update in ("closed-form", "adam")
    ]
    for name, tensor in models_[0].named_parameters():
        assert torch.equal(models_[1].get_parameter(name), tensor), name


def test_an_average_over_steps_is_none_of_six_launches():
    model = make().float()
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior)
    others = [p for n, p in model.named_parameters() if not n.startswith("posterior.")]
    relays, scale = [model.posterior.relays], model.likelihood.log_scale
    plain = [p for p in others if p is not scale]
    rule = {"residual_scale": ResidualScale([torch.tensor(3.5)], 16)}
    inputs = Inputs(table().float(), None)
    for last, expected in (({}, True), (rule, False)):
        groups = [{"params": relays, "lr": 1e-3}, {"params": plain, "lr": 1e-3}]
        shared = shared_adam([*groups, {"params": [scale], "lr": 1e-3, **last}])
        assert fits(make_step(model, rows, shared), inputs) == expected
        shared.detach()


def test_a_state_with_it_survives_a_round_trip():
    def optimizer():
        value = nn.Parameter(torch.zeros(()))
        rule = ResidualScale([torch.tensor(4.0)], 8)
        return value, SharedAdam([{"params": [value], "lr": 0.0, "residual_scale": rule}])

    (value, first), (again, second) = optimizer(), optimizer()
    for number in range(3):
        value.grad = torch.tensor(float(number))
        first.step()
    second.load_state_dict(first.state_dict())
    again.data.copy_(value.detach())
    for one, own in ((value, first), (again, second)):
        one.grad = torch.tensor(-0.5)
        own.step()
    assert torch.equal(value, again)


def test_parameters_of_several_dtypes_are_refused_by_the_name_of_the_argument():
    model = make()
    model.decoder.float()
    with pytest.raises(ValueError, match=r"scale_update: expected 'adam' where .*'closed-form'"):
        run(model)


# annealing


def test_annealing_is_a_larger_scale_to_rows_and_decoder():
    model, x = make(), table()
    index, factor = torch.arange(N), 3.0
    model(index, x, kl_weight=factor**2, seed=1).loss.backward()
    others = [p for n, p in model.named_parameters() if n != "likelihood.log_scale"]
    annealed = [parameter.grad.to_dense() for parameter in others]
    model.zero_grad()
    model.likelihood.log_scale.data += math.log(factor)
    model(index, x, seed=1).loss.backward()
    for own, parameter in zip(annealed, others, strict=True):
        torch.testing.assert_close(own, factor**2 * parameter.grad.to_dense())


def test_the_factor_falls_geometrically_to_one_over_its_share_of_the_epochs():
    settings = Settings(scale_annealing=(3, 0.5), epochs=20, kl_weight=0.5)
    weights = [settings.kl_weight_in(epoch) for epoch in range(20)]
    assert weights[0] == pytest.approx(0.5 * 9)
    ratios = [later / earlier for earlier, later in pairwise(weights)]
    assert ratios[:10] == pytest.approx([9 ** (-0.1)] * 10)
    assert weights[10:] == [0.5] * 10
    assert Settings(epochs=20).kl_weight_in(0) == 1.0
    assert Settings(scale_annealing=(3, 0.0), epochs=20).kl_weight_in(0) == 1.0


def test_the_epoch_in_which_annealing_ends_is_what_a_resume_compares():
    begun = Settings(scale_annealing=(3, 0.5), epochs=20)
    assert begun.kept()["scale_annealing"] == [3.0, 10.0]
    Settings(scale_annealing=(3, 0.25), epochs=40).check_same(begun.kept(), "run")
    longer = Settings(scale_annealing=(3, 0.5), epochs=40)
    with pytest.raises(ValueError, match=r"scale_annealing: expected \[3.0, 10.0\].*\[3.0, 20.0\]"):
        longer.check_same(begun.kept(), "run")
    with pytest.raises(ValueError, match=r"scale_annealing: expected \[3.0, 10.0\].*None"):
        Settings(epochs=20).check_same(begun.kept(), "run")
