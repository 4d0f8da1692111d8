"""Training: the same run every time, in one piece or killed and resumed, or an error in words."""

import copy
import multiprocessing
import random
import re
import time
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from common import killed_until_it_ends
from torch import nn

import rvi_fast
from rvi_fast import EarlyStopping, History, elastic, fit, models, reference
from rvi_fast.training import (
    CheckpointError,
    CheckpointWarning,
    RunDirectoryInUse,
    impute,
    infer,
    load_checkpoint,
)
from rvi_fast.training.loop.seeds import NOISE, ORDER, stream
from rvi_fast.training.runs.metrics import read_metrics

N, D = 60, 6
# numbers that float16 holds, so that every dtype holds the same
FULL = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)) @ torch.linspace(
    -2, 2, 2 * D
).reshape(2, D)
FULL = FULL.half().float()
MASK = torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.7
MASK[4], MASK[:, 5] = False, MASK[:, 5] & (torch.arange(N) > 30)
X = FULL.masked_fill(~MASK, torch.nan)
PIXELS = torch.arange(N * D).remainder(256).reshape(N, D).to(torch.uint8)


def make(builder=models.rvi, dropout=0.0, **options):
    """A small model, the same in every process."""
    if builder is models.rvi:
        options = {"groups": (3, 5)} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = builder(N, D, latent_dim=4, **{"hidden": (8,)} | options)
    if dropout:
        model.decoder.append(nn.Dropout(dropout))
    return model


def run(model, x=X, **options):
    """Four steps an epoch, the last of 12 rows."""
    return fit(model, x, **{"epochs": 4, "batch_size": 16, "lr": 0.02, "progress": False} | options)


def assert_same(model, history, other, other_history):
    assert history == other_history
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


# one run


def by_hand(model, epochs, lr, posterior_lr, kl_weight, seed, weight_decay=0.0):
    """The same training as anyone would write it in torch, the whole table in one Adam."""
    posterior, likelihood = model.posterior, model.likelihood
    others = [*model.decoder.parameters(), *likelihood.parameters()]
    groups = [{"params": posterior.parameters(), "lr": posterior_lr}]
    adam = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
    weights = [parameter for parameter in others if parameter.dim() == 2]
    adam.add_param_group({"params": weights, "weight_decay": weight_decay})
    adam.add_param_group({"params": [p for p in others if p.dim() < 2]})
    losses = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(stream(seed, ORDER, epoch))
        noise = torch.tensor([stream(seed, NOISE, epoch)])
        for index in torch.randperm(N, generator=generator).split(16):
            z, kl = reference.relay_sample(
                posterior.rows, posterior.relays, index, noise, layout=posterior.layout
            )
            means, scale = model.decoder(z), likelihood.scale
            log_prob = reference.gaussian_log_likelihood(X[index], means, scale, None)
            # a row weighs as much in the last, smaller batch as in the others
            loss = (kl_weight(epoch) * kl - log_prob).sum() / 16
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(16 * loss.item() / N)
    return [sum(losses[4 * epoch : 4 * epoch + 4]) for epoch in range(epochs)]


@pytest.mark.parametrize("builder", [models.rvi, models.vad])
@pytest.mark.parametrize(
    ("posterior_lr", "kl_weight", "decay"),
    [(None, 1.0, 0.0), (0.05, 0.3, 2.0), (0.001, lambda epoch: epoch / 4, 0.0)],
)
def test_fit_is_adam_on_the_whole_table(builder, posterior_lr, kl_weight, decay):
    model, expected = make(builder), make(builder)
    options = {"posterior_lr": posterior_lr, "kl_weight": kl_weight, "seed": 3}
    history = run(model, standardize=False, decoder_weight_decay=decay, **options)
    weight = kl_weight if callable(kl_weight) else lambda _: kl_weight
    losses = by_hand(expected, 4, 0.02, posterior_lr or 0.02, weight, 3, decay)
    assert history["loss"] == pytest.approx(losses, rel=1e-5)
    for name, tensor in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_weight_matrices_of_the_decoder_shrink_where_nothing_pulls_at_them(dropout):
    # without an observed entry the gradient of the decoder is 0
    model, before = make(dropout=dropout), make()
    run(model, x=torch.full((N, D), torch.nan), epochs=2, decoder_weight_decay=5.0)
    for name, tensor in before.decoder.named_parameters():
        kept = 0.9**8 if tensor.dim() == 2 else 1.0
        torch.testing.assert_close(model.decoder.get_parameter(name), kept * tensor)
    assert torch.equal(model.likelihood.log_scale, before.likelihood.log_scale)


