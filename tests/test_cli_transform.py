"""`rvi-fast train --transform`, and what the command says of a table's columns."""

import json
import subprocess
import sys

import numpy as np
import pytest

import rvi_fast
from rvi_fast import cli, data
from rvi_fast.training import CollapseWarning
from rvi_fast.training.runs.directory import read_run, write_run

N = 300
SMALL = ("--latent-dim", 4, "--hidden", 16, "--groups", 8, "--batch-size", 64, "--quiet")
TRAINED = (*SMALL, "--epochs", 200, "--lr", 0.01)
BARELY = (*SMALL, "--epochs", 2)


def run(*arguments, status=0, capsys=None):
    assert cli.main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def prices(seed=0):
    """[N, 4] log-normal columns (sigma 1.5) of two factors, and one that is not."""
    generator = np.random.default_rng(seed)
    factors = generator.normal(size=(N, 2))
    mixed = factors @ generator.normal(size=(2, 4)) / 2**0.5
    x = np.exp(1.5 * mixed + 0.1 * generator.normal(size=mixed.shape))
    return np.column_stack((x, 5 + factors[:, 0]))


def write(path, x):
    lines = [",".join("" if np.isnan(value) else f"{value:.9g}" for value in row) for row in x]
    path.write_text("\n".join(["a,b,c,d,e", *lines]) + "\n")


@pytest.fixture
def table(tmp_path):
    """A text table with a fifth missing; its path, and the numbers without gaps."""
    x = prices()
    shown = np.where(np.random.default_rng(1).random(x.shape) < 0.2, np.nan, x)
    write(tmp_path / "t.csv", shown)
    return tmp_path / "t.csv", x


def test_columns_with_heavy_tails_are_filled_in_by_their_logarithms(table, tmp_path, capsys):
    path, x = table
    text = run("train", "--data", path, "--run-dir", tmp_path / "r", *TRAINED, capsys=capsys)
    assert "heavy tails, transformed (--transform): 'a' (log), 'b' (log)" in text
    assert "'e' (" not in text
    out = tmp_path / "filled.csv"
    # the training data, and the same as new rows
    for source in ((), ("--data", path)):
        run("impute", "--run-dir", tmp_path / "r", "--out", out, "--quiet", *source, capsys=capsys)
        before = [line.split(",") for line in path.read_text().split("\n")[1:-1]]
        after = [line.split(",") for line in out.read_text().split("\n")[1:-1]]
        assert len(after) == N
        wrong, median = [], []
        columns = np.array([[float(cell or "nan") for cell in row] for row in before])
        middle = np.nanmedian(columns, axis=0)
        for row in range(N):
            for column, (old, new) in enumerate(zip(before[row], after[row], strict=True)):
                if old:
                    assert new == old
                else:
                    seen = columns[:, column]
                    assert np.nanmin(seen) * 0.999 < float(new) < np.nanmax(seen) * 1.001
                    wrong.append(abs(float(new) - x[row, column]) / middle[column])
                    median.append(abs(middle[column] - x[row, column]) / middle[column])
        assert np.median(wrong) < 0.5 * np.median(median)
        assert np.mean(wrong) < np.mean(median)


def test_draws_stay_within_what_was_observed(table, tmp_path, capsys):
    path, _ = table
    run("train", "--data", path, "--run-dir", tmp_path / "r", *BARELY, capsys=capsys)
    run("impute", "--run-dir", tmp_path / "r", "--out", tmp_path / "f.npy", "--draws", 3, "--quiet",
        capsys=capsys)  # fmt: skip
    draws, read = np.load(tmp_path / "f.npy"), data.read_table(path).values
    assert draws.shape == (3, N, 5)
    columns = rvi_fast.load(tmp_path / "r").scaler.transform().to_dict()["columns"]
    heavy = [column for column, bent in enumerate(columns) if bent["kind"] != "none"]
    assert len(heavy) >= 2
    assert (draws >= np.nanmin(read, axis=0))[..., heavy].all()
    assert (draws <= np.nanmax(read, axis=0))[..., heavy].all()
    np.testing.assert_array_equal(draws[0][~np.isnan(read)], read[~np.isnan(read)])


def test_columns_of_new_rows_are_bent_as_in_training_whatever_their_order(table, tmp_path, capsys):
    path, _ = table
    run("train", "--data", path, "--run-dir", tmp_path / "r", *BARELY, capsys=capsys)
    order = [4, 2, 0, 3, 1]
    lines = [line.split(",") for line in path.read_text().split("\n")[:-1]]
    (tmp_path / "o.csv").write_text(
        "".join(",".join(line[column] for column in order) + "\n" for line in lines)
    )
    for name in ("t.csv", "o.csv"):
        run("impute", "--run-dir", tmp_path / "r", "--data", tmp_path / name, "--quiet",
            "--out", tmp_path / f"filled-{name}", capsys=capsys)  # fmt: skip
    first = [line.split(",") for line in (tmp_path / "filled-t.csv").read_text().split()]
    other = [line.split(",") for line in (tmp_path / "filled-o.csv").read_text().split()]
    assert [[line[column] for column in order] for line in first] == other


