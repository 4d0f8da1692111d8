"""Callbacks: what is held out is never seen, and a run that was interrupted ends where another does."""

import csv
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from common import Items, assert_same

import rvi_fast
from rvi_fast import EarlyStopping, History, fit, fit_many, impute, models
from rvi_fast.training import CheckpointWarning, load_checkpoint
from rvi_fast.training.callbacks import (
    Callback,
    Checkpoint,
    CSVLogger,
    LearningRate,
    ReduceOnPlateau,
    TensorBoard,
)
from rvi_fast.training.inputs.prepare import open_source
from rvi_fast.training.inputs.withheld import Withheld

N, D = 60, 6
FULL = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)) @ torch.linspace(
    -2, 2, 2 * D
).reshape(2, D)
MASK = torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.7
MASK[4] = False
X = FULL.masked_fill(~MASK, torch.nan)
PIXELS = (FULL * 40 + 128).clamp(0, 255).to(torch.uint8)


def make(builder=models.rvi, **options):
    """A small model, the same in every process."""
    if builder is models.rvi:
        options = {"groups": (3, 5)} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return builder(N, D, latent_dim=4, **{"hidden": (8,)} | options)


def run(model, x=X, **options):
    options = {"epochs": 8, "batch_size": 16, "lr": 0.02} | options
    return fit(model, x, **{"progress": False} | options)


def mapped(path, x):
    np.save(path, x.numpy())
    return np.load(path, mmap_mode="r")


def withheld(x, mask=None, share=0.2):
    source = open_source(make(), x, mask)
    return Withheld.drawn(source, share, 3, 0, N, lambda own: [own])


# what is held out


def test_held_out_entries_are_a_share_of_what_is_observed_and_no_row_loses_all():
    entries = withheld(X)
    hidden = torch.zeros(N, D, dtype=torch.bool)
    hidden[torch.from_numpy(entries.rows)] = entries.hidden
    assert not (hidden & ~MASK).any()
    assert hidden.sum() == pytest.approx(0.2 * float(MASK.sum()), abs=D)
    assert ((MASK & ~hidden).any(1) == MASK.any(1)).all()


@pytest.mark.parametrize("kind", ["tensor", "masked", "mapped", "dataset", "pixels"])
def test_training_is_the_same_whatever_stands_in_a_held_out_entry(kind, tmp_path):
    def given(x, mask):
        match kind:
            case "masked":
                return {"x": x, "mask": mask}
            case "mapped":
                return {"x": mapped(tmp_path / "x.npy", x)}
            case "dataset":
                return {"x": Items(N, lambda row: x[row])}
        return {"x": x}

    x = PIXELS if kind == "pixels" else FULL if kind == "masked" else X
    mask = MASK if kind == "masked" else None
    from rvi_fast.training.loop.seeds import WITHHELD, stream

    source = open_source(make(), x, mask)
    entries = Withheld.drawn(source, 0.2, stream(0, WITHHELD), 0, N, lambda own: [own])
    hidden = entries.of(np.arange(N))
    other = torch.where(hidden, torch.full_like(x, 9), x)
    assert hidden.any()
    one, two = make(), make()
    first = run(one, **given(x, mask), held_out=0.2)
    second = run(two, **given(other, mask), held_out=0.2)
    assert first["loss"] == second["loss"]
    assert first["elastic"] == second["elastic"]
    assert first["held_out"] != second["held_out"]
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    # a run that is shown all of it sees the difference
    assert run(make(), **given(x, mask))["loss"] != first["loss"]


def test_the_held_out_error_is_that_of_the_posterior_means_over_what_was_hidden():
    from rvi_fast.training.loop.seeds import WITHHELD, stream

    model = make()
    history = run(model, held_out=0.2, eval_every=4)
    entries = Withheld.drawn(
        open_source(make(), X), 0.2, stream(0, WITHHELD), 0, N, lambda own: [own]
    )
    hidden = entries.of(np.arange(N))
    truth = model.scaler.to_model(X, torch.float32, cut=False)
    found = model.eval().reconstruct_standardized()
    expected = rvi_fast.elastic(truth, found, hidden)
    assert history["evaluated"] == [4, 8]
    assert history["held_out"][-1] == pytest.approx(expected, rel=1e-6)
    assert {"elastic", "held_out"} <= history.records()[-1].keys()
    assert "held_out" not in history.records()[0]


