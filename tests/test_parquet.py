"""Directories of Parquet files: read in pieces, trained on, filled in file by file."""

import copy
import decimal
import os

import numpy as np
import pytest
import torch

import rvi_fast
from rvi_fast import data
from rvi_fast.cli.scales import scaler_of
from rvi_fast.data.parquet import columns
from rvi_fast.data.recipe import Units
from rvi_fast.training import impute_parquet, infer_parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

import parquet_parts  # noqa: E402


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "in"
    parquet_parts.write_directory(path)
    return path


@pytest.fixture(scope="module")
def model(directory, tmp_path_factory):
    table = data.ParquetDirectory(directory)
    generator = torch.Generator().manual_seed(0)
    shape = table.num_rows, len(table.features)
    made = rvi_fast.models.rvi(*shape, latent_dim=3, groups=(6,), hidden=(16,), generator=generator)
    x = table.mapped(tmp_path_factory.mktemp("cache"))
    rvi_fast.fit(made, x, epochs=15, batch_size=64, lr=0.01, progress=False)
    return made


def test_numbers_of_all_files_are_one_map(directory, tmp_path):
    table = data.ParquetDirectory(directory)
    x = table.mapped(tmp_path / "cache")
    files = parquet_parts.whole(directory)
    assert [file.name for file in table.files] == list(files)
    assert table.features == parquet_parts.NUMBERS
    assert dict(table.carried) == dict.fromkeys(("key", "when", "place"), "no number")
    assert x.shape == (table.num_rows, 6) == (2012, 6)
    assert isinstance(x, np.memmap)
    assert x.dtype == np.float32
    row = 0
    for file in files.values():
        for place, name in enumerate(parquet_parts.NUMBERS):
            expected = [np.nan if v is None else float(v) for v in file.column(name).to_pylist()]
            own = x[row : row + file.num_rows, place]
            np.testing.assert_array_equal(own, np.array(expected, np.float32))
        row += file.num_rows


def test_map_is_written_once_and_anew_for_files_that_have_changed(tmp_path):
    for part in range(2):
        parquet_parts.write_part(tmp_path / "in" / f"{part}.parquet", 40, part)
    cache = tmp_path / "cache"

    def mapped():
        return data.ParquetDirectory(tmp_path / "in").mapped(cache)

    first = np.array(mapped())
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(mapped(), first)
    assert file.stat().st_mtime_ns == written
    parquet_parts.write_part(tmp_path / "in" / "1.parquet", 40, 7)
    assert not np.array_equal(mapped(), first, equal_nan=True)
    assert len(list(cache.iterdir())) == 2
    # a file that was cut short is written anew
    os.truncate(file, 100)
    os.truncate(next(path for path in cache.iterdir() if path != file), 2000)
    assert np.isfinite(mapped()[:, 0]).sum() > 50


def test_rows_of_processes_are_parts_of_the_table_and_read_no_others(directory, tmp_path):
    table = data.ParquetDirectory(directory)
    everything = np.array(table.mapped(tmp_path))
    parts = [
        rvi_fast.training.distributed.rows_of_rank(table.num_rows, rank=rank, size=3)
        for rank in range(3)
    ]
    mapped = [table.mapped(tmp_path, rows=rows) for rows in parts]
    np.testing.assert_array_equal(np.concatenate(mapped), everything)
    for rows in (range(5, 5), range(0, 9, 2), range(-1, 4), range(2013)):
        with pytest.raises(ValueError, match="rows: expected a part of range"):
            table.mapped(tmp_path, rows=rows)
    # a damaged file that holds none of the rows is no hindrance
    broken = tmp_path / "broken"
    for part in range(2):
        parquet_parts.write_part(broken / f"{part}.parquet", 600, part)
    file = broken / "1.parquet"
    damaged = data.ParquetDirectory(broken)
    content = bytearray(file.read_bytes())
    content[4:2000] = b"\xff" * 1996
    file.write_bytes(content)
    assert len(damaged.mapped(tmp_path, rows=range(600))) == 600
    with pytest.raises(data.DataError, match=r"1\.parquet"):
        damaged.mapped(tmp_path, rows=range(599, 601))


