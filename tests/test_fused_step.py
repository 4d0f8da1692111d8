"""A step of six launches does what the step of any model does; the launches are plain torch here."""

import copy

import numpy as np
import pytest
import torch
from common import Rows
from launches import Graph, capturable, stand_in_for_cuda
from torch import nn

import rvi_fast
from rvi_fast.optim.shared_adam import shared_adam
from rvi_fast.reference import fused_step as six
from rvi_fast.reference.laws import LAWS
from rvi_fast.training.inputs.feed import HostInputs, Visit
from rvi_fast.training.inputs.prepare import Inputs
from rvi_fast.training.loop import fused_step
from rvi_fast.training.loop.ahead import STEPS, Ahead
from rvi_fast.training.loop.capture import BatchStep, CapturedStep
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
    return Inputs(x if LAWS[law].scaled else x.round(), mask)


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


@pytest.mark.parametrize("law", LAWS)
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


def test_weight_decay_of_a_group_is_stepped():
    made = []
    for _ in range(2):
        model, *_ = make()
        rows = rvi_fast.optim.RowAdam(model.posterior, lr=3e-2)
        weights = [p for p in model.decoder.parameters() if p.dim() == 2]
        others = [p for n, p in model.named_parameters() if n != "posterior.rows" and p.dim() < 2]
        groups = [
            {"params": [model.posterior.relays], "lr": 2e-2},
            {"params": weights, "lr": 1e-2, "weight_decay": 3.0},
            {"params": others, "lr": 1e-2},
        ]
        made.append((model, rows, shared_adam(groups)))
    assert_same_steps(*made, data())


def test_learning_rates_that_change_are_followed():
    made, other, inputs = make(), make(), data()
    plain = BatchStep(make_step(*made), inputs, CPU, torch.float64)
    six_launches = fused(other, inputs)
    for number, lr in enumerate((1e-2, 1e-2, 3e-2, 0.0, 2e-2)):
        for _, rows, shared in (made, other):
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
            results.append(torch.stack([run(index, B).clone() for index, *_ in visits]))
        assert len(results[0]) == len(batches)
        assert torch.equal(*results)


def test_what_a_step_gives_is_there_for_64_steps():
    run, inputs = fused(make(), data()), [batch(number) for number in range(STEPS)]
    given = [run(index, B) for index in inputs]
    again = fused(make(), data())
    for index, result in zip(inputs, given, strict=True):
        assert torch.equal(again(index, B), result)


@pytest.mark.parametrize("masked", [False, True])
def test_a_captured_step_is_the_same_bit_for_bit(monkeypatch, masked):
    stand_in_for_cuda(monkeypatch)
    inputs, found, graphs = data(masked=masked), [], []
    monkeypatch.setattr(
        CapturedStep,
        "_capture",
        lambda self, *size, own=CapturedStep._capture: (
            graphs.append(own(self, *size)) or graphs[-1]
        ),
    )
    for captured in (False, True):
        made = make()
        run = FusedStep(make_step(*made), inputs, B, capturable(six))
        run = CapturedStep(run, made[1], 100) if captured else run
        given = []
        for epoch in range(5):
            run.seed.fill_(epoch)
            run.kl_weight.fill_(0.5 + epoch)
            made[1].param_groups[0]["lr"] = made[2].param_groups[1]["lr"] = 1e-2 * epoch
            order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
            visits = iter([Visit(index, 0) for index in order.split(B)])
            given += [run(index, B).clone() for index, *_ in run.ahead(visits)]
        assert made[1].num_steps == len(given) == 5 * 4
        found.append({"given": torch.stack(given), **left_behind(*made)})
    # one for each size of batch, of the six launches and nothing else
    assert [len(graph.calls) for graph in Graph.made] == [6, 6]
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name


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


def landed(inputs):
    """The same data, on the host."""
    found = HostInputs(Rows(inputs), CPU, inputs.x.dtype)
    found.reserve(B)
    return found


