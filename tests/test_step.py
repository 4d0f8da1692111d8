"""A step without autograd does what the step with it does."""

import functools
import itertools

import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.training.inputs.prepare import prepare
from rvi_fast.training.loop import step as steps
from rvi_fast.training.loop.capture import BatchStep

N, D, T = 50, 7, 6
MASK = torch.rand(N, D, generator=torch.Generator().manual_seed(0)) < 0.6
X = torch.randn(N, D, generator=torch.Generator().manual_seed(1)).double()


class OwnActivation(nn.Module):
    def forward(self, z):
        return z.tanh()


DECODERS = {
    "linear": lambda: nn.Linear(T, D),
    "one": lambda: nn.Sequential(nn.Linear(T, D)),
    "three": lambda: nn.Sequential(
        nn.Linear(T, 9), nn.ReLU(), nn.Linear(9, 5, bias=False), nn.ReLU(), nn.Linear(5, D)
    ),
    "skip": lambda: nn.Sequential(
        rvi_fast.models.Skip(
            nn.Sequential(nn.Linear(T, 9), nn.ReLU(), nn.Linear(9, 5, bias=False), nn.ReLU())
        ),
        nn.Linear(5 + T, D),
    ),
    "tanh": lambda: nn.Sequential(nn.Linear(T, 9), OwnActivation(), nn.Linear(9, D, bias=False)),
}


def make(
    decoder="three",
    groups=(5, 9),
    *,
    scale="scalar",
    mode="dense",
    law=None,
    change=lambda model: None,
):
    torch.manual_seed(3)
    model = rvi_fast.models.LatentModel(
        rvi_fast.RelayPosterior(N, T, groups=groups, sparse=True),
        DECODERS[decoder](),
        law or rvi_fast.GaussianLikelihood(D, scale=scale),
    ).double()
    change(model)
    rows = rvi_fast.optim.RowAdam(model.posterior, lr=0.01, mode=mode)
    others = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    return model, rows, shared_adam([{"params": others, "lr": 0.01}])


def train(step, model, rows, inputs, number=8, full_size=20):
    """`number` steps, every third on a short batch; everything that a step leaves behind."""
    values = []
    run = BatchStep(step, inputs, torch.device("cpu"), model.posterior.rows.dtype)
    for i in range(number):
        index = torch.randperm(N, generator=torch.Generator().manual_seed(i))
        run.seed.fill_(i)
        run.kl_weight.fill_(0.5 + i)
        values.append(run(index[: 7 if i % 3 == 2 else full_size], full_size))
    rows.flush()
    return {"objective": torch.stack(values), **model.state_dict()}


