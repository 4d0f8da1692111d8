"""The command line, run as a user runs it: arguments in, text and files out."""

import json
import subprocess
import sys

import numpy as np
import pytest

from rvi_fast import cli, data
from rvi_fast.training import load_checkpoint


def run(*arguments: str, status: int = 0, capsys=None) -> str:
    assert cli.main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A csv of a rank-two table with a fifth of the cells empty, in large and odd units."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(120, 2)) @ generator.normal(size=(2, 7))
    x = (1000 + 50 * x).astype(np.float32)
    x[~data.mcar(x.shape, 0.2, seed=1)] = np.nan
    path = tmp_path_factory.mktemp("data") / "table.csv"
    data.save_table(path, x, [f"sensor {column}" for column in range(7)])
    return path


SMALL = ("--epochs", 120, "--latent-dim", 4, "--hidden", 16, "--batch-size", 32, "--lr", 0.01)


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "table"
    arguments = ("train", "--data", table, "--missing", 0.1, "--run-dir", run_dir, "--quiet")
    assert cli.main([str(a) for a in (*arguments, *SMALL, "--groups", 4, 6)]) == 0
    return run_dir


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_train_scores_observed_and_hidden_entries(table, tmp_path, capsys, moments):
    out = run("train", "--data", table, "--missing", 0.3, "--run-dir", tmp_path / "r", "--quiet",
              *SMALL, "--model", "vad", "--moments", moments, capsys=capsys)  # fmt: skip
    scores = [float(line.split()[-1]) for line in out.splitlines() if "entries" in line]
    assert len(scores) == 2
    assert 0 < scores[0] < scores[1]
    assert (tmp_path / "r" / "run.json").exists()
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 121))


def test_train_hands_on_where_rows_scale_and_weights_are_to_go(table, tmp_path, capsys):
    run("train", "--data", table, "--run-dir", tmp_path / "r", "--quiet", "--epochs", 1, "--latent-dim",
        2, "--initial-log-std", -1, "--initial-scale", 0.5, "--decoder-weight-decay", 0.25,
        capsys=capsys)  # fmt: skip
    metadata = load_checkpoint(tmp_path / "r").metadata
    assert metadata["config"]["initial_log_std"] == -1.0
    assert metadata["config"]["initial_scale"] == 0.5
    assert metadata["settings"]["decoder_weight_decay"] == 0.25


def test_impute_fills_the_training_table_in_its_own_units(table, trained, tmp_path, capsys):
    out = tmp_path / "filled.csv"
    run("impute", "--run-dir", trained, "--out", out, "--quiet", capsys=capsys)
    before, after = data.load_data(table), data.load_data(out)
    assert after.features == before.features
    shown = data.mcar(before.train.shape, 0.1, seed=0) & ~np.isnan(before.train)
    np.testing.assert_array_equal(after.train[shown], before.train[shown])
    assert np.isfinite(after.train).all()
    # hidden but known entries: far better than the column mean
    hidden = ~shown & ~np.isnan(before.train)
    columns = np.broadcast_to(np.nanmean(before.train, 0), hidden.shape)
    error = np.abs(after.train - before.train)[hidden].mean()
    assert error < 0.6 * np.abs(columns - before.train)[hidden].mean()


def test_draws_are_several_completions(table, trained, tmp_path, capsys):
    out = tmp_path / "draws.npy"
    run("impute", "--run-dir", trained, "--out", out, "--draws", 3, "--quiet", capsys=capsys)
    draws = np.load(out)
    known = data.read_table(table).values
    shown = data.mcar(known.shape, 0.1, seed=0) & ~np.isnan(known)
    assert draws.shape == (3, 120, 7)
    assert (draws[:, shown] == known[shown]).all()
    assert (draws[0][~shown] != draws[1][~shown]).all()


def test_infer_and_impute_take_new_rows(table, trained, tmp_path, capsys):
    new = data.load_data(table).train[:11]
    path = tmp_path / "new.npy"
    np.save(path, new)
    run("infer", "--run-dir", trained, "--data", path, "--out", tmp_path / "z.csv", "--quiet",
        capsys=capsys)  # fmt: skip
    latents = data.load_data(tmp_path / "z.csv")
    assert latents.train.shape == (11, 8)
    assert latents.features[:1] + latents.features[-1:] == ("mean_0", "std_3")
    assert (latents.train[:, 4:] > 0).all()
    run("impute", "--run-dir", trained, "--data", path, "--out", tmp_path / "f.npy", "--quiet",
        capsys=capsys)  # fmt: skip
    filled = np.load(tmp_path / "f.npy")
    np.testing.assert_array_equal(filled[~np.isnan(new)], new[~np.isnan(new)])
    assert np.isfinite(filled).all()


def test_pixels_come_back_as_pixels(tmp_path, capsys):
    run("train", "--data", "digits", "--subset", 200, "--missing", 0.5, "--run-dir", tmp_path / "r",
        "--epochs", 2, "--quiet", capsys=capsys)  # fmt: skip
    run("impute", "--run-dir", tmp_path / "r", "--out", tmp_path / "f.npy", "--quiet",
        capsys=capsys)  # fmt: skip
    filled = np.load(tmp_path / "f.npy")
    assert filled.dtype == np.uint8
    assert filled.shape == (200, 64)


def test_a_run_is_resumed_but_never_overwritten_or_mixed(table, tmp_path, capsys):
    arguments = ["train", "--data", table, "--run-dir", tmp_path / "r", "--quiet", *SMALL]
    run(*arguments, capsys=capsys)
    assert "--resume" in run(*arguments, status=2, capsys=capsys)
    before = (tmp_path / "r" / "run.json").read_bytes()
    changed = run(*arguments, "--resume", "--missing", 0.5, status=2, capsys=capsys)
    assert "missing: expected 0.0" in changed
    changed = run(*arguments, "--resume", "--moments", "bfloat16", status=2, capsys=capsys)
    assert "moment_dtype: expected 'float32'" in changed
    assert (tmp_path / "r" / "run.json").read_bytes() == before
    arguments[arguments.index("--epochs") + 1] = 125
    run(*arguments, "--resume", capsys=capsys)
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["epoch"] == 125