@pytest.mark.parametrize("kind", ["numbers", "pixels and a mask"])
@pytest.mark.parametrize("captured", [False, True])
def test_six_launches_on_data_of_the_host_are_the_same_bit_for_bit(monkeypatch, kind, captured):
    stand_in_for_cuda(monkeypatch)
    inputs = data(masked=kind != "numbers", dtype=torch.float32)
    if kind != "numbers":
        inputs = Inputs((255 * inputs.x).to(torch.uint8), inputs.mask)
    found = []
    for given in (inputs, landed(inputs)):
        made = make(dtype=torch.float32)
        step = make_step(*made)
        assert fits(step, given)
        run = FusedStep(step, given, B, capturable(six))
        run = CapturedStep(run, made[1], 100) if captured else run
        results = []
        for epoch in range(5):
            run.seed.fill_(epoch)
            order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
            with given.feed(iter([Visit(index, 0) for index in order.split(B)])) as fed:
                results += [run(index, B).clone() for index, *_ in run.ahead(fed)]
        found.append({"given": torch.stack(results), **left_behind(*made)})
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name
    # of each size and place, and nothing in them but the six
    assert [len(graph.calls) for graph in Graph.made] == [6] * 5 * captured


@pytest.mark.parametrize("block_rows", [None, 7])
def test_fit_on_data_of_the_host_is_that_on_the_same_in_memory(monkeypatch, tmp_path, block_rows):
    stand_in_for_cuda(monkeypatch)
    monkeypatch.setattr(fused_step, "launches_on", lambda _: capturable(six))
    np.save(tmp_path / "x.npy", data(dtype=torch.float32).x.numpy())
    found = []
    for mode in (None, "r"):
        torch.manual_seed(0)
        model = rvi_fast.models.rvi(N, D, latent_dim=T, hidden=(7, 8), groups=(5, 9))
        x = np.load(tmp_path / "x.npy", mmap_mode=mode)
        options = {"epochs": 4, "batch_size": 7, "block_rows": block_rows, "progress": False}
        found.append((rvi_fast.fit(model, x, **options), model.state_dict()))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        assert torch.equal(found[1][1][name], value), name
    assert all(len(graph.calls) == 6 for graph in Graph.made)


def of_pixels(inputs):
    return Inputs((255 * inputs.x).to(torch.uint8), None)


FITTING = {
    "the standard kind": {},
    "128 latents": {"latent_dim": 128},
    "layers of 128": {"hidden": (128, 128, 128)},
    "a group of 1024": {"groups": (1024,)},
    "no group": {"groups": ()},
    "clusters": {"form": "cluster"},
    **{f"the {law} law": {"likelihood": law} for law in LAWS if law != "gaussian"},
}
NOT_FITTING = {
    "129 latents": {"latent_dim": 129},
    "a layer of 129": {"hidden": (129,)},
    "four hidden layers": {"hidden": (4, 4, 4, 4)},
    "a group of 1025": {"groups": (1025,)},
    "mixture": {"form": "mixture"},
    "counts": {"likelihood": "poisson"},
}


def fitting(
    inputs,
    *,
    mode="dense",
    change=lambda model: None,
    between=lambda model, rows, shared: None,
    **options,
):
    """Whether the step of a float32 model is one of six launches."""
    given = {"latent_dim": T, "hidden": (7, 8), "groups": (5, 9), **options}
    model = rvi_fast.models.rvi(N, D, **given)
    change(model)
    model.posterior.sparse = True
    rows = rvi_fast.optim.RowAdam(model.posterior, mode=mode)
    others = [p for n, p in model.named_parameters() if n != "posterior.rows" and p.requires_grad]
    shared = shared_adam([{"params": others, "lr": 1e-2}])
    between(model, rows, shared)
    return fits(make_step(model, rows, shared), inputs)


@pytest.mark.parametrize("options", FITTING.values(), ids=FITTING)
@pytest.mark.parametrize("kind", ["numbers", "pixels", "mask"])
def test_what_fits_is_stepped_in_six_launches(options, kind):
    inputs = data(masked=kind == "mask", dtype=torch.float32)
    assert fitting(of_pixels(inputs) if kind == "pixels" else inputs, **options)