@pytest.mark.parametrize(
    ("decoder", "groups", "scale", "mode", "data"),
    [
        *itertools.product(DECODERS, [(5, 9)], ["scalar", "feature"], ["dense"], ["nan", "pixels"]),
        ("three", (), "fixed", "lazy", "nan"),
        ("three", (4,), "scalar", "row", "pixels"),
    ],
)
def test_direct_step_equals_autograd(decoder, groups, scale, mode, data):
    results = []
    for kind in ("direct", "autograd"):
        model, rows, shared = make(decoder, groups, scale=scale, mode=mode)
        inputs = prepare(model, X.masked_fill(~MASK, torch.nan))
        if data == "pixels":
            inputs = prepare(model, (X.abs() * 80).to(torch.uint8), MASK)
        step = steps.make_step(model, rows, shared)
        assert isinstance(step, steps.DirectStep)
        chain = isinstance(step.decoder, steps.LinearChain)
        assert chain == (decoder != "tanh")
        if kind == "autograd":
            step = steps.AutogradStep(model, rows, shared)
        results.append(train(step, model, rows, inputs))
    direct, autograd = results
    for name, value in autograd.items():
        torch.testing.assert_close(direct[name], value, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("decoder", ["linear", "three", "skip"])
@pytest.mark.parametrize("data", ["nan", "pixels"])
def test_zeros_and_ones_are_learned_as_autograd_learns_them(decoder, data):
    results, yes = [], X > 0
    for kind in ("direct", "autograd"):
        model, rows, shared = make(decoder, law=rvi_fast.likelihoods.Bernoulli(D))
        inputs = prepare(model, yes.double().masked_fill(~MASK, torch.nan))
        if data == "pixels":
            inputs = prepare(model, yes.to(torch.uint8) * 255, MASK)
        step = steps.make_step(model, rows, shared)
        assert isinstance(step.decoder, steps.LinearChain)
        if kind == "autograd":
            # the formula by itself, without the op
            model.likelihood.forward = functools.partial(
                rvi_fast.likelihoods.Elementwise.forward, model.likelihood
            )
            step = steps.AutogradStep(model, rows, shared)
        results.append(train(step, model, rows, inputs))
    direct, autograd = results
    for name, value in autograd.items():
        torch.testing.assert_close(direct[name], value, rtol=1e-9, atol=1e-11, msg=name)


def hook_on(module):
    module.register_forward_hook(lambda *_: None)


class OwnObjective(rvi_fast.models.LatentModel):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: hook_on(model),
        lambda model: hook_on(model.posterior),
        lambda model: model.posterior.relays.register_hook(lambda grad: None),
        lambda model: setattr(model, "__class__", OwnObjective),
    ],
    ids=["hook on the model", "hook on the posterior", "hook on a gradient", "own forward"],
)
def test_a_model_that_does_more_than_the_objective_takes_autograd(change):
    model, rows, shared = make(change=change)
    assert isinstance(steps.make_step(model, rows, shared), steps.AutogradStep)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: hook_on(model.decoder),
        lambda model: hook_on(model.decoder[2]),
        lambda model: model.decoder[0].weight.register_hook(lambda grad: None),
        lambda model: model.decoder[0].weight.requires_grad_(False),
        lambda model: nn.utils.parametrizations.weight_norm(model.decoder[0]),
        lambda model: setattr(model.likelihood, "checked", True),
    ],
    ids=["hook", "hook on a layer", "hook on a gradient", "frozen", "parametrized", "checked"],
)
def test_a_decoder_that_does_more_than_its_layers_takes_autograd(change):
    model, rows, shared = make(change=change)
    step = steps.make_step(model, rows, shared)
    assert isinstance(step.decoder, steps.DecoderByAutograd)
    frozen = model.decoder[0].weight.detach().clone()
    train(step, model, rows, prepare(model, X), number=2)
    trained = model.decoder[0].weight
    assert torch.equal(trained, frozen) == (not model.decoder[0].weight.requires_grad)


def test_frozen_relays_stay():
    model, rows, shared = make()
    model.posterior.relays.requires_grad_(False)
    before = model.posterior.relays.clone()
    step = steps.make_step(model, rows, shared)
    assert isinstance(step, steps.DirectStep)
    train(step, model, rows, prepare(model, X), number=2)
    assert torch.equal(model.posterior.relays, before)


def tied_layer(model):
    model.decoder[2] = nn.Linear(9, 9).double()
    model.decoder[4] = nn.Linear(9, D).double()
    model.decoder = nn.Sequential(
        model.decoder[0], nn.ReLU(), model.decoder[2], nn.ReLU(), model.decoder[2], nn.ReLU(),
        model.decoder[4],
    )  # fmt: skip


def tied_weight(model):
    tied_layer(model)
    again = nn.Linear(9, 9).double()
    again.weight = model.decoder[2].weight
    model.decoder[4] = again


def relays_in_the_decoder(model):
    model.decoder[0] = nn.Linear(T, 14).double()
    model.decoder[0].weight = model.posterior.relays
    model.decoder[2] = nn.Linear(14, 5).double()


@pytest.mark.parametrize("change", [tied_layer, tied_weight, relays_in_the_decoder])
def test_a_parameter_that_stands_in_two_places_gets_the_sum_of_both_gradients(change):
    inputs = prepare(make()[0], X, MASK)
    model, plain = make(change=change), make(change=change)
    got = train(steps.make_step(*model), model[0], model[1], inputs)
    expected = train(steps.AutogradStep(*plain), plain[0], plain[1], inputs)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], msg=name)