def test_the_transform_is_the_run_s_until_another_is_asked_for(table, tmp_path, capsys):
    path, _ = table
    run_dir = tmp_path / "r"
    train = ("train", "--data", path, "--run-dir", run_dir, *BARELY)
    run(*train, "--transform", "quantile", capsys=capsys)
    run(*train, "--resume", capsys=capsys)
    run(*train, "--resume", "--transform", "quantile", capsys=capsys)
    text = run(*train, "--resume", "--transform", "log", status=2, capsys=capsys)
    assert f"--transform: expected 'quantile' as in {run_dir}, got 'log'" in text


def test_a_run_without_a_transform_in_its_file_has_none(table, tmp_path, capsys):
    path, _ = table
    run_dir = tmp_path / "r"
    train = ("train", "--data", path, "--run-dir", run_dir, *BARELY)
    run(*train, "--transform", "none", capsys=capsys)
    stored = read_run(run_dir)
    del stored["transform"], stored["recipe"]
    write_run(run_dir, stored)
    run(*train, "--resume", capsys=capsys)
    text = run(*train, "--resume", "--transform", "auto", status=2, capsys=capsys)
    assert "--transform: expected 'none'" in text
    text = run(
        "impute", "--run-dir", run_dir, "--out", tmp_path / "f.csv", "--quiet", capsys=capsys
    )
    assert "transformed" not in text


def test_named_data_sets_are_transformed_where_that_is_asked_for(tmp_path, capsys):
    train = ("train", "--data", "artificial", "--subset", 100, *BARELY)
    text = run(*train, "--run-dir", tmp_path / "a", capsys=capsys)
    assert "transformed" not in text
    assert json.loads((tmp_path / "a" / "run.json").read_text())["transform"] == "none"
    text = run(*train, "--run-dir", tmp_path / "b", "--transform", "quantile", capsys=capsys)
    assert "transformed (--transform): 0 (quantile), 1 (quantile)" in text


@pytest.mark.parametrize("transform", ["log", "quantile"])
def test_pixels_are_not_transformed(tmp_path, capsys, transform):
    np.save(tmp_path / "p.npy", np.random.default_rng(0).integers(0, 256, (50, 9), np.uint8))
    text = run("train", "--data", tmp_path / "p.npy", "--run-dir", tmp_path / "r", *BARELY,
               "--transform", transform, status=2, capsys=capsys)  # fmt: skip
    assert f"--transform: expected auto or none for pixels (uint8), got {transform}" in text
    assert not (tmp_path / "r").exists()


def test_logarithms_of_what_is_not_positive_are_refused_by_row_and_name(tmp_path, capsys):
    x = prices()
    x[7, 2] = 0
    write(tmp_path / "t.csv", x)
    text = run("train", "--data", tmp_path / "t.csv", "--run-dir", tmp_path / "r", *BARELY,
               "--transform", "log", status=2, capsys=capsys)  # fmt: skip
    assert "--transform: expected positive numbers for log, got 0.0 in row 7, column 'c'" in text


def test_a_wrong_entry_is_named_by_row_and_column_of_the_file(tmp_path, capsys):
    x = prices()
    x[9, 4] = 1e7
    write(tmp_path / "t.csv", x)
    with pytest.warns(data.FarEntriesWarning) as caught:
        run("train", "--data", tmp_path / "t.csv", "--run-dir", tmp_path / "r", *BARELY,
            capsys=capsys)  # fmt: skip
    texts = [str(w.message) for w in caught if w.category is data.FarEntriesWarning]
    assert len(texts) == 1
    assert texts[0].startswith("10000000.0 in row 9, column 'e': too far")


def test_a_training_that_learned_nothing_says_so_in_one_line(tmp_path):
    write(tmp_path / "t.csv", np.random.default_rng(0).normal(size=(N, 5)))
    train = ["train", "--data", tmp_path / "t.csv", "--run-dir", tmp_path / "r", *BARELY]
    done = subprocess.run(
        [sys.executable, "-m", "rvi_fast", *map(str, train)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("rvi-fast: warning: the model finds held-out entries no better than the")


def test_a_training_that_learned_something_says_nothing(table, tmp_path, recwarn):
    train = [str(part) for part in ("train", "--data", table[0], *TRAINED)]
    assert cli.main([*train, "--run-dir", str(tmp_path / "a")]) == 0
    assert not [warning for warning in recwarn if warning.category is CollapseWarning]


def test_advice_after_a_few_steps_is_more_of_them_and_not_a_smaller_learning_rate(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(400, 8))  # nothing to be learned
    data.save_table(tmp_path / "t.csv", x)
    train = ("train", "--data", tmp_path / "t.csv", "--run-dir", tmp_path / "r", *SMALL)
    with pytest.warns(CollapseWarning, match=r"made 14 steps, and small tables need 2000 or more"):
        run(*train, "--epochs", 2, capsys=capsys)
    with pytest.warns(CollapseWarning, match=r"Try a smaller lr, which is 0\.001"):
        run(*train, "--epochs", 300, "--resume", capsys=capsys)
