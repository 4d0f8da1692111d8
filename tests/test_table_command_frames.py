"""Parquet, Excel and NumPy files of `rvi-fast impute FILE`: dtypes and observed values are kept."""

import datetime

import numpy as np
import pytest

pandas = pytest.importorskip("pandas", reason="pandas is missing: the extra tabular")

from rvi_fast.cli.table.sources import Options, read_source  # noqa: E402

FRAME = pandas.DataFrame(
    {
        "id": [101, 102, 103, 104, 105, 106],
        "x": [0.1, np.nan, 2.25, -3.5, 0.75, 1.5],
        "n": pandas.array([4, 5, None, 4, 7, 8], dtype="Int16"),
        "whole": [3.0, np.nan, 5.0, 5.0, 9.0, 2.0],
        "yes": pandas.array([True, None, False, True, True, False], dtype="boolean"),
        "class": pandas.Categorical(["b", "a", None, "a", "b", "b"], categories=["c", "b", "a"]),
        "word": ["red", None, "red", "blue", "blue", "red"],
        "day": pandas.to_datetime(
            ["2020-01-01", None, "2020-03-05", "2021-01-01", "2020-01-01", "2020-02-01"]
        ),
    }
)
KINDS = ["text", "number", "integer", "integer", "boolean", "category", "category", "date"]
FILLS = {
    1: {1: 9.5},
    2: {2: 6},
    3: {1: 4},
    4: {1: True},
    5: {2: "c"},
    6: {1: "blue"},
    7: {1: pandas.Timestamp(2020, 6, 1)},
}


def write_source(source, draws, out):
    out.write_bytes(source.content(draws, out))


def parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is missing: the extra tabular")
    path = tmp_path / "in.parquet"
    FRAME.to_parquet(path, index=False)
    return path


def test_parquet_keeps_dtypes_and_observed_values(tmp_path):
    source = read_source(parquet(tmp_path), Options())
    assert [own.kind for own in source.columns] == KINDS
    write_source(source, [FILLS], tmp_path / "out.parquet")
    filled = pandas.read_parquet(tmp_path / "out.parquet")
    before = pandas.read_parquet(tmp_path / "in.parquet")
    assert (filled.dtypes == before.dtypes).all()
    known = before.notna()
    assert filled.where(known).equals(before.where(known))
    assert not filled.isna().any().any()
    for column, own in FILLS.items():
        for row, value in own.items():
            assert filled.iloc[row, column] == value


def test_parquet_of_several_draws_counts_them_in_a_column(tmp_path):
    source = read_source(parquet(tmp_path), Options())
    write_source(source, [FILLS, FILLS | {1: {1: -1.0}}], tmp_path / "out.parquet")
    filled = pandas.read_parquet(tmp_path / "out.parquet")
    assert filled["draw"].tolist() == [1] * 6 + [2] * 6
    assert filled["x"][[1, 7]].tolist() == [9.5, -1.0]
    assert (
        filled.drop(columns="draw").dtypes == pandas.read_parquet(tmp_path / "in.parquet").dtypes
    ).all()


def test_text_becomes_typed_columns_in_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is missing: the extra tabular")
    path = tmp_path / "in.csv"
    path.write_text(
        "id;x;n;day;word\nk1;0,5;3;31.01.2020;a\nk2;;?;01.02.2020;b\nk3;1,5;4;;a\nk4;2,5;9;02.03.2021;b\n"
    )
    source = read_source(path, Options())
    fills = {1: {1: 0.25}, 2: {1: 5}, 3: {2: pandas.Timestamp(2020, 5, 1)}}
    write_source(source, [fills], tmp_path / "out.parquet")
    filled = pandas.read_parquet(tmp_path / "out.parquet")
    assert filled["x"].tolist() == [0.5, 0.25, 1.5, 2.5]
    assert filled["n"].tolist() == [3, 5, 4, 9]
    assert str(filled["n"].dtype) == "Int64"
    assert filled["day"][2] == pandas.Timestamp(2020, 5, 1)
    assert filled["word"].tolist() == ["a", "b", "a", "b"]
    assert filled["id"].tolist() == ["k1", "k2", "k3", "k4"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_arrays_keep_observed_values_and_dtype(tmp_path, dtype):
    x = np.array([[0.1, 2.5], [np.nan, 1.25], [3.5, np.nan], [0.5, 0.2]], dtype)
    np.save(tmp_path / "in.npy", x)
    source = read_source(tmp_path / "in.npy", Options())
    write_source(source, [{0: {1: 7.0}, 1: {2: 8.0}}], tmp_path / "out.npy")
    filled = np.load(tmp_path / "out.npy")
    assert filled.dtype == dtype
    assert np.array_equal(filled, np.where(np.isnan(x), [[0, 0], [7, 0], [0, 8], [0, 0]], x))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4)), r"expected numbers \[N, D\]"),
        (np.array([["a"]]), r"expected numbers \[N, D\]"),
        (np.zeros((0, 3)), "an empty table"),
        (
            np.array([[1.0, np.inf], [2.0, 3.0]]),
            "row 0, column 1: expected a finite number, got inf",
        ),
    ],
)
def test_arrays_that_are_no_table_are_refused(tmp_path, array, message):
    np.save(tmp_path / "in.npy", array)
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path / "in.npy", Options())


def workbook(path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is missing")
    book = openpyxl.Workbook()
    sheet = book.active
    rows = [
        ["id", "x", "n", "day", "word", "total"],
        ["k1", 0.5, 3, datetime.datetime(2020, 1, 31), "a", 1],
        ["k2", None, "?", datetime.datetime(2020, 2, 1), "b", 2],
        ["k3", 1.5, 4, None, None, 5],
        ["k4", 2.5, 9, datetime.datetime(2021, 3, 2), "b", 7],
        ["k5", 2.75, 9, datetime.datetime(2021, 3, 2), "a", 9],
    ]
    for row in rows:
        sheet.append(row)
    sheet["B1"].font = openpyxl.styles.Font(bold=True)
    book.create_sheet("other")["A1"] = "kept"
    book.save(path)
    return openpyxl


def test_workbooks_keep_all_but_their_empty_cells(tmp_path):
    openpyxl = workbook(tmp_path / "in.xlsx")
    source = read_source(tmp_path / "in.xlsx", Options())
    assert [own.kind for own in source.columns] == [
        "text",
        "number",
        "integer",
        "date",
        "category",
        "integer",
    ]
    fills = {1: {1: 0.25}, 2: {1: 5}, 3: {2: pandas.Timestamp(2020, 5, 1)}, 4: {2: "a"}}
    write_source(source, [fills], tmp_path / "out.xlsx")
    before, after = (openpyxl.load_workbook(tmp_path / f"{name}.xlsx") for name in ("in", "out"))
    changed = {
        (column - 1, row - 2): after.worksheets[0].cell(row, column).value
        for row in range(1, 7)
        for column in range(1, 7)
        if after.worksheets[0].cell(row, column).value
        != before.worksheets[0].cell(row, column).value
    }
    assert changed == {(1, 1): 0.25, (2, 1): 5, (3, 2): datetime.datetime(2020, 5, 1), (4, 2): "a"}
    assert after["other"]["A1"].value == "kept"
    assert after.worksheets[0]["B1"].font.bold