@pytest.mark.parametrize("likelihood", [["gaussian"] * 3 + ["poisson"] * 3, "bernoulli"])
def test_entries_of_every_law_can_be_held_out(likelihood):
    counts = (FULL.abs() * 2).round()
    x = (FULL > 0).float() if likelihood == "bernoulli" else torch.cat((X[:, :3], counts[:, 3:]), 1)
    history = run(make(likelihood=likelihood), x=x, held_out=0.2)
    assert all(map(math.isfinite, history["held_out"]))


def test_an_encoder_finds_held_out_entries_from_what_is_left():
    history = run(make(models.vae), held_out=0.2)
    assert len(history["held_out"]) == 8
    assert run(make(models.vae), held_out=0.2)["held_out"] == history["held_out"]


def test_a_model_that_held_entries_out_imputes_its_table():
    model = make()
    run(model, held_out=0.2)
    filled = impute(model, X)
    assert torch.equal(filled[MASK], X[MASK])
    assert filled.isfinite().all()


def test_held_out_is_refused_where_nothing_can_be_held_out():
    alone = X.masked_fill(torch.arange(D)[None] != torch.arange(N)[:, None] % D, torch.nan)
    with pytest.raises(ValueError, match="held_out: expected 0 for a table in which no row"):
        run(make(), x=alone, held_out=0.2)
    with pytest.raises(ValueError, match="eval_every: expected at least 1"):
        run(make(), held_out=0.2, eval_every=0)
    with pytest.raises(ValueError, match="held_out: expected a share below 1, got 1"):
        run(make(), held_out=1)


# stopping


def test_early_stopping_restores_the_state_of_the_least_held_out_error():
    options = {"epochs": 200, "lr": 0.1, "held_out": 0.2}
    model, states = make(), {}

    def keep(model, history):
        states[history.epochs] = {k: v.clone() for k, v in model.state_dict().items()}

    stop = EarlyStopping(5, quantity="held_out", restore_best=True)
    history = run(model, callbacks=[keep, stop], **options)
    best = int(np.argmin(history["held_out"])) + 1
    assert best < history.epochs < 200
    assert history.epochs - best == 5
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, states[best][name]), name
    assert any(
        not torch.equal(states[best][name], tensor)
        for name, tensor in states[history.epochs].items()
    )


def test_early_stopping_by_what_was_not_held_out_is_refused():
    with pytest.raises(ValueError, match=r"quantity: expected fit\(held_out=\)"):
        run(make(), callbacks=[EarlyStopping(quantity="held_out")])
    with pytest.raises(ValueError, match="quantity: expected one of loss, elastic, held_out"):
        EarlyStopping(quantity="kl")


def test_a_best_state_of_tables_in_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="restore_best: expected False for tables in files"):
        run(make(storage=tmp_path / "rows"), callbacks=[EarlyStopping(restore_best=True)])


# learning rates


@pytest.mark.parametrize("optimizer", ["dense", "lazy", "row"])
def test_a_constant_factor_is_the_learning_rate_times_it(optimizer):
    options = {"optimizer": optimizer, "posterior_lr": 0.04}
    model, other = make(), make()
    history = run(model, callbacks=[LearningRate(lambda epoch: 0.5)], **options)
    expected = run(other, **options | {"lr": 0.01, "posterior_lr": 0.02})
    assert_same(model, history, other, expected)


def test_a_factor_of_one_changes_nothing():
    model, other = make(), make()
    history = run(model, callbacks=[LearningRate.steps([100])])
    assert_same(model, history, other, run(other))


def test_a_factor_of_zero_leaves_the_model_as_it_is():
    model = make()
    states = []

    def keep(model, history):
        states.append({k: v.clone() for k, v in model.state_dict().items()})

    schedule = LearningRate.steps([3], factor=1e-30)
    schedule.factor = lambda epoch: float(epoch < 3)
    run(model, callbacks=[keep, schedule], epochs=5)
    assert all(torch.equal(states[2][name], states[4][name]) for name in states[2])
    assert not all(torch.equal(states[1][name], states[2][name]) for name in states[1])


