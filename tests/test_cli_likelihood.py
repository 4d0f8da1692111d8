"""`rvi-fast train --likelihood`, and what the other commands make of such a run."""

import json
import re

import numpy as np
import pytest

import rvi_fast
from rvi_fast.cli import main
from rvi_fast.cli.laws import laws_of

LAWS = ["smokes=bernoulli", "group=categorical", "visits=poisson"]
NAMES = ("weight", "smokes", "group", "visits")
N = 200


def table():
    generator = np.random.default_rng(0)
    health = generator.normal(size=N)
    x = np.column_stack(
        (
            70 - 8 * health + generator.normal(0, 4, N),
            health + generator.normal(size=N) < 0,
            np.digitize(health + 0.5 * generator.normal(size=N), (-0.5, 0.5)),
            generator.poisson(np.exp(1 - health)),
        )
    )
    return x, generator.random(x.shape) < 0.7


FULL, MASK = table()


def write(path, full=FULL, mask=MASK):
    lines = ["id," + ",".join(NAMES)]
    for row, (values, known) in enumerate(zip(full, mask, strict=True)):
        texts = [f"{values[0]:.2f}", *(f"{value:g}" for value in values[1:])]
        cells = [text if seen else "" for text, seen in zip(texts, known, strict=True)]
        lines.append(",".join([f"r{row}", *cells]))
    path.write_text("\n".join(lines) + "\n")
    return path


def train(path, run_dir, *options):
    short = ["--epochs", "20", "--lr", "0.01", "--batch-size", "32", "--quiet"]
    sizes = ["--latent-dim", "2", "--hidden", "8", "--groups", "8"]
    return main(["train", "--data", str(path), "--run-dir", str(run_dir), *short, *sizes, *options])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laws")
    assert train(write(folder / "t.csv"), folder / "run", "--likelihood", *LAWS) == 0
    return folder


def cells(path):
    return [line.split(",")[1:] for line in path.read_text().splitlines()[1:]]


def test_a_run_knows_the_laws_of_its_columns(run):
    stored = json.loads((run / "run" / "run.json").read_text())
    assert stored["likelihood"] == ["gaussian", "bernoulli", ["categorical", 3], "poisson"]
    model = rvi_fast.load(run / "run")
    assert model.law.columns == stored["likelihood"]
    assert model.scaler.std[1:].tolist() == [1, 1, 1]
    assert main(["export", "--run-dir", str(run / "run"), "--out", str(run / "m.st")]) == 0
    assert rvi_fast.load(run / "m.st").law.columns == stored["likelihood"]


@pytest.mark.parametrize("new", [False, True])
def test_what_is_filled_in_is_what_a_column_can_hold(run, new, tmp_path):
    data = ["--data", str(run / "t.csv"), "--steps", "20"] if new else []
    common = ["impute", "--run-dir", str(run / "run"), "--quiet", *data]
    assert main([*common, "--out", str(tmp_path / "f.csv")]) == 0
    assert main([*common, "--out", str(tmp_path / "w.csv"), "--estimate", "mode"]) == 0
    given = cells(run / "t.csv")
    for path in (tmp_path / "f.csv", tmp_path / "w.csv"):
        for before, after in zip(given, cells(path), strict=True):
            assert all(old in ("", now) for old, now in zip(before, after, strict=True))
            assert after[1] in ("0", "1")
            assert after[2] in ("0", "1", "2")
    means, wholes = cells(tmp_path / "f.csv"), cells(tmp_path / "w.csv")
    assert any(not row[3].isdecimal() for row in means)
    assert all(row[3].isdecimal() for row in wholes)


def test_draws_are_what_a_column_can_hold(run, tmp_path):
    out = tmp_path / "d.npy"
    assert main(["impute", "--run-dir", str(run / "run"), "--out", str(out), "--draws", "3"]) == 0
    draws = np.load(out)
    assert draws.shape == (3, N, 4)
    assert set(np.unique(draws[..., 1])) == {0, 1}
    assert set(np.unique(draws[..., 2])) == {0, 1, 2}
    assert (draws[..., 3] % 1 == 0).all()


def test_new_rows_are_inferred_and_refused_by_name(run, tmp_path, capsys):
    common = ["infer", "--run-dir", str(run / "run"), "--steps", "5", "--out"]
    assert main([*common, str(tmp_path / "l.csv"), "--data", str(run / "t.csv")]) == 0
    bad = FULL.copy()
    bad[7, 1] = 2
    write(tmp_path / "bad.csv", bad, np.ones_like(MASK))
    assert main([*common, str(tmp_path / "b.csv"), "--data", str(tmp_path / "bad.csv")]) != 0
    assert "--data: expected 0 or 1" in (error := capsys.readouterr().err)
    assert "got 2.0 at row 7, column 'smokes'" in error
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["weight=poisson"], "--data: expected a count .* at row 0, column 'weight'"),
        (["wt=poisson"], "--likelihood: expected a column 0 to 3, or one of weight, .* got 'wt'"),
        (["4=poisson"], "--likelihood: expected a column 0 to 3"),
        (["weight=gauss"], "--likelihood: expected one of .* got 'gauss' for column 'weight'"),
        (["group=categorical:1"], "at least 2, got 'categorical:1' for column 'group'"),
        (["poisson:3"], "--likelihood: expected one of .* got 'poisson:3'"),
        (["poisson", "gaussian"], "--likelihood: expected one LAW for all columns"),
        (["group=categorical:2"], "--data: expected a code 0 to 1, .* column 'group'"),
    ],
)
def test_what_is_no_law_or_does_not_fit_is_named_before_training(
    run, words, expected, tmp_path, capsys
):
    assert train(run / "t.csv", tmp_path / "run", "--likelihood", *words) != 0
    assert re.search(expected, capsys.readouterr().err)
    assert not (tmp_path / "run" / "run.json").exists()


