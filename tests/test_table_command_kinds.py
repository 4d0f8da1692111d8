"""Kinds of columns that `rvi-fast impute FILE` finds, and how it writes values of each."""

import numpy as np
import pytest
from messy_table import messy_table

pandas = pytest.importorskip("pandas", reason="pandas is missing: the extra tabular")

from rvi_fast.cli.table.sources import Options, read_source  # noqa: E402

DAY, MORNING = pandas.Timestamp(2020, 3, 4), pandas.Timestamp(2020, 3, 4, 5)


def columns(tmp_path, text, **options):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_source(path, Options(**options)).columns


def column(tmp_path, cells, **options):
    """The column of a table of one, with as many rows as there are cells."""
    return columns(
        tmp_path,
        "\n".join(["x;y", *(f"{cell};z{row}" for row, cell in enumerate(cells))]),
        **options,
    )[0]


def test_a_messy_table_has_the_kinds_of_its_columns(tmp_path):
    messy = messy_table(300)
    found = columns(tmp_path, messy.content)
    kinds = dict(zip(messy.names, (own.kind for own in found), strict=True))
    assert kinds == {
        "id": "text",
        "Alter": "integer",
        "Einkommen": "number",
        "Region": "category",
        "Raucher": "boolean",
        "Eintritt": "date",
        "Besuche": "integer",
        "Größe": "number",
        "Gewicht": "number",
        "Stufe": "category",
        "Blutdruck": "integer",
        "Temperatur": "number",
        "Kinder": "integer",
        "Saldo": "number",
        "Notiz": "text",
    }
    for place, own in enumerate(found):
        assert (own.missing == messy.hidden[:, place]).all()
        if own.values is None:
            continue
        known = [row for row in range(300) if not own.missing[row]]
        # a value is written as the file writes it
        assert [own.form.text(own.values[row]) for row in known] == [
            messy.full[row][place] for row in known
        ]
        assert own.values.isna().to_numpy().tolist() == own.missing.tolist()


@pytest.mark.parametrize(
    ("cells", "kind", "value", "text"),
    [
        (["1", "2", "4", ""], "integer", 3.0, "3"),
        (["1.0", "2.0", "4.0", ""], "integer", 3, "3.0"),
        (["1.5", "2.25", "4", ""], "number", 3.126, "3.13"),
        (["1,5", "2,25", "4", ""], "number", 3.126, "3,13"),
        (["1,234.5", "22,345.5", "7.5"], "number", 1234567.25, "1,234,567.2"),
        (["1.234,5", "22.345,5", "7,5"], "number", 1234567.25, "1.234.567,2"),
        (["1e-5", "2.5e-7", "3"], "number", 0.000123456, "0.00012"),
        (["-0.5", "0.5", "1.5"], "number", -0.01, "0.0"),
        (["yes", "No", "Yes", "Yes", ""], "boolean", True, "Yes"),
        (["0", "1", "1", ""], "boolean", False, "0"),
        (["TRUE", "FALSE", "TRUE"], "boolean", False, "FALSE"),
        (["a", "b", "a", "b", ""], "category", "a", "a"),
        (["1", "2", "3+", "3+", "1", "2"], "category", "3+", "3+"),
        (["01", "02", "01", "02"], "category", "01", "01"),
        (["2020-01-31", "2021-12-01", ""], "date", DAY, "2020-03-04"),
        (["31.01.2020", "1.2.2021"], "date", DAY, "4.3.2020"),
        (["13/01/2020", "02/03/2021"], "date", DAY, "04/03/2020"),
        (["01/13/2020", "02/03/2021"], "date", DAY, "03/04/2020"),
        (["13/01/20", "02/03/21"], "date", DAY, "04/03/20"),
        (["5-Jan-2020", "13-Mar-2021"], "date", DAY, "4-Mar-2020"),
        (["2020-01-31T10:20:30Z", "2021-12-01T00:00:00Z"], "date", MORNING, "2020-03-04T05:00:00Z"),
        (["2020-01-31 10:20:30.12", "2021-12-01 00:00:00.25"], "date", DAY, "2020-03-04 00:00:00.00"),
        (["1/31/2020 9:05", "2/1/2020 10:15"], "date", MORNING.replace(minute=6), "3/4/2020 5:06"),
        (["20200131", "20211201"], "date", DAY, "20200304"),
        (["10:30", "09:15"], "date", pandas.Timestamp(1900, 1, 1, 8, 5), "08:05"),
    ],
)  # fmt: skip
def test_values_are_written_in_the_style_of_their_column(tmp_path, cells, kind, value, text):
    own = column(tmp_path, cells)
    assert own.kind == kind
    assert own.form.text(value) == text


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([f"A{row}" for row in range(30)], "different in every row"),
        ([str(row) for row in range(30)], "an id"),
        (["", "NA", "?"], "holds nothing"),
        ([f"note {row % 20}" for row in range(30)], "text of 20 different values"),
    ],
)
def test_what_cannot_be_modelled_is_passed_through_with_a_reason(tmp_path, cells, reason):
    own = column(tmp_path, cells)
    assert own.kind == "text"
    assert own.values is None
    assert own.reason.startswith(reason)