def test_schedules_say_what_their_names_say():
    cosine = LearningRate.cosine(10, warmup=2, last=0.1).factor
    assert [cosine(0), cosine(1), cosine(2)] == [0.5, 1.0, 1.0]
    assert cosine(6) == pytest.approx(0.55)
    assert cosine(10) == pytest.approx(0.1) == cosine(99)
    steps = LearningRate.steps([2, 4], factor=0.5).factor
    assert [steps(epoch) for epoch in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    plateau = ReduceOnPlateau(2, factor=0.5, least=0.2)
    values = [3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    factors = [plateau.lr_factor(History({"loss": values[:n]})) for n in range(len(values) + 1)]
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_schedules_refuse_arguments_out_of_their_range():
    with pytest.raises(ValueError, match="warmup: expected less than epochs=5, got 5"):
        LearningRate.cosine(5, warmup=5)
    with pytest.raises(TypeError, match=r"factor: expected a function of the epoch, got 0\.1"):
        LearningRate(0.1)
    with pytest.raises(ValueError, match=r"lr_factor: expected a finite number >= 0, got -1"):
        run(make(), callbacks=[LearningRate(lambda epoch: -1.0)])
    with pytest.raises(ValueError, match="lr_factor: expected less than"):
        run(make(), decoder_weight_decay=10.0, callbacks=[LearningRate(lambda epoch: 50.0)])


# interrupted and resumed


class Counted(Callback):
    """Stops by what it has counted itself, and adds up losses in a tensor."""

    def __init__(self, most=10**6):
        self.most, self.count, self.total = most, 0, torch.zeros(())
        self.told = []

    def begin(self, model, history):
        self.told.append(f"begin {history.epochs}")

    def __call__(self, model, history):
        self.count += 1
        self.total = self.total + history["loss"][-1]
        return self.count >= self.most

    def end(self, model, history):
        self.told.append("end")

    def close(self):
        self.told.append("close")

    def state_dict(self):
        return {"count": self.count, "total": self.total}

    def load_state_dict(self, state):
        self.count, self.total = state["count"], state["total"].clone()


def interrupt_at(epoch):
    def interrupt(model, history):
        if history.epochs == epoch:
            raise KeyboardInterrupt

    return interrupt


def callbacks_of(directory):
    return [
        EarlyStopping(6, quantity="held_out", restore_best=True),
        LearningRate.cosine(40, warmup=3, last=0.1),
        ReduceOnPlateau(3, quantity="elastic", factor=0.7),
        Counted(),
        CSVLogger(directory / "history.csv"),
        Checkpoint(directory / "best.safetensors", best="held_out"),
        Checkpoint(directory / "epoch-{epoch}.safetensors", every=5),
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "lazy", "eval_every": 2}, {"block_rows": 8}],
    ids=["dense", "lazy", "blocks"],
)
def test_interrupted_runs_end_where_others_do_bit_for_bit(tmp_path, options):
    options = {"epochs": 40, "lr": 0.05, "held_out": 0.2, "checkpoint_every": 0} | options
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = make()
    callbacks = callbacks_of(whole)
    history = run(model, callbacks=callbacks, run_dir=whole / "run", **options)
    assert history.epochs < 40
    # the last one comes after the best epoch
    for epoch in (2, 7, history.epochs - 2, None):
        other, again = make(), callbacks_of(parts)
        stop = [] if epoch is None else [interrupt_at(epoch)]
        try:
            resumed = run(
                other, callbacks=stop + again, run_dir=parts / "run", resume=True, **options
            )
        except KeyboardInterrupt:
            assert epoch is not None
    assert_same(other, resumed, model, history)
    assert again[3].count == callbacks[3].count == history.epochs
    assert torch.equal(again[3].total, callbacks[3].total)
    for path in sorted(whole.glob("*.*")):
        assert path.read_bytes() == (parts / path.name).read_bytes(), path.name
    best = rvi_fast.load(parts / "best.safetensors")
    assert torch.equal(best.posterior.rows, model.posterior.rows)


