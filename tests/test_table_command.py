"""`rvi-fast impute FILE --out FILE`: from a file to a filled one, with no training step before it."""

import argparse

import numpy as np
import pytest

pandas = pytest.importorskip("pandas", reason="pandas is missing: the extra tabular")
pytest.importorskip("sklearn", reason="scikit-learn is missing: the extra sklearn")

from messy_table import messy_table  # noqa: E402

from rvi_fast.cli import main  # noqa: E402
from rvi_fast.cli.parser import make_parser  # noqa: E402
from rvi_fast.cli.table import filling  # noqa: E402
from rvi_fast.sklearn import RelayImputer  # noqa: E402


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A small model trained for a moment: what is filled in is not judged here."""
    options = {"epochs": 2, "steps": 3, "latent_dim": 2, "hidden": (8,), "groups": (4,)}

    def imputer(device, seed, progress):
        return RelayImputer(device=device, random_state=seed, **options)

    monkeypatch.setattr(filling, "_imputer", imputer)


def numbers(path, rows=120):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 1)) + 0.3 * random.normal(size=(rows, 3))
    hidden = random.random(x.shape) < 0.1
    lines = ["a;b;n"]
    for row, gone in zip(x, hidden, strict=True):
        cells = [f"{row[0]:.3f}", f"{row[1]:.2f}", f"{10 * row[2]:.0f}"]
        shown = zip(cells, gone, strict=True)
        lines.append(";".join("?" if empty else cell.replace(".", ",") for cell, empty in shown))
    path.write_text("\n".join(lines) + "\n")
    return hidden


def cells(path):
    return np.array([line.split(";") for line in path.read_text().splitlines()[1:]])


def test_a_table_of_numbers_is_filled_in_its_own_style(tmp_path, capsys):
    hidden = numbers(tmp_path / "in.csv")
    before, out = cells(tmp_path / "in.csv"), tmp_path / "out.csv"
    assert main(["impute", str(tmp_path / "in.csv"), "--out", str(out), "--quiet"]) == 0
    after = cells(out)
    assert (before[~hidden] == after[~hidden]).all()
    for column, pattern in enumerate((r"-?\d+,\d{3}", r"-?\d+,\d{2}", r"-?\d+")):
        filled = pandas.Series(after[hidden[:, column], column])
        assert filled.str.fullmatch(pattern).all()
    said = capsys.readouterr().out
    assert "120 rows, 3 columns" in said
    assert "delimiter semicolon" in said
    assert f"{hidden.sum()} empty cells filled in" in said


def test_the_same_seed_gives_the_same_file(tmp_path):
    numbers(tmp_path / "in.csv")
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        out = str(tmp_path / f"{name}.csv")
        assert (
            main(["impute", str(tmp_path / "in.csv"), "--out", out, "--seed", seed, "--quiet"]) == 0
        )
    a, b, c = ((tmp_path / f"{name}.csv").read_bytes() for name in "abc")
    assert a == b != c


def test_a_table_without_empty_cells_is_copied(tmp_path, capsys):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_bytes(b"a;b\r\n1;2\r\n3;4\r\n1;4")
    assert main(["impute", str(path), "--out", str(out)]) == 0
    assert out.read_bytes() == path.read_bytes()
    assert "0 empty cells filled in" in capsys.readouterr().out


def refused(capsys, *words):
    assert main(["impute", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_files_that_are_there_are_kept_unless_overwritten(tmp_path, capsys):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    out.write_text("mine")
    assert "is there already; --overwrite" in refused(capsys, path, "--out", out)
    assert "is the table itself; --overwrite" in refused(capsys, path, "--out", path)
    assert out.read_text() == "mine"
    assert main(["impute", str(path), "--out", str(out), "--overwrite"]) == 0
    assert out.read_text() == path.read_text()


def test_options_of_the_other_way_are_refused(tmp_path, capsys):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    assert "expected a FILE, or --run-dir" in refused(capsys, "--out", out)
    assert "--run-dir: expected none beside" in refused(
        capsys, path, "--run-dir", "r", "--out", out
    )
    assert "--steps: expected with --run-dir" in refused(capsys, path, "--steps", 3, "--out", out)
    said = refused(capsys, "--run-dir", "r", "--kinds", "a=text", "--out", out)
    assert "--kinds: expected of a FILE" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "an empty file"),
        ("a,b\n1,2\n3\n", "line 3: expected 2 cells"),
        ("a,b\n1,\n2,1e400\n3,5.5\n", "line 3, column b: expected a number that float64 holds"),
    ],
)
def test_refusals_name_the_file_and_leave_nothing_behind(tmp_path, capsys, content, message):
    path = tmp_path / "in.csv"
    path.write_text(content)
    said = refused(capsys, path, "--out", tmp_path / "out.csv")
    assert str(path) in said
    assert message in said
    assert [own.name for own in tmp_path.iterdir()] == ["in.csv"]


def test_every_option_of_a_file_has_a_default():
    parsed = make_parser().parse_args(["impute", "t.csv", "--out", "o.csv"])
    assert isinstance(parsed, argparse.Namespace)
    assert set(parsed.defaults) <= set(vars(parsed))
    assert all(getattr(parsed, name) == default for name, default in parsed.defaults.items())


def messy_cells(content):
    """Cells of a messy table as they are written, notes with their quotes."""
    rows = []
    for line in content.decode("latin-1").split("\r\n")[1:-1]:
        head, _, note = line.partition(';"')
        rows.append([*head.split(";"), f'"{note}'])
    return np.array(rows)


@pytest.fixture
def messy(tmp_path):
    table = messy_table(160)
    (tmp_path / "in.csv").write_bytes(table.content)
    return table


def test_a_messy_file_of_all_kinds_comes_back_filled_at_the_first_try(tmp_path, messy, capsys):
    assert (
        main(["impute", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"), "--quiet"])
        == 0
    )
    content = (tmp_path / "out.csv").read_bytes()
    assert content.split(b"\r\n")[0] == messy.content.split(b"\r\n")[0]
    before, after = messy_cells(messy.content), messy_cells(content)
    assert (before[~messy.hidden] == after[~messy.hidden]).all()
    full = np.array(messy.full)
    patterns = {
        "Alter": r"\d+",
        "Einkommen": r"-?\d+,\d\d",
        "Eintritt": r"\d\d\.\d\d\.\d{4}",
        "Besuche": r"\d+",
        "Temperatur": r"\d+,\d\d",
    }
    for column, name in enumerate(messy.names):
        filled = pandas.Series(after[messy.hidden[:, column], column], dtype=str)
        if name in ("Region", "Raucher", "Stufe"):
            assert set(filled) <= set(full[:, column])
        else:
            assert filled.str.fullmatch(patterns.get(name, r"-?\d+(,\d+)?")).all(), name
    said = capsys.readouterr().out
    for words in ("delimiter semicolon", "Latin-1", f"{messy.hidden.sum()} empty cells filled in"):
        assert words in said


@pytest.mark.parametrize("separate", [False, True])
def test_draws_are_several_tables_that_differ_where_nothing_was_observed(tmp_path, messy, separate):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    more = ["--separate"] if separate else []
    assert main(["impute", str(path), "--out", str(out), "--draws", "2", "--quiet", *more]) == 0
    if separate:
        parts = [own.read_bytes() for own in sorted(tmp_path.glob("out*.csv"))]
    else:
        header, *lines = (line.rpartition(b";") for line in out.read_bytes().split(b"\r\n")[:-1])
        assert header[2] == b"draw"
        parts = [
            b"\r\n".join([b"", *(line for line, _, own in lines if own == number), b""])
            for number in (b"1", b"2")
        ]
    assert len(parts) == 2
    before, one, other = (messy_cells(part) for part in (messy.content, *parts))
    for drawn in (one, other):
        assert (before[~messy.hidden] == drawn[~messy.hidden]).all()
    column = messy.names.index("Saldo")
    gone = messy.hidden[:, column]
    assert (one[gone, column] != other[gone, column]).mean() > 0.9