def test_a_column_of_one_value_is_filled_with_it(tmp_path):
    own = column(tmp_path, ["DE", "", "DE"])
    assert own.constant == "DE"
    assert own.missing.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1.5", "2.5", "n.a.", *map(str, range(20))], r"line 4, column x: .* a number as .* 'n\.a\.'"),
        (["1.5", "1e400"], "line 3, column x: expected a number that float64 holds, got '1e400'"),
        (["1,234", "5,678"], r"line 2, column x: .* read in one way, got '1,234'; say --decimal"),
        (["01/02/2020", "03/04/2021"], "line 2, column x: .* whether the day comes first"),
        ([*[f"2020-01-{day}" for day in range(10, 29)], "soon"], "line 21, column x: expected a date"),
    ],
)  # fmt: skip
def test_what_could_be_read_wrongly_is_refused_with_line_and_column(tmp_path, cells, message):
    with pytest.raises(ValueError, match=message):
        column(tmp_path, cells)


def test_other_columns_tell_the_decimal_sign_and_the_order_of_dates(tmp_path):
    own = columns(
        tmp_path, "a;b;c;d\n1,234;0,5;01/02/2020;13/02/2020\n5,678;1,5;03/04/2020;01/12/2020\n"
    )
    assert own[0].values.tolist() == [1.234, 5.678]
    assert own[2].values.tolist() == [pandas.Timestamp(2020, 2, 1), pandas.Timestamp(2020, 4, 3)]
    point = columns(tmp_path, "a;b\n1,234;0.5\n5,678;1.5\n")[0]
    assert point.values.tolist() == [1234, 5678]
    assert point.form.text(2345.0) == "2,345"


def test_a_decimal_sign_that_the_user_names_decides(tmp_path):
    assert column(tmp_path, ["1,234", "5,678"], decimal=",").values.tolist() == [1.234, 5.678]
    assert column(tmp_path, ["1,234", "5,678"], decimal=".").values.tolist() == [1234, 5678]


def test_tokens_for_missing_can_be_added(tmp_path):
    own = column(
        tmp_path, ["1.5", "-999", "-999.0", "?", "n.a.", "3"], missing_values=("-999", "n.a.")
    )
    assert own.missing.tolist() == [False, True, True, True, True, False]
    assert own.kind == "number"


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("number", "float64"), ("integer", "Int64"), ("category", "category"), ("text", None)],
)
def test_kinds_that_the_user_names_decide(tmp_path, kind, dtype):
    own = column(tmp_path, ["1", "2", "3", "1", ""], kinds=(f"x={kind}",))
    assert own.kind == kind
    assert own.values is None if dtype is None else own.values.dtype == dtype


def test_a_format_that_the_user_names_decides(tmp_path):
    own = column(tmp_path, ["01/02/2020", "03/04/2021"], kinds=("x=date:%m/%d/%Y",))
    assert own.values[0] == pandas.Timestamp(2020, 1, 2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("x=colour", "expected COLUMN=KIND with one of number"),
        ("w=number", "no column is called"),
        ("y=number", "line 2, column y: expected a number"),
        ("y=boolean", "expected two different values"),
        ("x=date", "line 2, column x: expected dates of one format"),
        ("x=integer", "line 3, column x: expected an integer"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(tmp_path, word, message):
    with pytest.raises(ValueError, match=message):
        column(tmp_path, ["1", "2.5", "7"], kinds=(word,))


def test_names_that_recur_are_kept_apart(tmp_path):
    own = columns(tmp_path, "a,a,b\n1,x,1\n2,y,2\n4,x,5\n5,y,\n")
    assert [column.label for column in own] == ["'a' (number 0)", "'a' (number 1)", "b"]
    assert [column.kind for column in own] == ["integer", "category", "integer"]
    with pytest.raises(ValueError, match="several columns are called"):
        columns(tmp_path, "a,a,b\n1,x,1\n2,y,2\n", kinds=("a=number",))
    assert np.array_equal(columns(tmp_path, "a,a\n1,2\n3,4\n", kinds=("1=text",))[1].kind, "text")