def test_a_signal_within_an_epoch_loses_nothing_of_the_callbacks(tmp_path):
    options = {"epochs": 12, "lr": 0.05, "held_out": 0.2, "run_dir": tmp_path / "run"}

    def callbacks():
        stop = EarlyStopping(4, quantity="held_out", restore_best=True)
        return [stop, LearningRate.cosine(12, warmup=3), Counted()]

    def hooked(kill_at):
        model, calls = make(), []

        def count(*_):
            calls.append(len(calls))
            if len(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGINT)

        # only a model in training mode is counted: evaluations call the decoder too
        model.decoder.register_forward_hook(lambda part, *_: count() if part.training else None)
        return model

    # 4 steps an epoch
    with pytest.raises(KeyboardInterrupt, match="in epoch 5 of 12, after 2 of 4 steps"):
        run(hooked(18), callbacks=callbacks(), **options)
    parts, again = hooked(0), callbacks()
    resumed = run(parts, callbacks=again, resume=True, **options)
    whole, once = hooked(0), callbacks()
    history = run(whole, callbacks=once, **options | {"run_dir": None})
    assert_same(parts, resumed, whole, history)
    assert torch.equal(again[2].total, once[2].total)


def test_a_finished_run_is_restored_again_by_a_resume(tmp_path):
    options = {"epochs": 40, "lr": 0.1, "held_out": 0.2, "run_dir": tmp_path}
    stop = {"quantity": "held_out", "restore_best": True}
    model, other = make(), make()
    history = run(model, callbacks=[EarlyStopping(3, **stop)], **options)
    resumed = run(other, callbacks=[EarlyStopping(3, **stop)], resume=True, **options)
    assert_same(other, resumed, model, history)
    last = rvi_fast.load(tmp_path)
    assert not torch.equal(last.posterior.rows, model.posterior.rows)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([LearningRate(math.cos)], [], "callbacks: expected a LearningRate as in .*got none"),
        ([LearningRate(math.cos)], [LearningRate(math.exp)], "factor: expected 0.54.* in epoch 1"),
        ([], [LearningRate(math.cos)], "factor: expected no schedule"),
        ([ReduceOnPlateau(2)], [ReduceOnPlateau(3)], "patience: expected 2, got 3"),
        ([], [EarlyStopping(restore_best=True)], "quantity with restore_best: expected None"),
        (
            [EarlyStopping(restore_best=True)],
            [EarlyStopping()],
            "quantity with restore_best: expected 'loss', got None",
        ),
    ],
)
def test_a_resume_with_other_callbacks_that_matter_is_refused(tmp_path, first, second, words):
    run(make(), epochs=2, callbacks=first, run_dir=tmp_path)
    with pytest.raises(ValueError, match=words):
        run(make(), epochs=3, callbacks=second, run_dir=tmp_path, resume=True)


def test_a_resume_compares_the_share_that_is_held_out(tmp_path):
    run(make(), epochs=2, held_out=0.2, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"held_out: expected 0\.2 as in .*, got 0\.1"):
        run(make(), epochs=3, held_out=0.1, run_dir=tmp_path, resume=True)