def test_what_is_no_table_of_numbers_is_refused_by_file_and_column(tmp_path):
    with pytest.raises(data.DataError, match=r"expected a directory with \.parquet files"):
        data.ParquetDirectory(tmp_path)
    parquet_parts.write_part(tmp_path / "a.parquet", 40, 0)
    for option, name in (("columns", "nothing"), ("ignore", "nothing"), ("columns", "place")):
        with pytest.raises(ValueError, match=f"{option}: expected columns.*'{name}'"):
            data.ParquetDirectory(tmp_path, **{option: [name]})
    pq.write_table(pa.table({"x0": [1.0]}), tmp_path / "b.parquet")
    with pytest.raises(data.DataError, match=r"b\.parquet: expected one column 'x1'.*got none"):
        data.ParquetDirectory(tmp_path)
    pq.write_table(pa.table({"x0": ["word"]}), tmp_path / "b.parquet")
    with pytest.raises(data.DataError, match=r"b\.parquet: .*'x0' of numbers, got string"):
        data.ParquetDirectory(tmp_path, ["x0"])
    pq.write_table(pa.table({"x0": [1.0, 1e39]}), tmp_path / "b.parquet")
    with pytest.raises(data.DataError, match=r"b\.parquet: row 1, column 'x0': infinite"):
        data.ParquetDirectory(tmp_path, ["x0"]).mapped(tmp_path / "cache")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(data.DataError, match=r"b\.parquet"):
        data.ParquetDirectory(tmp_path)


