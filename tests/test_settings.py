"""The arguments of `fit`: defaults, checks, what checkpoints hold of them, what the CLI takes."""

import dataclasses
import inspect
import json

import pytest
import torch

from rvi_fast import fit
from rvi_fast.cli.parser import make_parser
from rvi_fast.experiments.experiment import Experiment
from rvi_fast.training.settings import Settings

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}


def test_fit_takes_every_setting_with_its_default():
    parameters = inspect.signature(fit).parameters
    taken = {
        name: p.default for name, p in parameters.items() if name not in ("model", "x", "mask")
    }
    assert taken == DEFAULTS


def test_options_of_the_command_line_have_the_defaults_of_fit():
    arguments = vars(make_parser().parse_args(["train", "--data", "x", "--run-dir", "y"]))
    shared = arguments.keys() & DEFAULTS.keys() - {"run_dir", "device", "resume"}
    assert len(shared) == 12
    assert {name: arguments[name] for name in shared} == {name: DEFAULTS[name] for name in shared}


def test_an_experiment_is_trained_as_fit_trains_by_itself():
    for field in dataclasses.fields(Experiment):
        if field.name in DEFAULTS:
            assert field.default == DEFAULTS[field.name], field.name


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("batch_size", 2.0, ValueError),
        ("lr", -1.0, ValueError),
        ("posterior_lr", 0.0, ValueError),
        ("optimizer", "sgd", ValueError),
        ("kl_weight", -1, ValueError),
        ("decoder_weight_decay", -1, ValueError),
        # more than the whole of a weight would be taken off
        ("decoder_weight_decay", 1000.0, ValueError),
        ("scale_update", "newton", ValueError),
        ("scale_annealing", 2.0, ValueError),
        ("scale_annealing", "21", ValueError),
        ("eval_every", -1, ValueError),
        ("block_rows", 0, ValueError),
        ("standardize", 1, TypeError),
        ("checkpoint_every", float("nan"), ValueError),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_its_name(name, value, error):
    with pytest.raises(error, match=rf"^{name}: expected .*, got {value!r}"):
        Settings(**{name: value})


def test_what_a_checkpoint_holds_is_json_in_its_old_order():
    settings = Settings(lr=0.5, kl_weight=lambda epoch: 1.0, moment_dtype=torch.bfloat16)
    expected = {
        "batch_size": 256,
        "lr": 0.5,
        "posterior_lr": 0.5,
        "optimizer": "dense",
        "kl_weight": "function",
        "seed": 0,
        "eval_every": 1,
        "block_rows": None,
        "moment_dtype": "bfloat16",
        "standardize": True,
    }
    assert json.dumps(settings.kept()) == json.dumps(expected)
    settings.check_same(expected, "run")
    rows = Settings.of_rows(expected)
    assert (rows.inference_lr, rows.optimizer, rows.moment_dtype) == (0.5, "dense", torch.bfloat16)
    with pytest.raises(ValueError, match=r"seed: expected 7 as in run, got 0"):
        settings.check_same(expected | {"seed": 7}, "run")


def test_a_checkpoint_names_what_came_later_only_where_it_is_not_as_usual():
    usual, decayed = Settings(), Settings(decoder_weight_decay=0.5)
    assert decayed.kept() == usual.kept() | {"decoder_weight_decay": 0.5}
    usual.check_same(usual.kept(), "run")
    decayed.check_same(decayed.kept(), "run")
    with pytest.raises(ValueError, match=r"decoder_weight_decay: expected 0.0 as in run, got 0.5"):
        decayed.check_same(usual.kept(), "run")
    with pytest.raises(ValueError, match=r"decoder_weight_decay: expected 0.5 as in run, got 0.0"):
        usual.check_same(decayed.kept(), "run")
