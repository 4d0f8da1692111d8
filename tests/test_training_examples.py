"""Loops of one's own: run as a user runs them, and resumed, they end where one run ends, bit for bit."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rvi_fast

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {"own_loop": "torch", "with_lightning": "lightning", "with_accelerate": "accelerate"}


@pytest.fixture(params=NEEDS)
def example(request, monkeypatch):
    """The module of an example, where what it needs is installed."""
    package = NEEDS[request.param]
    pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


@pytest.mark.filterwarnings("ignore:.*num_workers|.*logging interval|.*litlogger:UserWarning")
def test_a_loop_that_is_resumed_ends_where_one_that_was_not(example, tmp_path, capsys):
    whole = example.main(tmp_path / "whole", epochs=4).state_dict()
    example.main(tmp_path / "parts", epochs=1)
    begun = example.main(tmp_path / "parts", epochs=2).state_dict()
    parts = example.main(tmp_path / "parts", epochs=4).state_dict()
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    assert any(not torch.equal(begun[name], tensor) for name, tensor in whole.items())


def test_a_loop_of_a_user_learns_what_fit_learns(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    own_loop = importlib.import_module("own_loop")
    x = own_loop.table()
    model = own_loop.main(tmp_path, epochs=20)
    other = own_loop.make(x)
    rvi_fast.fit(
        other, x, epochs=20, batch_size=64, lr=0.005, posterior_lr=0.02, standardize=False,
        progress=False,
    )  # fmt: skip
    observed = ~torch.isnan(x)
    errors = [rvi_fast.elastic(x, m.eval().reconstruct(), observed) for m in (model, other)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)
    assert errors[0] < 0.5


def test_a_loader_is_refused_with_a_word_on_loops():
    loader = torch.utils.data.DataLoader(torch.zeros(4, 2))
    with pytest.raises(TypeError, match=r"got a DataLoader; pass its dataset, or write a loop"):
        rvi_fast.fit(rvi_fast.models.vad(4, 2, latent_dim=1), loader)


def test_an_example_runs_as_a_script(tmp_path):
    command = [sys.executable, str(EXAMPLES / "own_loop.py"), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "epoch 20: loss" in result.stdout
    assert "4000 of 4000 entries" in result.stdout
