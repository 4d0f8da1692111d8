"""`rvi-fast train | infer | impute` of a directory of Parquet files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvi_fast import cli, data

pytest.importorskip("pandas")
pq = pytest.importorskip("pyarrow.parquet")

import parquet_parts  # noqa: E402

ROOT = Path(__file__).parent.parent
SMALL = ("--latent-dim", 3, "--hidden", 16, "--groups", 6, "--lr", 0.01)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "in"
    parquet_parts.write_directory(path)
    return path


def test_command_line_takes_a_directory_where_it_takes_a_file(directory, tmp_path, capsys):
    def run(*words, status=0):
        assert cli.main([str(word) for word in words]) == status
        return capsys.readouterr()

    small = ("--epochs", 10, *SMALL)
    run_dir = tmp_path / "run"
    quiet = ("--run-dir", run_dir, "--quiet")
    laws = ("--likelihood", "flag=bernoulli", "place=categorical")
    said = run("train", "--data", directory, *laws, *quiet, *small).out
    assert "4 files, 2012 rows, 7 features, 17.3% missing" in said
    assert "carried along: 'key' (no number), 'when' (no number)" in said
    assert len(list((tmp_path / "run.cache").glob("*.npy"))) == 1
    said = run("impute", "--out", tmp_path / "out", "--jobs", 1, "--min-value", -3, *quiet).out
    assert said.splitlines()[-1].endswith("4 files")
    said = run(
        *("impute", "--data", directory, "--out", tmp_path / "out", "--jobs", 1),
        *("--min-value", -3, *quiet),
    ).out
    assert said.splitlines()[-1].endswith("4 files, 4 of which were there")
    for table in parquet_parts.whole(tmp_path / "out").values():
        assert min(table.column("x0").to_pylist()) >= -10
        assert table.column("x0").null_count == 0
    run("infer", "--data", directory, "--out", tmp_path / "latents", "--jobs", 1, *quiet)
    assert parquet_parts.whole(tmp_path / "latents").keys() == parquet_parts.whole(directory).keys()
    # the same run goes on
    run("train", "--data", directory, *laws, *quiet, *small, "--resume")
    other = ("--run-dir", tmp_path / "numbers", "--quiet")
    run("train", "--data", directory, *other, *small)
    one = directory / "month=0/0.parquet"
    run("impute", "--data", one, "--out", tmp_path / "one.parquet", *other)
    assert pq.ParquetFile(tmp_path / "one.parquet").read().num_rows == 500
    for option in ("--subset 5", "--missing 0.1", "--recipe figure", "--no-header"):
        error = run(
            *("train", "--data", directory, "--run-dir", tmp_path / "other", *option.split()),
            status=2,
        ).err
        assert f"{option.split()[0].replace('no-', '')}: expected none with a directory" in error


def test_heavy_tails_of_a_directory_are_bent_and_filled_in_within_their_range(tmp_path, capsys):
    generator = np.random.default_rng(0)
    z = generator.normal(size=(1200, 1))
    x = np.exp(2 * z + 0.1 * generator.normal(size=(1200, 3)))
    low, high = x.min(0), x.max(0)
    x[generator.random(x.shape) < 0.2] = np.nan
    (tmp_path / "in").mkdir()
    for part in range(2):
        data.save_table(tmp_path / "in" / f"{part}.parquet", x[part::2], ["a", "b", "c"])
    run = ("--run-dir", str(tmp_path / "run"), "--quiet")
    small = (
        "--epochs",
        "20",
        "--latent-dim",
        "2",
        "--hidden",
        "16",
        "--groups",
        "4",
        "--lr",
        ".01",
    )
    assert cli.main(["train", "--data", str(tmp_path / "in"), *run, *small]) == 0
    assert "transformed (--transform): 'a' (log), 'b' (log), 'c' (log)" in capsys.readouterr().out
    assert cli.main(["impute", "--out", str(tmp_path / "out"), "--jobs", "1", *run]) == 0
    for table in parquet_parts.whole(tmp_path / "out").values():
        for place, column in enumerate(table.columns):
            values = column.to_numpy()
            assert np.isfinite(values).all()
            assert low[place] - 1e-6 <= values.min()
            assert values.max() <= high[place] + 1e-6


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="gloo by torchrun is tested where there is fork"
)
@pytest.mark.filterwarnings("ignore::rvi_fast.training.CollapseWarning")  # two epochs
def test_tables_in_files_train_on_a_directory_as_tables_in_memory_do(
    directory, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    losses = []
    for name, more in (("memory", ()), ("files", ("--storage", "tables"))):
        words = ("train", "--data", directory, "--run-dir", name, "--quiet", "--epochs", 2, *SMALL)
        assert cli.main([str(word) for word in (*words, *more)]) == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # batches in another order
    assert (tmp_path / "tables" / "tables.json").exists()
    monkeypatch.chdir(directory)  # the run knows where its tables are
    words = ("impute", "--run-dir", tmp_path / "files", "--out", tmp_path / "out", "--jobs", 1)
    assert cli.main([str(word) for word in (*words, "--quiet")]) == 0
    assert len(parquet_parts.whole(tmp_path / "out")) == 4


def test_processes_of_torchrun_train_on_rows_of_their_own(directory, tmp_path, capsys):
    run_dir = tmp_path / "run"
    # a port of the system's choice
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    command = ("rvi_fast.cli", "train", "--data", directory, "--run-dir", run_dir, "--quiet")
    command = [sys.executable, *launch, *map(str, (*command, "--epochs", 3, *SMALL))]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    names = sorted(path.name.split("-", 2)[2] for path in (tmp_path / "run.cache").iterdir())
    assert names == ["0-1006.npy", "1006-2012.npy"]
    together = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    alone = tmp_path / "alone"
    arguments = ("train", "--data", directory, "--run-dir", alone, "--transform", "none", "--quiet")
    assert cli.main([str(word) for word in (*arguments, "--epochs", 3, *SMALL)]) == 0
    lines = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for one, other in zip(lines, together, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
