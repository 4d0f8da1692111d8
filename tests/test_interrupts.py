"""A signal ends the step, leaves a checkpoint, and a resume ends as the run that was never stopped."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast import fit, models
from rvi_fast.training import load_checkpoint
from rvi_fast.training.loop.interrupts import Interrupted

N, D = 300, 5
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
SETTINGS = {
    "dense": {},
    "row": {"optimizer": "row"},
    "bfloat16": {"moment_dtype": torch.bfloat16},
    "blocks": {"block_rows": 40},
    "files": {"block_rows": 40, "storage": True},
    "vae": {"builder": models.vae},
}


@pytest.fixture(autouse=True)
def signals_as_a_shell_leaves_them():
    """Whoever runs the tests in the background, or under nohup, has some of them ignored."""
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in wanted.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def make(place=None, builder=models.rvi):
    torch.manual_seed(0)
    options = {} if builder is models.vae else {"groups": (3, 4)}
    if place is not None:
        options["storage"] = place
    model = builder(N, D, latent_dim=3, hidden=(6,), **options)
    model.decoder.insert(2, nn.Dropout(0.2))
    return model


def run(model, **options):
    return fit(model, X, **{"epochs": 3, "batch_size": 3, "progress": False, "lr": 0.02} | options)


def stop_after(model, count, signum=signal.SIGINT, times=1):
    """Sends itself a signal within a step."""
    calls = []

    def send(module, *_):
        if module.training:
            calls.append(1)
            if count <= len(calls) < count + times:
                os.kill(os.getpid(), signum)

    return model.decoder.register_forward_hook(send)


def assert_same(model, history, other, other_history):
    assert history == other_history
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("count", [1, 64, 100, 299])
@pytest.mark.parametrize("setting", SETTINGS)
def test_ctrl_c_in_any_step_resumes_to_the_bits_of_the_run_in_one_piece(tmp_path, setting, count):
    options = dict(SETTINGS[setting])
    builder = options.pop("builder", models.rvi)
    place = tmp_path / "tables" if options.pop("storage", False) else None
    whole = make(tmp_path / "whole" if place else None, builder)
    history = run(whole, **options)
    model = make(place, builder)
    hook = stop_after(model, count)
    with pytest.raises(KeyboardInterrupt, match=r"stopped by SIGINT in epoch .* resume=True"):
        run(model, run_dir=tmp_path / "run", **options)
    hook.remove()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert torch.isfinite(model.reconstruct() if builder is models.rvi else X).all()
    partial = load_checkpoint(tmp_path / "run").metadata.get("partial", {"steps": 0})
    assert partial["steps"] == count % 100
    model = make(place, builder)
    resumed = run(model, run_dir=tmp_path / "run", resume=True, **options)
    assert_same(model, resumed, whole, history)


def test_a_run_stopped_again_and_again_ends_as_if_never(tmp_path):
    whole = make()
    history = run(whole)
    for count in (30, 30, 50, 120):
        model = make()
        stop_after(model, count)
        with pytest.raises(KeyboardInterrupt):
            run(model, run_dir=tmp_path, resume=True)
    model = make()
    assert_same(model, run(model, run_dir=tmp_path, resume=True), whole, history)


def test_a_model_is_loaded_as_it_was_when_it_was_stopped(tmp_path):
    torch.manual_seed(0)
    model = models.rvi(N, D, latent_dim=3, hidden=(6,), groups=(3, 4))
    stop_after(model, 130)
    with pytest.raises(KeyboardInterrupt):
        run(model, run_dir=tmp_path)
    for name, tensor in rvi_fast.load(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_second_ctrl_c_is_raised_at_once_and_without_a_run_dir_the_model_is_whole(tmp_path):
    model = make()
    stop_after(model, 5, times=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(model, run_dir=tmp_path)
    assert not isinstance(caught.value, Interrupted) or caught.value.signum == signal.SIGINT
    other = make()
    stop_after(other, 5)
    with pytest.raises(KeyboardInterrupt, match="without a run_dir nothing was saved"):
        run(other)
    assert other.posterior._row_optimizer is None


def test_a_handler_of_the_program_is_left_alone():
    seen, before = [], signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        model = make()
        stop_after(model, 5)
        assert run(model, epochs=1).epochs == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_command_line_ends_with_the_status_of_the_signal_and_goes_on(tmp_path, name, status):
    np.save(tmp_path / "x.npy", X.numpy())

    def command(run_dir, *more):
        words = ["train", "--data", tmp_path / "x.npy", "--run-dir", run_dir, "--epochs", 12]
        words += ["--batch-size", 4, "--groups", 3, "--latent-dim", 2, "--hidden", "--quiet", *more]
        return [sys.executable, "-m", "rvi_fast.cli", *map(str, words)]

    child = subprocess.Popen(command(tmp_path / "a"), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "a" / "metrics.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    child.send_signal(getattr(signal, name))
    errors = child.communicate(timeout=60)[1]
    assert child.returncode == status, errors
    assert f"stopped by {name} in epoch" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    for arguments in (command(tmp_path / "a", "--resume"), command(tmp_path / "b")):
        subprocess.run(arguments, check=True, capture_output=True)
    one, other = (rvi_fast.load(tmp_path / place).state_dict() for place in "ab")
    assert all(torch.equal(one[key], other[key]) for key in other)
