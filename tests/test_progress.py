"""Progress: a bar where somebody watches, now and then a line where nobody does, nothing on stdout."""

import ast
import io
import logging
import sys
from pathlib import Path

import pytest
import torch

from rvi_fast import fit, models, progress
from rvi_fast.progress import progress_bar

ROOT = Path(__file__).parent.parent
X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def said(capsys, monkeypatch):
    """What stderr has got, which is no terminal; nobody listens to the loggers."""

    def read():
        return capsys.readouterr().err

    monkeypatch.setattr(progress, "_listened", lambda: False)
    return read


def run(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = models.rvi(64, 3, latent_dim=2, hidden=(4,), groups=(2,))
    return fit(model, X, **{"epochs": 30, "batch_size": 8} | options)


def test_a_log_file_gets_a_line_at_the_beginning_and_one_at_the_end(said):
    run()
    text = said()
    lines = text.splitlines()
    assert "\r" not in text
    assert 1 <= len(lines) <= 2
    assert "100% 240/240" in lines[-1]
    assert lines[-1].startswith("epoch 30/30: ")
    assert "loss=" in lines[-1]


def test_a_log_file_gets_a_line_whenever_the_time_has_come(said, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    run()
    lines = said().splitlines()
    # every epoch of 8 steps tells of itself
    assert len(lines) >= 30
    assert any(line.startswith("epoch 7/30:") for line in lines)


def test_a_terminal_gets_a_bar_that_overwrites_itself(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(epochs=2)
    assert "\r" in terminal.getvalue()
    assert "16/16" in terminal.getvalue()


def test_lines_go_to_a_logger_that_takes_them(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="rvi_fast"):
        bar = progress_bar(3, unit="step")
        bar.update(3)
        bar.close()
    assert capsys.readouterr().err == ""
    assert any("100% 3/3" in record.getMessage() for record in caplog.records)


def test_no_progress_is_no_word(capsys):
    run(progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_training_tells_the_logger_what_happens(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, logger="rvi_fast"):
        run(progress=False, epochs=2, run_dir=tmp_path)
        run(progress=False, run_dir=tmp_path, resume=True, callbacks=[lambda *_: True])
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    path = tmp_path / "checkpoints" / "epoch-000002"
    assert ("INFO", "training on 64 rows of 3 features on cpu") in said
    assert ("DEBUG", f"wrote {path}") in said
    assert ("INFO", f"goes on from {path}, after 2 epochs") in said
    assert ("INFO", "a callback has ended training after 3 epochs") in said


def test_only_the_command_line_prints():
    for path in (ROOT / "rvi_fast").rglob("*.py"):
        name = path.relative_to(ROOT / "rvi_fast").as_posix()
        if name.startswith(("cli/", "kernels/")) or name == "_info.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            assert not called, f"{name}:{node.lineno}"