def test_functions_leave_no_trace_in_a_checkpoint(tmp_path):
    run(make(), callbacks=[lambda *_: None, EarlyStopping()], run_dir=tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert "callbacks" not in checkpoint.metadata
    assert checkpoint.tensors.keys() == {"model", "optimizer"}


def test_callbacks_are_told_of_beginning_and_end_and_closed_after_an_error():
    counted = Counted(most=3)
    assert run(make(), callbacks=[counted]).epochs == 3
    assert counted.told == ["begin 0", "end", "close"]
    counted = Counted()
    with pytest.raises(KeyboardInterrupt):
        run(make(), callbacks=[counted, interrupt_at(2)])
    assert counted.told == ["begin 0", "close"]


def test_a_state_that_no_checkpoint_can_hold_is_refused(tmp_path):
    counted = Counted()
    counted.count = 0
    counted.state_dict = lambda: {"path": object()}
    with pytest.raises(TypeError, match=r"callbacks: Counted.state_dict\(\)\['path'\]"):
        run(make(), callbacks=[counted], run_dir=tmp_path)


# files


def test_the_csv_says_what_the_history_says(tmp_path):
    path = tmp_path / "logs" / "history.csv"
    history = run(make(), callbacks=[CSVLogger(path)], eval_every=3, held_out=0.2)
    with open(path, newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["loss"] for record in records] == [repr(value) for value in history["loss"]]
    assert [record["held_out"] != "" for record in records] == [e % 3 == 0 for e in range(1, 9)]
    assert [json.loads(r["elastic"]) for r in records if r["elastic"]] == history["elastic"]


def test_a_csv_that_cannot_be_written_warns_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(CheckpointWarning, match="could not be written"):
        history = run(make(), callbacks=[CSVLogger(tmp_path / "file" / "history.csv")])
    assert history.epochs == 8


def test_checkpoints_every_so_many_epochs_are_the_model_of_that_epoch(tmp_path):
    path = tmp_path / "models" / "epoch-{epoch}.safetensors"
    run(make(), callbacks=[Checkpoint(path, every=3)])
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "epoch-3.safetensors",
        "epoch-6.safetensors",
    ]
    shorter = make()
    run(shorter, epochs=6)
    loaded = rvi_fast.load(tmp_path / "models" / "epoch-6.safetensors")
    for name, tensor in shorter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="every, best: expected one of them"):
        Checkpoint(path)
    with pytest.raises(ValueError, match=r"path: expected one with \{epoch\}"):
        Checkpoint("model.safetensors", every=3)


def scalars(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_shows_the_history_and_each_epoch_once_after_a_resume(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    options = {"held_out": 0.2, "run_dir": tmp_path / "run", "checkpoint_every": 1e9}
    run(make(), epochs=3, callbacks=[TensorBoard(tmp_path / "events")], **options)
    with pytest.raises(KeyboardInterrupt):
        run(
            make(),
            callbacks=[TensorBoard(tmp_path / "events"), interrupt_at(5)],
            resume=True,
            **options,
        )
    history = run(make(), callbacks=[TensorBoard(tmp_path / "events")], resume=True, **options)
    found = scalars(tmp_path / "events")
    assert found.keys() == {"loss", "kl", "log_prob", "elastic", "held_out"}
    for name, points in found.items():
        assert [step for step, _ in points] == list(range(1, 9)), name
        values = torch.tensor(history[name], dtype=torch.float32)
        assert torch.equal(torch.tensor([value for _, value in points]), values)


def test_a_missing_tensorboard_is_named_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "rvi-fast\[tensorboard\]"'):
        run(make(), callbacks=[lambda *_: pytest.fail("trained"), TensorBoard(tmp_path)])


# several runs


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_side_by_side_have_callbacks_of_their_own(tmp_path, jobs):
    def runs(directory):
        return [
            {
                "model": make(),
                "seed": seed,
                "run_dir": directory / f"run-{seed}",
                "callbacks": [
                    EarlyStopping(3, quantity="held_out", restore_best=True),
                    LearningRate.cosine(30),
                    CSVLogger(directory / f"{seed}.csv"),
                ],
            }
            for seed in (1, 2)
        ]

    common = {"x": X, "epochs": 30, "batch_size": 16, "lr": 0.1, "held_out": 0.2}
    many, alone = runs(tmp_path / "many"), runs(tmp_path / "alone")
    histories = fit_many(many, jobs=jobs, progress=False, **common)
    for one, other, history in zip(many, alone, histories, strict=True):
        expected = fit(**other, **common, progress=False)
        assert_same(one["model"], history, other["model"], expected)
        name = other["callbacks"][-1].path.name
        kept = [(tmp_path / part / name).read_text() for part in ("many", "alone")]
        assert kept[0] == kept[1]
    shared = [{"model": make(), "seed": seed} for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"runs\[1\]: callbacks: expected a CSVLogger of its own"):
        fit_many(shared, x=X, callbacks=[CSVLogger(tmp_path / "x.csv")], jobs=jobs)