@pytest.mark.parametrize("optimizer", ["dense", "lazy", "row"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_run_depends_on_its_seed_alone_and_leaves_the_global_state(optimizer, dropout):
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state, model = torch.get_rng_state(), make(dropout=dropout)
        results += [model, run(model, optimizer=optimizer, seed=5)]
        assert torch.equal(torch.get_rng_state(), state)
    assert_same(*results)
    assert run(make(dropout=dropout), optimizer=optimizer, seed=6)["loss"] != results[1]["loss"]


def test_a_run_on_the_cpu_leaves_the_random_state_of_gpus(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    run(make(), seed=5, epochs=1)
    assert 5 not in seeded


@pytest.mark.parametrize("optimizer", ["dense", "lazy", "row"])
@pytest.mark.parametrize("form", ["linear", "cluster", "mixture"])
def test_the_loss_falls(optimizer, form):
    history = run(make(form=form), epochs=12, optimizer=optimizer, lr=0.05)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["elastic"][-1] < 0.7 * history["elastic"][0]


@pytest.mark.parametrize(("eval_every", "evaluated"), [(0, []), (1, [1, 2, 3, 4]), (3, [3])])
def test_history_has_a_number_for_each_epoch_and_each_evaluation(eval_every, evaluated):
    history = run(make(), eval_every=eval_every, kl_weight=0.5)
    assert list(history) == ["loss", "kl", "log_prob", "elastic", "evaluated"]
    assert history["evaluated"] == evaluated
    assert len(history["elastic"]) == len(evaluated)
    assert history.epochs == len(history["loss"]) == 4
    parts = [0.5 * kl - p for kl, p in zip(history["kl"], history["log_prob"], strict=True)]
    assert history["loss"] == pytest.approx(parts)
    assert [record["epoch"] for record in history.records()] == [1, 2, 3, 4]
    assert run(make(), kl_weight=0.5)["loss"] == history["loss"]


@pytest.mark.parametrize(("x", "mask"), [(X, None), (FULL, MASK), (PIXELS, None), (PIXELS, MASK)])
def test_history_ends_with_the_elastic_error_of_the_model(x, mask):
    model = make(dropout=0.3)
    first = run(model, x, mask=mask)["elastic"][-1]
    own = x if model.scaler is None else model.scaler.to_model(x, torch.float32)
    reconstruction = model.eval().reconstruct_standardized()
    assert first == pytest.approx(elastic(own, reconstruction, mask), rel=1e-12)


def test_an_epoch_visits_each_row_once_in_a_new_order():
    model, batches = make(), []
    model.posterior.register_forward_pre_hook(lambda _, args: batches.append(args[0].tolist()))
    run(model, epochs=3, eval_every=0)
    assert [len(batch) for batch in batches] == 3 * [16, 16, 16, 12]
    orders = [[*chain(*batches[start : start + 4])] for start in (0, 4, 8)]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("size", [1, N, 10**9])
def test_any_batch_size_works(size):
    history = run(make(), epochs=2, batch_size=size)
    assert np.isfinite(history["loss"]).all()


def test_kl_weight_is_asked_once_an_epoch_and_a_number_is_a_constant_function():
    asked, model, constant = [], make(), make()
    history = run(model, kl_weight=lambda epoch: asked.append(epoch) or 0.25)
    assert asked == [0, 1, 2, 3]
    assert_same(model, history, constant, run(constant, kl_weight=0.25))


# data


FORMS = {
    "numpy": lambda x: x.numpy().copy(),
    "read only": lambda x: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(N, D),
    "reversed": lambda x: np.ascontiguousarray(x.numpy()[::-1, ::-1])[::-1, ::-1],
    "big endian": lambda x: x.numpy().astype(">f4"),
    "fortran": lambda x: np.asfortranarray(x.numpy()),
    "float16": lambda x: x.numpy().astype(np.float16),
    "float64": lambda x: x.numpy().astype(np.float64),
    "tensor of float16": lambda x: x.half(),
    "strided": lambda x: torch.stack((x, x), dim=2)[..., 1],
    "requires grad": lambda x: x.clone().requires_grad_(),
}


def content(table):
    return (table if isinstance(table, np.ndarray) else table.detach().numpy()).tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("convert", FORMS.values(), ids=FORMS)
def test_the_form_of_a_table_makes_no_difference_and_it_is_not_written_to(convert):
    model, masked, expected = make(), make(), make()
    history = run(expected, epochs=2)
    given, full, mask = convert(X), convert(FULL), np.ascontiguousarray(MASK.numpy()[::-1])[::-1]
    before = content(given), content(full), content(mask)
    assert_same(model, run(model, given, epochs=2), expected, history)
    assert_same(masked, run(masked, full, mask=mask, epochs=2), expected, history)
    infer(model, full, mask=mask, steps=1)
    impute(model, full, mask=mask)
    assert (content(given), content(full), content(mask)) == before


def test_pixels_count_as_255ths():
    model, expected = make(), make()
    before = PIXELS.clone()
    history = run(model, PIXELS, mask=MASK)
    fractions = (PIXELS / 255).masked_fill(~MASK, torch.nan)
    losses = run(expected, fractions, standardize=False)["loss"]
    assert history["loss"] == pytest.approx(losses, rel=1e-5)
    assert torch.equal(PIXELS, before)
    as_array = make()
    assert_same(as_array, run(as_array, PIXELS.numpy(), mask=MASK), model, history)


def test_a_table_without_an_observed_entry_trains_towards_the_prior():
    history = run(make(), X * torch.nan, epochs=30)
    assert history["log_prob"] == [0.0] * 30
    assert history["kl"][-1] < 0.5 * history["kl"][0]
    assert np.isnan(history["elastic"]).all()


# the model afterwards, and callbacks


def state_of(model):
    """Everything about a model but its values."""
    modes = {name: part.training for name, part in model.named_modules() if name != "scaler"}
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    return modes, needed, model.posterior.sparse, model.posterior._row_optimizer


@pytest.mark.parametrize("place", [None, "decoder", "callback", "x"])
@pytest.mark.parametrize("train", [False, True])
def test_modes_and_sparse_are_as_before_also_after_an_exception(place, train):
    model = make(dropout=0.3).train(train)
    model.decoder[0].eval().weight.requires_grad_(False)
    model.posterior.sparse = train
    calls, before, frozen = [], state_of(model), model.decoder[0].weight.clone()

    def break_at_the_seventh(*_):
        calls.append(1 / (7 - len(calls)))

    if place == "decoder":
        model.decoder.register_forward_hook(break_at_the_seventh)
    callbacks = [lambda *_: 1 / (place != "callback") < 1]
    with pytest.raises((ZeroDivisionError, ValueError)) if place else nullcontext():
        run(model, X / 0 if place == "x" else X, callbacks=callbacks)
    assert state_of(model) == before
    assert torch.equal(model.decoder[0].weight, frozen)
    model.decoder._forward_hooks.clear()
    model(torch.tensor([0, 1]), X[:2]).loss.backward()
    assert model.posterior.rows.grad.is_sparse == train


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_are_as_before_also_after_an_exception(fails):
    model = make()
    model.posterior.rows.grad = torch.ones_like(model.posterior.rows)
    model.likelihood.log_scale.grad = torch.ones(())
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        run(model, epochs=1, callbacks=[lambda *_: 1 / (not fails) < 1])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == {"posterior.rows", "likelihood.log_scale"}
    assert all((grad == 1).all() for grad in gradients.values())


def test_callbacks_see_the_model_of_the_epoch_and_can_stop():
    model, seen = make(), []

    def watch(given, history):
        assert given is model
        own = given.scaler.to_model(X, torch.float32)
        score = elastic(own, given.eval().reconstruct_standardized())
        assert score == pytest.approx(history["elastic"][-1], rel=1e-12)
        seen.append(history.epochs)
        return history.epochs == 3

    assert run(model, callbacks=[lambda *_: None, watch]).epochs == 3
    assert seen == [1, 2, 3]


LOOKS = {
    "eval": lambda model: model.eval().reconstruct(),
    "infer": lambda model: infer(model, X[:5], steps=1),
    "copy": lambda model: copy.deepcopy(model.state_dict()),
    "draw": lambda model: impute(model, X, num_draws=1),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_callback_that_only_looks_changes_nothing(look):
    model, expected = make(dropout=0.3), make(dropout=0.3)
    history = run(model, callbacks=[lambda model, _: look(model) is None], eval_every=0)
    assert_same(model, history, expected, run(expected, eval_every=0))


@pytest.mark.parametrize(
    ("values", "options", "stops"),
    [
        ([3, 2, 1, 0], {"patience": 1}, None),
        ([3, 2, 2, 2, 1], {"patience": 2}, 4),
        ([3, 2.9, 2.8, 2.7], {"patience": 2, "min_delta": 0.5}, 3),
        ([1, float("nan"), float("nan")], {"patience": 2}, 3),
    ],
)
@pytest.mark.parametrize("quantity", ["loss", "elastic"])
def test_early_stopping_waits_for_patience_values_without_a_new_minimum(
    values, options, stops, quantity
):
    stop = EarlyStopping(**options, quantity=quantity)
    answers = [stop(None, History({quantity: values[: n + 1]})) for n in range(len(values))]
    assert (answers.index(True) + 1 if True in answers else None) == stops
    with pytest.raises(ValueError, match="quantity: expected one of"):
        EarlyStopping(quantity="accuracy")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"epochs": 0}, ValueError, "epochs: expected an integer >= 1, got 0"),
        ({"batch_size": -1}, ValueError, "batch_size: expected an integer >= 1, got -1"),
        ({"lr": 0}, ValueError, "lr: expected a finite number > 0, got 0"),
        ({"lr": float("nan")}, ValueError, "lr: .*nan"),
        ({"posterior_lr": "1"}, TypeError, "posterior_lr: expected a number, got '1'"),
        (
            {"optimizer": "sgd"},
            ValueError,
            "optimizer: expected one of dense, lazy, row, got 'sgd'",
        ),
        ({"kl_weight": -1}, ValueError, "kl_weight: expected a finite number >= 0, got -1"),
        (
            {"decoder_weight_decay": 50},
            ValueError,
            "decoder_weight_decay: expected less than 1 / lr = 50, got 50.0",
        ),
        ({"eval_every": -1}, ValueError, "eval_every: expected an integer >= 0, got -1"),
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every: .*>= 0, got -1"),
        ({"seed": 1.5}, TypeError, "seed: .*1.5"),
        ({"seed": 2**64}, ValueError, "seed: .*18446744073709551616"),
        ({"resume": True}, ValueError, "run_dir: expected a directory to resume from, got None"),
    ],
)
def test_arguments_out_of_range_are_named(options, error, words):
    model = make()
    with pytest.raises(error, match=words):
        run(model, **options)
    assert_same(model, None, make(), None)


