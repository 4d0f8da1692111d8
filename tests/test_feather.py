"""Feather: what pandas and pyarrow write is read, and comes out with nothing else changed."""

import contextlib

import numpy as np
import pytest

from rvi_fast import cli
from rvi_fast.data import DataError, read_table, write_table

pandas = pytest.importorskip("pandas")
feather = pytest.importorskip("pyarrow.feather")


@pytest.fixture
def frame():
    return pandas.DataFrame(
        {
            "name": ["a", "b", None, "d"],
            "count": np.array([1, 2, 2**53 + 1, 4], np.int64),
            "share": np.array([0.5, np.nan, 0.25, 1.0]),
            "kind": pandas.Categorical(["x", "y", "x", "y"]),
        }
    )


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_a_frame_is_read_and_filled_in_with_nothing_else_changed(tmp_path, frame, compression):
    feather.write_feather(frame, str(tmp_path / "a.feather"), compression=compression)
    table = read_table(tmp_path / "a.feather")
    assert table.features == ("count", "share")
    assert table.carried_names == ("name", "kind")
    where = np.isnan(table.values)
    write_table(tmp_path / "b.feather", table.filled(np.full(where.shape, 0.75), where))
    found = pandas.read_feather(tmp_path / "b.feather")
    pandas.testing.assert_frame_equal(found, frame.assign(share=[0.5, 0.75, 0.25, 1.0]))


@pytest.mark.parametrize("other", ["csv", "parquet", "arrow"])
def test_a_table_goes_to_other_formats_and_back(tmp_path, frame, other):
    feather.write_feather(frame, str(tmp_path / "a.feather"))
    write_table(tmp_path / f"b.{other}", read_table(tmp_path / "a.feather"))
    write_table(tmp_path / "c.feather", read_table(tmp_path / f"b.{other}"))
    found = pandas.read_feather(tmp_path / "c.feather")
    assert found["count"].tolist() == frame["count"].tolist()
    np.testing.assert_array_equal(found["share"], frame["share"])
    assert found["name"].where(found["name"].notna(), None).tolist() == frame["name"].tolist()


def test_a_file_cut_short_or_changed_is_refused_by_name(tmp_path, frame):
    path = tmp_path / "a.feather"
    feather.write_feather(frame, str(path), compression="uncompressed")
    content = path.read_bytes()
    for length in (0, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"a\.feather: "):
            read_table(path)
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            assert len(read_table(path).values) == 4


def test_the_command_line_trains_on_a_feather_file_and_fills_it_in(tmp_path, capsys):
    x = np.outer(np.linspace(-1, 1, 60), [1.0, 2.0, -1.0])
    x[::5, 1] = np.nan
    pandas.DataFrame(x, columns=list("abc")).to_feather(tmp_path / "x.feather")
    small = ("--epochs", "2", "--latent-dim", "2", "--hidden", "4", "--groups", "3", "--quiet")
    run_dir, out = str(tmp_path / "run"), str(tmp_path / "out.feather")
    assert (
        cli.main(["train", "--data", str(tmp_path / "x.feather"), "--run-dir", run_dir, *small])
        == 0
    )
    assert cli.main(["impute", "--run-dir", run_dir, "--out", out]) == 0
    filled = pandas.read_feather(out)
    assert filled.notna().all().all()
    np.testing.assert_array_equal(filled.to_numpy()[~np.isnan(x)], x[~np.isnan(x)])