def test_categories_are_codes_of_their_values_and_values_again(tmp_path):
    ordered = pa.DictionaryArray.from_arrays(
        pa.array([2, None, 0, 1], pa.int8()), ["low", "unused", "high"], ordered=True
    )
    texts = ["high", "low", None, "low"]
    table = {"x": [1.0, 2.0, 3.0, 4.0], "text": texts, "level": ordered, "code": [7, 9, None, 8]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    more = {"x": [1.0], "text": ["north"], "level": ordered[:1], "code": [7]}
    pq.write_table(pa.table(more), tmp_path / "b.parquet")
    names = ["text", "level", "code"]
    source = data.ParquetDirectory(tmp_path, categories=names)
    assert source.features == ("x", "text", "level", "code")
    assert source.categories == {
        "text": ("high", "low", "north"),
        "level": ("high", "low", "unused"),
        "code": (7, 8, 9),
    }
    nan = np.nan
    codes = [[0, 0, 0], [1, nan, 2], [nan, 1, nan], [1, 2, 1], [2, 0, 0]]
    np.testing.assert_array_equal(source.mapped(tmp_path / "cache")[:, 1:], codes)
    ((_, piece),) = source.chunks("a.parquet")
    for name, expected in (
        ("text", ["high", "low", "north", "low"]),
        ("level", ["high", "unused", "low", "unused"]),
        ("code", [7, 9, 9, 8]),
    ):
        column = piece.column(name)
        gaps = ~column.is_valid().to_numpy()
        filled = source.filled(name, column, np.array([nan, 1.8, 2.2, nan]), gaps)
        assert filled.type == column.type
        assert filled.to_pylist() == expected
    level = source.filled("level", piece.column("level"), np.zeros(4), np.ones(4, bool)).chunk(0)
    assert level.dictionary.to_pylist() == ["low", "unused", "high"]
    known = {"text": ["high", "low"], "level": ["high", "low", "unused"], "code": [7, 8, 9]}
    other = data.ParquetDirectory(tmp_path, categories=known)
    with pytest.raises(data.DataError, match=r"b\.parquet.*'text': row 0: 'north' is none of"):
        other.mapped(tmp_path / "cache")
    for wrong, said in (({"categories": ["x"]}, "'x'"), ({"categories": "text"}, "sequence")):
        with pytest.raises((data.DataError, TypeError), match=said):
            data.ParquetDirectory(tmp_path, **wrong)


def test_filled_cells_keep_the_type_of_their_column():
    where, values = np.array([True, False, True]), np.array([300.6, 5.0, -1e30])

    def filled(kind, own):
        found = columns.fill(pa.chunked_array([pa.array([None, own, None], kind)]), values, where)
        assert found.type == kind
        return found.to_pylist()

    assert filled(pa.uint8(), 7) == [255, 7, 0]
    assert filled(pa.int64(), 2**62 + 1) == [301, 2**62 + 1, -(2**63)]
    assert filled(pa.bool_(), True) == [True, True, False]
    big = decimal.Decimal("99999.99")
    assert filled(pa.decimal128(7, 2), big) == [decimal.Decimal("300.60"), big, -big]
    assert filled(pa.float32(), 0.1) == [np.float32(300.6), np.float32(0.1), np.float32(-1e30)]
    assert filled(pa.float16(), 2.0)[2] == -65504.0


@pytest.mark.parametrize("jobs", [1, 2])
def test_imputed_files_differ_from_the_others_in_missing_cells_alone(
    directory, model, tmp_path, jobs
):
    out = tmp_path / "out"
    done = impute_parquet(model, directory, out, jobs=jobs, progress=False)
    before, after = parquet_parts.whole(directory), parquet_parts.whole(out)
    assert before.keys() == after.keys()
    filled = 0
    for name, table in before.items():
        assert after[name].schema.equals(table.schema, check_metadata=True)
        own, other = pq.ParquetFile(directory / name), pq.ParquetFile(out / name)
        assert own.num_row_groups == other.num_row_groups == 2
        for column in table.column_names:
            old, new = table.column(column), after[name].column(column)
            values = old.to_pandas() if column in parquet_parts.NUMBERS else None
            missing = np.zeros(len(old), bool) if values is None else values.isna().to_numpy()
            assert new.filter(~missing).equals(old.filter(~missing)), column
            assert not new.to_pandas().isna().any()
            filled += missing.sum()
    assert done == (4, 4, 2012, filled)
    x = data.ParquetDirectory(directory).mapped(tmp_path / "cache")
    posterior = rvi_fast.infer(model, np.array(x[:500], np.float64), shared_noise=True)
    expected = rvi_fast.impute(model, np.array(x[:500], np.float64), posterior=posterior)
    first = after["month=0/0.parquet"].column("x0").to_numpy()
    torch.testing.assert_close(torch.from_numpy(first.copy()), expected[:, 0], rtol=0, atol=1e-3)


def test_keys_stand_beside_the_latents_of_their_rows(directory, model, tmp_path):
    out = tmp_path / "out"
    infer_parquet(model, directory, out, jobs=1, progress=False)
    x = np.array(data.ParquetDirectory(directory).mapped(tmp_path / "cache"))
    posterior = rvi_fast.infer(model, x, shared_noise=True)
    before, after = parquet_parts.whole(directory), parquet_parts.whole(out)
    for name in ("key", "when", "place"):
        for file, table in before.items():
            assert after[file].column(name).equals(table.column(name))
    found = pa.concat_tables(table.drop_columns(["place"]) for table in after.values())
    assert found.column_names == [
        *("key", "when", "mean_0", "mean_1", "mean_2", "std_0", "std_1", "std_2")
    ]
    for part, values in (("mean", posterior.mean()), ("std", posterior.std())):
        for place in range(3):
            own = torch.from_numpy(found.column(f"{part}_{place}").to_numpy().copy())
            torch.testing.assert_close(own, values[:, place].detach(), rtol=0, atol=1e-3)


def test_what_is_done_is_not_done_again(directory, model, tmp_path, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "out"
    for part in range(3):
        parquet_parts.write_part(source / f"{part}.parquet", 40, part)
    assert impute_parquet(model, source, out, jobs=1, progress=False).written == 3
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    parquet_parts.write_part(source / "1.parquet", 40, 9)  # another input
    (out / "2.parquet").unlink()  # an output that has gone
    parquet_parts.write_part(source / "3.parquet", 40, 3)  # a further file
    done = impute_parquet(model, source, out, jobs=1, progress=False)
    assert (done.files, done.written, done.rows) == (4, 3, 160)
    assert (out / "0.parquet").stat().st_mtime_ns == times["0.parquet"]
    os.truncate(out / "0.parquet", 100)
    assert impute_parquet(model, source, out, jobs=1, progress=False).written == 1
    assert pq.ParquetFile(out / "0.parquet").read().num_rows == 40


def test_output_of_another_origin_is_refused(directory, model, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    parquet_parts.write_part(source / "a.parquet", 40, 0)
    impute_parquet(model, source, out, jobs=1, progress=False)
    with pytest.raises(ValueError, match=r"out: .* was begun with another options"):
        impute_parquet(model, source, out, seed=1, jobs=1, progress=False)
    with pytest.raises(ValueError, match=r"out: .* was begun with another command"):
        infer_parquet(model, source, out, jobs=1, progress=False)
    other = rvi_fast.models.rvi(40, 6, latent_dim=3, groups=(6,), hidden=(16,))
    with pytest.raises(ValueError, match=r"out: .* was begun with another model"):
        impute_parquet(other, source, out, jobs=1, progress=False)
    (out / "_rvi_fast.jsonl").unlink()
    with pytest.raises(ValueError, match=r"out: expected .* without Parquet files.*a\.parquet"):
        impute_parquet(model, source, out, jobs=1, progress=False)
    for wrong in (source, source / "inside", tmp_path):
        with pytest.raises(ValueError, match="out: expected a directory apart from"):
            impute_parquet(model, source, wrong, jobs=1, progress=False)


def test_a_file_that_fails_leaves_the_others_alone(directory, model, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for part in range(3):
        parquet_parts.write_part(source / f"{part}.parquet", 40, part)
    table = data.ParquetDirectory(source)
    content = (source / "1.parquet").read_bytes()
    (source / "1.parquet").write_bytes(b"PAR1" + b"\xff" * (len(content) - 4))
    with pytest.raises(data.DataError, match=r"1\.parquet") as raised:
        impute_parquet(model, table, out, jobs=1, progress=False)
    assert "1 of 3 files failed" in raised.value.__notes__[-1]
    assert sorted(path.name for path in out.glob("*.parquet")) == ["0.parquet", "2.parquet"]


def test_columns_in_another_order_than_the_model_learned_are_refused(directory, model, tmp_path):
    turned = tuple(reversed(parquet_parts.NUMBERS))
    frame = copy.deepcopy(model)
    frame.columns = tuple(parquet_parts.NUMBERS)  # as `fit` to a DataFrame leaves it
    source = data.ParquetDirectory(directory, turned)
    with pytest.raises(ValueError, match=f"x: expected the columns .*, got {turned[0]}"):
        impute_parquet(frame, source, tmp_path / "out", steps=1, jobs=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_features_that_training_never_saw_stay_missing(directory, model, tmp_path):
    out = tmp_path / "out"
    impute_parquet(model, directory, out, unseen=["x1"], jobs=1, progress=False)
    for name, table in parquet_parts.whole(out).items():
        before = parquet_parts.whole(directory)[name].column("x1").to_numpy()
        np.testing.assert_array_equal(table.column("x1").to_numpy(), before)
        assert table.column("x0").null_count == 0


def test_scale_and_transform_in_pieces_are_those_of_the_whole_table(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3000, 4))
    x[:, 1], x[:, 2] = np.exp(2 * x[:, 1]), generator.standard_cauchy(3000)
    x[17, 0] = 1e5  # a wrong number, which the others share no scale with
    x[generator.random(x.shape) < 0.2] = np.nan
    columns, names = np.array([True, True, True, False]), ("a", "b", "c", "d")
    with pytest.warns(data.FarEntriesWarning):
        units = Units.fit(x, ~np.isnan(x), kind="auto", columns=columns)
    with pytest.warns(data.FarEntriesWarning, match="row 17, column 0"):
        scaler = scaler_of(x, "auto", columns, names)
    assert scaler.transform().kinds == units.transform.kinds == ["none", "log", "quantile", "none"]
    for name in ("mean", "std", "limit"):
        expected = torch.from_numpy(getattr(units.scale, name))
        torch.testing.assert_close(getattr(scaler, name), expected, rtol=1e-9, atol=1e-9)
    # of a sample: the ends of a column are those of all rows
    monkeypatch.setattr("rvi_fast.data.scaling._SAMPLED_ROWS", 300)
    with pytest.warns(data.FarEntriesWarning):
        knots = scaler_of(x, "auto", columns, names).transform().knots()[0]
    assert knots[1, :, 0].tolist() == [np.nanmin(x[:, 1]), np.nanmax(x[:, 1])]
    assert np.nanmax(knots[2, 0]) == np.nanmax(x[:, 2])
    assert scaler_of(x, "auto", np.zeros(4, bool), names) is None
    with pytest.raises(ValueError, match=r"--transform: expected positive.*column 'a'"):
        scaler_of(x, "log", columns, names)