@pytest.mark.parametrize("options", NOT_FITTING.values(), ids=NOT_FITTING)
def test_what_is_too_large_or_another_model_is_not(options):
    assert not fitting(data(dtype=torch.float32), **options)


def around(decoder):
    """The decoder with its last layer's weights for latents as well."""
    return nn.Sequential(
        rvi_fast.models.Skip(decoder[:-1]), nn.Linear(decoder[-1].in_features + T, D)
    )


CHANGES = {
    "float64": nn.Module.double,
    "a hook": lambda model: model.decoder.register_forward_hook(lambda *_: None),
    "relays at rest": lambda model: model.posterior.relays.requires_grad_(False),
    "a layer at rest": lambda model: model.decoder[0].requires_grad_(False),
    "a way around hidden layers": lambda model: setattr(model, "decoder", around(model.decoder)),
    "another activation": lambda model: model.decoder.__setitem__(1, nn.Tanh()),
    "rows of a larger table": lambda model: setattr(model.posterior, "first_row", 7),
    "rows in any order": lambda model: setattr(
        model.posterior, "row_numbers", torch.arange(N).flip(0)
    ),
    "a fused law of one's own": lambda model: setattr(model.likelihood, "law", "own"),
    "a likelihood that checks": lambda model: setattr(model.likelihood, "checked", True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_asks_for_more_is_not(change):
    assert not fitting(data(dtype=torch.float32), change=change)


BETWEEN = {
    "rows asked for before they change": lambda model, rows, shared: setattr(
        rows, "before_write", print
    ),
    "other betas": lambda model, rows, shared: shared.add_param_group(
        {"params": [nn.Parameter(torch.zeros(1))], "betas": (0.8, 0.9)}
    ),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_optimisers_that_do_more_are_not(between):
    assert not fitting(data(dtype=torch.float32), between=between)


@pytest.mark.parametrize("mode", ["lazy", "row"])
def test_other_modes_of_rows_are_not(mode):
    assert not fitting(data(dtype=torch.float32), mode=mode)


def test_data_that_no_kernel_reads_in_place_are_not():
    inputs = data(masked=True, dtype=torch.float32)
    assert not fitting(Inputs(inputs.x.mT.contiguous().mT, None))
    assert not fitting(Inputs(inputs.x, inputs.mask.mT.contiguous().mT))
    assert not fitting(data())  # float64
    # those of the host, where they do not land in fixed places
    assert not fitting(HostInputs(Rows(inputs), CPU, torch.float32))


def test_rows_in_host_memory_under_a_gpu_are_not(monkeypatch):
    monkeypatch.setattr(rvi_fast.RelayPosterior, "staged", True)
    assert not fitting(data(dtype=torch.float32))


def test_autocast_keeps_the_step_of_any_model():
    with torch.autocast("cpu", torch.bfloat16):
        assert not fitting(data(dtype=torch.float32))


def test_other_devices_keep_the_step_of_any_model():
    assert fused_step.launches_on(CPU) is None
    made = make(dtype=torch.float32)
    assert fused_step.fused_step(make_step(*made), data(dtype=torch.float32), B) is None


@pytest.mark.parametrize(("slots", "first_row"), [(False, 0), (False, 7), (True, 0), (True, 7)])
def test_launches_are_told_by_the_tensor_that_numbers_are_the_same(slots, first_row):
    ahead = Ahead(B, CPU, torch.float32, (lambda rows: rows + 100) if slots else None, first_row)
    batches = [batch(number) for number in range(4)]
    for visit in ahead.feed([Visit(rows, 0) for rows in batches]):
        ahead.load(visit.rows)
        found = ahead.batch(len(visit.rows))
        found.places.copy_(ahead.order[ahead.position, : len(visit.rows)][0])  # by a launch
        assert (found.rows is found.places) == (not slots)
        assert (found.keys is found.rows) == (not first_row)
        assert torch.equal(found.rows, visit.rows)
        assert torch.equal(found.places, visit.rows + 100 * slots)
        assert torch.equal(found.keys, visit.rows + first_row)
        ahead.result()
        ahead.position += 1
