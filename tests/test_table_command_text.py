"""Text files of `rvi-fast impute FILE`: how they are told apart, and that bytes come back."""

import bz2
import gzip
import io
import lzma
import zipfile

import numpy as np
import pytest
from messy_table import messy_table

from rvi_fast.cli.table.packing import packed, unpacked
from rvi_fast.cli.table.text import read_text

ROWS = "a,b,c\n1,x,2.5\n2,y,\n3,x,4.5\n"


def read(tmp_path, content, name="t.csv", **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_text(path, **options)


def test_a_messy_table_comes_back_byte_for_byte(tmp_path):
    messy = messy_table(200)
    table = read(tmp_path, messy.content)
    assert table.names == messy.names
    assert (table.form.delimiter, table.form.encoding) == (";", "cp1252")
    assert table.num_rows == 200
    assert table.filled({}) == messy.content
    shown = np.array(messy.full)[~messy.hidden]
    cells = np.array(table.cells).T[~messy.hidden]
    assert (cells == shown).all()


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
)
def test_encodings_are_found_and_kept(tmp_path, encoding):
    content = "Name;Größe\nMüller;\nÅkesson;5\n".encode(encoding)
    table = read(tmp_path, content)
    assert table.names == ["Name", "Größe"]
    assert table.filled({}) == content
    filled = table.filled({1: {0: "7"}})
    assert filled.decode(encoding) == "Name;Größe\nMüller;7\nÅkesson;5\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_found_also_inside_quotes(tmp_path, delimiter):
    other = "," if delimiter != "," else ";"
    text = f'a{delimiter}b\n"x{delimiter}y"{delimiter}1{other}5\n"u{other}v"{delimiter}2{other}5\n'
    table = read(tmp_path, text)
    assert table.form.delimiter == delimiter
    assert table.column(0) == [f"x{delimiter}y", f"u{other}v"]
    assert table.filled({}).decode() == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_last_line_without_one_are_kept(tmp_path, end):
    text = end.join(["a,b", "1,", '"2",3'])
    table = read(tmp_path, text)
    assert table.filled({1: {0: "9"}}).decode() == end.join(["a,b", "1,9", '"2",3'])


def test_cells_with_line_ends_stay_one_cell(tmp_path):
    text = 'a,b,c\n1,"two\nlines, and a ""quote""",\n2,plain,3\n'
    table = read(tmp_path, text)
    assert table.num_rows == 2
    assert table.column(1)[0] == 'two\nlines, and a "quote"'
    assert table.where(1) == "line 4"
    assert table.filled({2: {0: "5"}}).decode() == text.replace('""",\n', '""",5\n')


def test_filled_cells_are_quoted_where_the_column_is_or_must_be(tmp_path):
    table = read(tmp_path, 'a,b,c\n"1",,x\n"2","u",\n"3","v",y\n')
    filled = table.filled({1: {0: "w"}, 2: {1: 'p,q "r"'}})
    assert filled.decode() == 'a,b,c\n"1","w",x\n"2","u","p,q ""r"""\n"3","v",y\n'


def test_spaces_around_a_token_stay_where_they_are(tmp_path):
    table = read(tmp_path, "a, b\n1, ?\n2, 3\n")
    assert table.filled({1: {0: "7"}}).decode() == "a, b\n1, 7\n2, 3\n"


def test_ragged_lines_are_refused_with_their_number(tmp_path):
    with pytest.raises(ValueError, match=r"line 4: expected 3 cells as in line 1, got 2"):
        read(tmp_path, "a,b,c\n1,2,3\n4,5,6\n7,8\n9,1,2\n")


def test_quotes_that_do_not_close_are_refused_with_their_line(tmp_path):
    with pytest.raises(ValueError, match=r"line 3: unexpected end within quotes"):
        read(tmp_path, 'a,b\n1,2\n3,"4\n5,6\n')


@pytest.mark.parametrize(
    ("content", "message"), [("", "no row"), ("\n\n", "no row"), ("a,b\n", "no row below")]
)
def test_files_without_rows_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("id,2019,2020\n7,1,2\n9,3,4\n", True),
        ("1,2\n3,4\n", False),
        ("red,small\nred,large\nblue,small\n", False),
        ("colour,size\nred,large\nblue,small\n", True),
        ("?,2\n3,4\n?,5\n", False),
        (",a,b\n0,1,2\n1,3,4\n", True),
        ("id,value\nx1,\nx2,\n", True),
    ],
)
def test_a_first_line_of_names_is_told_from_data(tmp_path, text, header):
    table = read(tmp_path, text)
    assert (table.names is not None) == header
    assert table.filled({}).decode() == text
    assert read(tmp_path, text, header=not header).num_rows == table.num_rows + (
        1 if header else -1
    )


def test_comments_above_are_kept_and_names_may_begin_with_a_hash(tmp_path):
    text = "# made today, by hand, and so on, at home\n#id,b\n1,2\n3,\n"
    table = read(tmp_path, text)
    assert table.names == ["#id", "b"]
    assert table.filled({1: {1: "5"}}).decode() == text.replace("3,\n", "3,5\n")


def test_empty_lines_are_no_rows_but_stay(tmp_path):
    text = "a,b\n1,2\n\n3,\n\n"
    table = read(tmp_path, text)
    assert table.num_rows == 2
    assert table.filled({1: {1: "5"}}).decode() == "a,b\n1,2\n\n3,5\n\n"


def test_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match="NUL"):
        read(tmp_path, b"a,b\n1,2\n\0,3\n" + b"4,5\n" * 50)
    with pytest.raises(ValueError, match="line 2: not ascii text"):
        read(tmp_path, "a,b\n1,ä\n", encoding="ascii")
    with pytest.raises(ValueError, match="--encoding: expected one that Python knows"):
        read(tmp_path, "a,b\n1,2\n", encoding="klingon")


def test_draws_follow_each_other_with_their_number(tmp_path):
    table = read(tmp_path, "a,b\n1,\n2,3")
    filled = table.filled({1: {0: "8"}}, {1: {0: "9"}})
    assert filled.decode() == "a,b,draw\n1,8,1\n2,3,1\n1,9,2\n2,3,2\n"


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("t.csv", content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zip", zipped)],
)
def test_packed_files_hold_the_same_table(tmp_path, ending, pack):
    table = read(tmp_path, pack(ROWS.encode()), f"t.csv{ending}")
    assert table.filled({}).decode() == ROWS
    path = tmp_path / f"out.csv{ending}"
    path.write_bytes(packed(ROWS.encode(), path))
    assert unpacked(path).decode() == ROWS