def test_an_encoder_is_trained_inferred_and_imputed(table, tmp_path, capsys):
    r = tmp_path / "r"
    run("train", "--data", table, "--missing", 0.1, "--run-dir", r, "--quiet", *SMALL, "--model",
        "vae", "--mask-input", capsys=capsys)  # fmt: skip
    run("infer", "--run-dir", r, "--data", table, "--out", tmp_path / "z.npy", "--quiet",
        capsys=capsys)  # fmt: skip
    assert np.load(tmp_path / "z.npy").shape == (120, 8)
    out = run("impute", "--run-dir", r, "--out", tmp_path / "f.csv", "--quiet", capsys=capsys)
    assert "hidden entries" in out
    assert np.isfinite(data.load_data(tmp_path / "f.csv").train).all()


def test_missing_boxes_are_hidden_and_filled(tmp_path, capsys):
    arguments = ("--data", "digits", "--subset", 100, "--missing-boxes", 2, "--run-dir")
    out = run("train", *arguments, tmp_path / "r", "--epochs", 1, "--quiet", capsys=capsys)
    mask = data.missing_boxes(100, (8, 8), 2, seed=0)
    assert f"{1 - mask.mean():.1%} missing" in out
    run("impute", "--run-dir", tmp_path / "r", "--out", tmp_path / "f.npy", "--quiet",
        capsys=capsys)  # fmt: skip
    rows = np.sort(np.random.default_rng(0).permutation(1797)[:100])
    original = data.load_data("digits").train[rows]
    filled = np.load(tmp_path / "f.npy")
    np.testing.assert_array_equal(filled[mask], original[mask])
    assert (filled != original)[~mask].any()


def test_the_artificial_set_needs_no_file(tmp_path, capsys):
    out = run("train", "--data", "artificial", "--subset", 50, "--run-dir", tmp_path / "r",
              "--epochs", 1, "--quiet", capsys=capsys)  # fmt: skip
    assert "50 rows, 300 features" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--data", "nowhere.csv", "--run-dir", "r"), "nowhere.csv"),
        (("train", "--data", "digits", "--run-dir", "r", "--missing", 1), "rate"),
        (("train", "--data", "digits", "--run-dir", "r", "--subset", 0), "subset: expected 1 to"),
        (("train", "--data", "digits", "--run-dir", "r", "--lr", -1), "lr: expected"),
        (("train", "--data", "digits", "--run-dir", "r", "--epochs", 0), "epochs: expected"),
        (("train", "--data", "digits", "--run-dir", "r", "--top", 2.5), "top: expected"),
        (("train", "--data", "digits", "--run-dir", "r", "--model", "vad", "--top", 2), "--top"),
        (("train", "--data", "digits", "--run-dir", "r", "--mask-input"), "--mask-input: expected"),
        (
            (
                "train",
                "--data",
                "digits",
                "--run-dir",
                "r",
                "--model",
                "vae",
                "--initial-log-std",
                1,
            ),
            "--initial-log-std: expected with --model rvi or vad only",
        ),
        (("train", "--data", "artificial", "--run-dir", "r", "--missing-boxes", 1), "boxes"),
        (("train", "--data", "mosi", "--run-dir", "r", "--data-dir", "r"), "mosi"),
        (("impute", "--run-dir", "r", "--out", "f.csv"), "run.json not found"),
    ],
)
def test_refusals_are_one_line_that_names_the_argument(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RVI_FAST_DATA", raising=False)
    text = run(*arguments, status=2, capsys=capsys)
    assert message in text
    assert text.startswith("rvi-fast: error: ")
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_new_data_of_another_kind_is_refused(trained, tmp_path, capsys):
    np.save(tmp_path / "pixels.npy", np.zeros((3, 7), np.uint8))
    np.save(tmp_path / "wide.npy", np.zeros((3, 8), np.float32))
    for name, message in (
        ("pixels", "expected a table of numbers"),
        ("wide", "expected 7 features"),
    ):
        out = run("impute", "--run-dir", trained, "--data", tmp_path / f"{name}.npy", "--out",
                  tmp_path / "f.npy", status=2, capsys=capsys)  # fmt: skip
        assert message in out


def test_a_damaged_run_file_is_named(trained, tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"data": ')
    text = run("infer", "--run-dir", tmp_path, "--out", tmp_path / "z.csv", status=2, capsys=capsys)
    assert "run.json: is damaged" in text


@pytest.mark.parametrize(
    "command", ["train", "infer", "impute", "info", "demo", "reproduce", "report"]
)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    parser = cli.make_parser()._subparsers._group_actions[0].choices[command]
    assert all(action.help for action in parser._actions)
    assert parser.description in capsys.readouterr().out.replace("\n", " ")


def test_info_runs_every_op_on_every_device(capsys):
    out = run("info", capsys=capsys)
    for op in ("relay_sample", "gaussian_log_likelihood", "row_adam"):
        assert any(line.split() == [op, "ok"] for line in out.splitlines())


def test_info_is_a_function_whether_or_not_its_module_was_imported():
    code = """
import rvi_fast
before = rvi_fast.info()
import rvi_fast.info
assert rvi_fast.info() == before
from rvi_fast.info import info
assert info() == before and "versions" in before
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_module_prints_the_same_table():
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "rvi_fast.info"], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "row_adam" in ended.stdout
