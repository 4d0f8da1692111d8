"""`rvi-fast train --resume` with more rows than the run had."""

import json
import shutil

import numpy as np
import pytest
import torch

import rvi_fast
from rvi_fast import cli, data
from rvi_fast.posteriors.tables import rows_in

N, MORE = 80, 40
SMALL = ("--latent-dim", 3, "--hidden", 8, "--groups", 4, "--batch-size", 32, "--quiet")


@pytest.fixture
def run(capsys):
    def call(*words, status=0):
        assert cli.main([str(word) for word in words]) == status
        said = capsys.readouterr()
        return said.err if status else said.out

    return call


@pytest.fixture
def files(tmp_path):
    """A table and one with more rows after those, some entries missing."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(N + MORE, 2))
    x = z @ generator.normal(size=(2, 4)) + 0.1 * generator.normal(size=(N + MORE, 4))
    x[generator.random(x.shape) < 0.1] = np.nan
    few, more = tmp_path / "few.csv", tmp_path / "more.csv"
    data.save_table(few, x[:N], list("abcd"))
    data.save_table(more, x, list("abcd"))
    return few, more


def train(run, file, run_dir, epochs, *options, status=0):
    words = ("train", "--data", file, "--run-dir", run_dir, "--epochs", epochs)
    return run(*words, *SMALL, *options, status=status)


@pytest.mark.parametrize("hidden", [0, 0.2])
def test_a_run_goes_on_with_more_rows_as_fit_does(run, files, tmp_path, hidden):
    few, more = files
    options = ("--missing", hidden)
    train(run, few, tmp_path / "run", 2, *options)
    first = rvi_fast.load(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "python")
    said = train(run, more, tmp_path / "run", 3, "--resume", *options)
    assert f"  {MORE} rows added to the {N} of {tmp_path / 'run'}: they start at the mean" in said
    model = rvi_fast.load(tmp_path / "run")
    assert (model.num_data, first.num_data) == (N + MORE, N)
    assert model.scaler.to_dict() == first.scaler.to_dict()
    # the same by fit, with what the command has hidden
    x = data.read_table(more).values
    mask = data.mcar(x.shape, hidden) & ~np.isnan(x)
    other = rvi_fast.load(tmp_path / "python")
    other.posterior.extend(MORE)
    rvi_fast.fit(
        other,
        np.where(mask, x, np.nan),
        epochs=3,
        batch_size=32,
        progress=False,
        run_dir=tmp_path / "python",
        resume=True,
    )
    assert torch.equal(other.posterior.rows, model.posterior.rows)
    # and then as ever: nothing is added, and the training data are those of now
    assert "rows added" not in train(run, more, tmp_path / "run", 4, "--resume", *options)
    run("impute", "--run-dir", tmp_path / "run", "--out", tmp_path / "out.csv")
    assert len(data.read_table(tmp_path / "out.csv").values) == N + MORE


def test_other_rows_and_fewer_are_refused_and_the_run_is_left_alone(run, files, tmp_path):
    few, more = files
    train(run, few, tmp_path / "run", 1)
    before = (tmp_path / "run" / "run.json").read_bytes()
    x = data.read_table(more).values
    for name, rows in {"moved": x[::-1], "fewer": x[: N - 1], "changed": np.nan_to_num(x)}.items():
        path = tmp_path / f"{name}.csv"
        data.save_table(path, rows, list("abcd"))
        said = train(run, path, tmp_path / "run", 2, "--resume", status=2)
        assert "go on with the data of then, perhaps with more rows after them" in said
    said = train(run, more, tmp_path / "run", 2, "--resume", "--missing", 0.2, status=2)
    assert "--missing: expected 0.0" in said
    same = tmp_path / "same.csv"
    shutil.copy(few, same)
    assert "--data: expected" in train(run, same, tmp_path / "run", 2, "--resume", status=2)
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_what_ends_before_the_first_checkpoint_with_more_rows_leaves_both_ways(
    run, files, tmp_path, monkeypatch
):
    few, more = files
    train(run, few, tmp_path / "run", 1)

    def ends(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rvi_fast.cli.building.fit", ends)
        train(run, more, tmp_path / "run", 2, "--resume", status=130)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["rows"] == N + MORE
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    train(run, more, tmp_path / "run", 2, "--resume")
    assert rvi_fast.load(tmp_path / "run").num_data == N + MORE
    # the rows that it has been trained on; under the name that it has now
    shutil.copy(few, more)
    run("impute", "--run-dir", tmp_path / "other", "--out", tmp_path / "out.csv")
    train(run, more, tmp_path / "other", 2, "--resume")
    assert rvi_fast.load(tmp_path / "other").num_data == N


def test_tables_in_files_get_the_rows(run, files, tmp_path, monkeypatch):
    few, more = files
    memory = ("--storage", "host")
    for name, options in (("a", memory), ("b", ("--storage", tmp_path / "tables"))):
        train(run, few, tmp_path / name, 1, *options)
    with monkeypatch.context() as patched:  # what ends after the files have grown
        patched.setattr("rvi_fast.cli.train.check_laws", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(run, more, tmp_path / "b", 2, "--resume", "--storage", tmp_path / "tables")
    assert rows_in(tmp_path / "tables") == N + MORE
    for name, options in (("a", memory), ("b", ("--storage", tmp_path / "tables"))):
        assert f"{MORE} rows added" in train(run, more, tmp_path / name, 2, "--resume", *options)
    rows = [rvi_fast.load(tmp_path / name).posterior.rows for name in "ab"]
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-6)
    assert len(rows[0]) == N + MORE


def test_an_encoder_gets_the_rows(run, files, tmp_path):
    few, more = files
    words = ("--model", "vae", "--mask-input")
    small = [*SMALL]
    del small[4:6]

    def vae(file, epochs, *options):
        place = ("--data", file, "--run-dir", tmp_path / "run", "--epochs", epochs)
        return run("train", *place, *small, *words, *options)

    vae(few, 1)
    assert f"{MORE} rows added" in vae(more, 2, "--resume")
    assert rvi_fast.load(tmp_path / "run").num_data == N + MORE


def test_a_directory_gets_files(run, files, tmp_path):
    pytest.importorskip("pyarrow")
    x = data.read_table(files[1]).values
    (tmp_path / "in").mkdir()
    data.save_table(tmp_path / "in" / "0.parquet", x[:N], list("abcd"))
    train(run, tmp_path / "in", tmp_path / "run", 1)
    data.save_table(tmp_path / "in" / "1.parquet", x[N:], list("abcd"))
    assert f"{MORE} rows added" in train(run, tmp_path / "in", tmp_path / "run", 2, "--resume")
    assert rvi_fast.load(tmp_path / "run").num_data == N + MORE
    # rows before those of the run
    data.save_table(tmp_path / "in" / "-1.parquet", x[N:], list("abcd"))
    said = train(run, tmp_path / "in", tmp_path / "run", 3, "--resume", status=2)
    assert "data: expected those of" in said