# a loss that is no number


class Breaking(nn.Module):
    """A decoder whose output, or whose gradient, becomes NaN at one training step."""

    def __init__(self, decoder, step, forward):
        super().__init__()
        self.decoder, self.step, self.breaks_forward, self.calls = decoder, step, forward, 0

    def forward(self, z):
        mean = self.decoder(z)
        if self.training:
            self.calls += 1
            if self.calls == self.step + 1:
                if self.breaks_forward:
                    return mean * torch.nan
                mean.register_hook(lambda grad: grad * torch.nan)
        return mean


@pytest.mark.parametrize(("step", "forward"), [(9, True), (8, True), (8, False), (7, False)])
def test_a_loss_that_is_nan_names_step_and_last_good_checkpoint(tmp_path, step, forward):
    model = make()
    model.decoder = Breaking(model.decoder, step, forward)
    with pytest.raises(FloatingPointError, match="nan") as caught:
        run(model, run_dir=tmp_path, checkpoint_every=0)
    if forward:
        assert f"at step {step} (epoch 3)" in str(caught.value)
    named = Path(re.search(r"/\S+epoch-\d+", str(caught.value))[0])
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.path == named
    for name, tensor in checkpoint.tensors["model"].items():
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("batch_size", [16, N])
def test_no_run_ends_well_with_a_model_that_is_nan(batch_size):
    model = make()
    model.decoder = Breaking(model.decoder, -(-N // batch_size) - 1, False)
    with pytest.raises(FloatingPointError, match="no checkpoint has been written"):
        run(model, epochs=1, batch_size=batch_size)


def test_a_learning_rate_of_1e30_is_noticed(tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss became (inf|nan) at step 1 "):
        run(make(), lr=1e30, run_dir=tmp_path)


# run directories


def draw(model, history):
    torch.rand(history.epochs)


SETTINGS = {
    "dense": ({}, {}),
    "callbacks": (
        {"dropout": 0.3},
        {"callbacks": [draw, EarlyStopping(2, min_delta=0.2)], "eval_every": 3},
    ),
    "lazy": (
        {"builder": models.vad},
        {"optimizer": "lazy", "posterior_lr": 0.1, "decoder_weight_decay": 0.5},
    ),
    "closed-form": (
        {"likelihood": ["gaussian"] * 3 + ["student_t"] * 3},
        {"scale_update": "closed-form", "scale_annealing": (2.0, 0.5)},
    ),
    "row": ({"dropout": 0.3}, {"optimizer": "row", "kl_weight": lambda epoch: min(1, epoch / 9)}),
}
EPOCHS = 30
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch._dynamo", "tqdm", "safetensors.torch"])


def pause(model, history):
    time.sleep(0.03)


def in_child(started, run_dir, setting, checkpoint_every, hold):
    """Another process that trains in run_dir; with `hold` it stays in the first epoch."""

    def stay(model, history):
        started.set()
        time.sleep(60)

    arguments, options = SETTINGS[setting]
    if hold:
        options = {"callbacks": [stay]}
    else:
        # slow enough that the first two kills come before the end, however fast the machine
        options = options | {"callbacks": [*options.get("callbacks", ()), pause]}
        started.set()
    options = options | {"run_dir": run_dir, "checkpoint_every": checkpoint_every}
    run(make(**arguments), epochs=EPOCHS, resume=True, **options)


def start(*arguments):
    started = PROCESSES.Event()
    process = PROCESSES.Process(target=in_child, args=(started, *arguments), daemon=True)
    process.start()
    assert started.wait(60)
    return process


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_killed_at_any_moment_and_resumed_is_the_uninterrupted_run(tmp_path, setting):
    arguments, options = SETTINGS[setting]
    model, expected = make(**arguments), make(**arguments)
    expected_history = run(expected, epochs=EPOCHS, **options)
    chance = random.Random(setting)

    def start_again():
        return start(tmp_path, setting, chance.choice([0, 0, 0.05, 30]), False)

    killed_until_it_ends(start_again, chance)
    began = time.monotonic()
    history = run(model, epochs=EPOCHS, run_dir=tmp_path, resume=True, **options)
    assert time.monotonic() - began < 1  # nothing was left to do
    assert_same(model, history, expected, expected_history)
    assert (history.epochs < EPOCHS) == (setting == "callbacks")  # stopped early
    metrics = read_metrics(tmp_path)
    assert [record["epoch"] for record in metrics] == list(range(1, history.epochs + 1))
    assert [record["loss"] for record in metrics] == history["loss"]


def test_a_second_process_is_refused_within_a_second_and_told_who_holds(tmp_path):
    process, model = start(tmp_path, "dense", 0, True), make()
    began = time.monotonic()
    with pytest.raises(RunDirectoryInUse, match=f"pid {process.pid} on "):
        run(model, run_dir=tmp_path, resume=True)
    assert time.monotonic() - began < 1
    assert_same(model, None, make(), None)
    assert state_of(model) == state_of(make())
    process.kill()
    process.join()
    assert run(model, run_dir=tmp_path, resume=True).epochs == 4


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_more_epochs_go_on_from_the_last_and_from_the_one_before_a_damaged_one(tmp_path, dropout):
    expected = make(dropout=dropout)
    expected_history = run(expected, epochs=9)
    run(make(dropout=dropout), epochs=3, run_dir=tmp_path, checkpoint_every=0)
    history = run(make(dropout=dropout), epochs=6, run_dir=tmp_path, resume=True)
    assert history.epochs == 6
    # the newest two are those of epochs 3 and 6
    file = load_checkpoint(tmp_path).path / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    model = make(dropout=dropout)
    with pytest.warns(CheckpointWarning, match="epoch-000006"):
        history = run(model, epochs=9, run_dir=tmp_path, resume=True)
    assert_same(model, history, expected, expected_history)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == list(range(1, 10))


def test_early_stopping_outlives_a_resume_and_fewer_epochs_take_nothing_back(tmp_path):
    options = {"run_dir": tmp_path, "callbacks": [lambda _, history: history.epochs == 2]}
    run(make(), **options)
    model, whole = make(), make()
    assert run(model, epochs=9, resume=True, **options).epochs == 2
    assert run(model, epochs=1, resume=True, **options).epochs == 2
    assert_same(model, None, whole, run(whole, epochs=2) and None)


OTHERS = {
    "lr": {"lr": 0.021},
    "posterior_lr": {"posterior_lr": 0.021},
    "batch_size": {"batch_size": 15},
    "seed": {"seed": 1},
    "optimizer": {"optimizer": "row"},
    "kl_weight": {"kl_weight": 0.5},
    "decoder_weight_decay": {"decoder_weight_decay": 0.5},
    "scale_update": {"scale_update": "closed-form"},
    "scale_annealing": {"scale_annealing": (2.0, 0.5)},
    "data": {"x": FULL},
    "decoder.0.weight": {"model": {"hidden": (9,)}},
    "layout|_extra_state": {"model": {"form": "mixture"}},
    "decoder": {"model": {"hidden": (8, 8)}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_resume_with_something_else_is_refused_by_name_and_changes_nothing(tmp_path, name):
    run(make(), epochs=2, run_dir=tmp_path)
    kept = read_metrics(tmp_path)
    other = OTHERS[name] | {"run_dir": tmp_path, "resume": True}
    arguments = other.pop("model", {})
    model = make(**arguments)
    with pytest.raises(ValueError, match=rf"({name})\b"):
        run(model, **other)
    assert_same(model, None, make(**arguments), None)
    assert read_metrics(tmp_path) == kept
    assert load_checkpoint(tmp_path).epoch == 2


def test_a_run_directory_with_a_run_is_not_overwritten(tmp_path):
    run(make(), epochs=2, run_dir=tmp_path)
    model = make()
    with pytest.raises(ValueError, match=r"run_dir: .* holds a run of 2 epochs; resume=True"):
        run(model, run_dir=tmp_path)
    assert_same(model, None, make(), None)
    for file in tmp_path.glob("checkpoints/*/manifest.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        run(model, run_dir=tmp_path, resume=True)
    assert_same(model, None, make(), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["linear", "cluster", "mixture", "vad"])
def test_a_loaded_model_is_the_trained_one(tmp_path, form, dtype):
    model = make(models.vad) if form == "vad" else make(form=form, top=(1, 0.4))
    history = run(model.to(dtype), run_dir=tmp_path)
    loaded = rvi_fast.load(tmp_path)
    assert not loaded.training
    assert loaded.config == model.config
    assert_same(loaded, None, model, None)
    assert torch.equal(loaded.reconstruct(), model.reconstruct())
    again = load_checkpoint(tmp_path).metadata["history"]
    assert again == history


def test_a_model_of_ones_own_cannot_be_built_again_and_that_is_said(tmp_path):
    whole = make(hidden=())
    model = models.LatentModel(whole.posterior, whole.decoder, whole.likelihood)
    run(model, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"run_dir: .*builder.*load_state_dict"):
        rvi_fast.load(tmp_path)
    again = make(hidden=())
    again.load_state_dict(load_checkpoint(tmp_path).tensors["model"])
    assert_same(again, None, model, None)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        rvi_fast.load(tmp_path / "nowhere")