def test_words_stand_for_laws():
    raw = np.array([[0.0, 4.0, np.nan], [1.0, np.nan, np.nan]])
    names = ("a", "b=c", "d")
    assert laws_of([], raw, names) == "gaussian"
    assert laws_of(["poisson"], raw, names) == "poisson"
    assert laws_of(["categorical"], raw, names) == [["categorical", k] for k in (2, 5, 2)]
    assert laws_of(["categorical:6"], raw, None) == [["categorical", 6]] * 3
    expected = ["poisson", ["categorical", 5], "bernoulli"]
    assert laws_of(["poisson", "b=c=categorical", "2=bernoulli"], raw, names) == expected


def test_a_resume_wants_the_same_laws(run, tmp_path, capsys):
    path, run_dir = write(tmp_path / "t.csv"), tmp_path / "run"
    assert train(path, run_dir, "--likelihood", *LAWS) == 0
    again = ("--epochs", "22", "--resume")
    assert train(path, run_dir, *again) != 0
    assert "--likelihood: expected ['gaussian', 'bernoulli', ['categorical', 3], 'poisson']" in (
        capsys.readouterr().err
    )
    assert train(path, run_dir, *again, "--likelihood", *LAWS) == 0


def test_counts_and_codes_are_not_transformed(tmp_path, capsys):
    generator = np.random.default_rng(0)
    full = FULL.copy()
    full[:, 0] = np.exp(3 * generator.normal(size=N)) + 0.01
    full[:, 3] = np.floor(np.exp(3 * generator.normal(size=N)))
    path = write(tmp_path / "t.csv", full)
    assert train(path, tmp_path / "plain") == 0
    assert "'weight' (log), 'visits'" in capsys.readouterr().out
    assert train(path, tmp_path / "laws", "--likelihood", *LAWS) == 0
    assert "transformed (--transform): 'weight' (log)\n" in capsys.readouterr().out
    assert rvi_fast.load(tmp_path / "laws").scaler.transform().kinds == ["log"] + ["none"] * 3


def test_a_table_of_yes_and_no_alone_has_no_scale(tmp_path):
    path = tmp_path / "yes.npy"
    np.save(path, np.where(MASK, FULL, np.nan)[:, [1, 1, 1]])
    assert train(path, tmp_path / "run", "--likelihood", "bernoulli") == 0
    assert rvi_fast.load(tmp_path / "run").scaler is None
    out = tmp_path / "f.npy"
    assert main(["impute", "--run-dir", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert set(np.unique(np.load(out))) == {0.0, 1.0}


def test_pixels_are_made_black_and_white_by_a_threshold(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")
    law = ("--likelihood", "bernoulli", "--subset", "200", "--missing", "0.5")
    assert train("digits", tmp_path / "grey", *law) != 0
    assert "expected 0 or 1 as x / 255" in (error := capsys.readouterr().err)
    assert "--binarize" in error
    run_dir = tmp_path / "run"
    assert train("digits", run_dir, *law, "--binarize", "0.25") == 0
    assert json.loads((run_dir / "run.json").read_text())["binarize"] == 0.25
    out = tmp_path / "f.npy"
    assert main(["impute", "--run-dir", str(run_dir), "--out", str(out), "--quiet"]) == 0
    filled = np.load(out)
    full = rvi_fast.data.load_data("digits").train
    chosen = np.sort(np.random.default_rng(0).permutation(len(full))[:200])
    expected = np.where(full[chosen] > 0.25 * 255, 255, 0)
    assert filled.dtype == np.uint8
    assert set(np.unique(filled)) == {0, 255}
    assert np.mean(filled == expected) > 0.85
    new = tmp_path / "new.npy"
    np.save(new, full[:20])
    options = ["--data", str(new), "--missing", "0.2", "--steps", "5", "--quiet"]
    assert main(["impute", "--run-dir", str(run_dir), "--out", str(out), *options]) == 0
    assert set(np.unique(np.load(out))) == {0, 255}


@pytest.mark.parametrize(
    ("data", "threshold", "words"),
    [
        ("t.csv", (), "--binarize: expected pixels (uint8), got a table of numbers"),
        ("digits", ("1",), "--binarize: expected a threshold from 0 to below 1, got 1.0"),
    ],
)
def test_binarize_is_for_pixels(run, data, threshold, words, tmp_path, capsys):
    path = run / data if data == "t.csv" else data
    assert train(path, tmp_path / "run", "--binarize", *threshold) != 0
    assert words in capsys.readouterr().err
