"""`rvi-fast impute FILE --report FILE.html`: a page about what was filled in."""

import html
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

pandas = pytest.importorskip("pandas", reason="pandas is missing: the extra tabular")
pytest.importorskip("sklearn", reason="scikit-learn is missing: the extra sklearn")
pytest.importorskip("matplotlib", reason="matplotlib is missing: the extra plot")

from messy_table import messy_table  # noqa: E402
from test_report import Page  # noqa: E402

from rvi_fast.cli import main  # noqa: E402
from rvi_fast.cli.table import command, filling, page  # noqa: E402
from rvi_fast.cli.table.findings import Finding, findings  # noqa: E402
from rvi_fast.sklearn import RelayImputer  # noqa: E402

SCRIPT = "<script>alert('x')</script>"


def imputer(device, seed, progress):
    """A small model trained for a moment: what is filled in is not judged here."""
    options = {"epochs": 4, "steps": 3, "latent_dim": 2, "hidden": (8,), "groups": (4,)}
    return RelayImputer(device=device, random_state=seed, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A messy table with names and classes that are not meant well, filled in."""
    directory = tmp_path_factory.mktemp("messy")
    content = messy_table(200).content.decode("latin-1")
    for name, other in (
        ("Saldo", SCRIPT), ("Alter", "US$ & A$"), ("mittel", "<b>--> $x$"), ("hoch", 'x" id="a'),
    ):  # fmt: skip
        content = content.replace(name, other)
    path, report = directory / "in <b>.csv", directory / "report.html"
    path.write_bytes(content.encode("latin-1"))
    given = []

    def told(*arguments):
        given.extend(arguments)
        return page.page(*arguments)

    words = ["impute", str(path), "--out", str(directory / "out.csv"), "--report", str(report)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "_imputer", imputer)
        patch.setattr(command, "page", told)
        assert main([*words, "--quiet"]) == 0
    return given


@pytest.fixture(scope="module")
def text(made):
    _, _, run = made
    report = run.arguments[run.arguments.index("--report") + 1]
    with open(report, encoding="utf-8") as file:
        return file.read()


def test_the_page_is_sound_and_fetches_nothing(text):
    shown = Page(text)
    assert shown.open == []
    assert "://" not in text
    assert not re.search(r"@import|<link|<iframe|<object|<embed|<base", text)
    fetched = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', text)
    assert all((a or b).startswith(("#", "data:image/png")) for a, b in fetched)
    # pictures within one page have names of their own
    assert len(shown.anchors) == len([own for _, own in shown.tags if "id" in own])
    assert {(a or b)[1:] for a, b in fetched if (a or b)[0] == "#"} <= shown.anchors
    assert all(own["aria-label"] for own in shown.all("svg"))
    # black on a dark page would not be seen
    pictures = "".join(re.findall("<svg.*?</svg>", text, re.DOTALL))
    assert "#000000" not in pictures
    assert pictures.count("#0072b2") == pictures.count("var(--blue, #0072b2)") > 0


def test_words_of_the_file_are_text_and_no_markup(text):
    shown = Page(text)
    assert not [name for name, _ in shown.tags if name in ("script", "b")]
    assert not [own for _, own in shown.tags if any(name.startswith("on") for name in own)]
    words = "".join(shown.text)
    for own in (SCRIPT, "US$ & A$", "in <b>.csv", "<b>--> $x$", 'x" id="a'):
        assert own in words
    assert "a" not in shown.anchors


def test_the_table_says_how_far_off_held_out_cells_are_in_units_of_the_column(made, text):
    source, result, _ = made
    told = result.imputer.held_out_predictions_
    checked = 0
    for place, own in zip(result.modelled, findings(source, result), strict=True):
        values, at = source.columns[place].values, told["column"] == result.modelled.index(place)
        if own.kind not in ("number", "integer"):
            continue
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        truth = numbers[told["row"][at]]
        # what is judged was observed, and the mean has not seen it either
        assert (np.sort(own.truth) == np.sort(truth)).all()
        rest = np.nansum(numbers) - truth.sum()
        mean = rest / ((~np.isnan(numbers)).sum() - len(truth))
        off = np.sqrt(np.mean((truth - mean) ** 2))
        assert own.error(own.usual) == pytest.approx(off)
        # as they would be written: integers whole, numbers with the digits of the column
        digits = 0 if own.kind == "integer" else source.columns[place].decimals
        found = np.round(told["blend"][at], digits)
        assert own.error(own.found) == pytest.approx(np.sqrt(np.mean((truth - found) ** 2)))
        assert f'data-label="Error">{page.said(own, own.error(own.found))}</td>' in text
        assert f'data-label="Column mean">{page.said(own, off)}</td>' in text
        checked += 1
    assert checked == 9


def test_classes_are_judged_by_the_share_that_is_wrong(made):
    source, result, _ = made
    told = result.imputer.held_out_predictions_
    place = source.names.index("Region")
    own = next(own for own in findings(source, result) if own.label == "Region")
    at = told["column"] == result.modelled.index(place)
    wrong = np.mean(told["truth"][at] != told["blend"][at])
    assert own.error(own.found) == pytest.approx(wrong)
    assert set(own.found) <= set(own.observed)


def test_of_many_columns_the_worst_have_pictures_and_all_are_in_the_table(made, monkeypatch):
    monkeypatch.setattr(page, "MOST", 2)
    source, result, run = made
    text = page.page(source, replace(result, notes=("left out: forest",)), run)
    assert "The time limit was reached: left out: forest." in text
    judged = sorted(findings(source, result), key=lambda own: -own.relative)
    held_out = text[text.index('id="held-out"') : text.index('id="distributions"')]
    assert held_out.count("<svg") == 2
    assert all(f">{html.escape(own.label)}</p>" in held_out for own in judged[:2])
    assert f"Shown are the 2 worst found of {len(judged)} columns" in held_out
    table = text[text.index('id="columns"') : text.index('id="held-out"')]
    assert table.count("<tr>") == 1 + len(source.columns)


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("number", 0.0012345, "0.00123"),
        ("number", 1234.5, "1,230"),
        ("integer", 1234567.0, "1,230,000"),
        ("number", 0.0, "0"),
        ("number", 1.2e-9, "1.20e-09"),
        ("number", float("nan"), "–"),
        ("boolean", 0.25, "25.0% wrong"),
        ("date", 135.2, "135 days"),
        ("date", 0.5, "12.0 hours"),
        ("date", 10 / 86400, "10.0 seconds"),
    ],
)
def test_errors_are_said_in_units_with_three_digits(kind, error, words):
    assert page.said(Finding("x", kind, *[np.zeros(1)] * 3), error) == words


def test_a_table_too_small_to_judge_says_so_and_has_no_empty_section(tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "_imputer", imputer)
    path, report = tmp_path / "in.csv", tmp_path / "report.html"
    path.write_text("a,b\n1.5,2\n,3\n2.5,4\n3.5,7\n")
    words = ["impute", str(path), "--out", str(tmp_path / "out.csv"), "--report", str(report)]
    assert main([*words, "--quiet"]) == 0
    text = report.read_text(encoding="utf-8")
    assert "Too little was observed" in text
    assert "in.csv: 1 empty cell filled in" in text
    assert 'id="held-out"' not in text
    assert "Relative" not in text
    (tmp_path / "full.csv").write_text("a,b\n1.5,2\n1,3\n2.5,4\n")
    words[1] = str(tmp_path / "full.csv")
    assert main([*words, "--overwrite", "--quiet"]) == 0
    assert "<svg" not in report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("report.pdf", "--report: expected a name that ends in .html"),
        ("nowhere/report.html", "--report: the directory"),
        ("there.html", "is there already; --overwrite replaces it"),
        ("new.html", "rvi-fast[plot]"),
    ],
)
def test_what_could_not_be_written_is_refused_before_training(
    tmp_path, capsys, monkeypatch, name, message
):
    def trained(*arguments):
        raise AssertionError("trained")

    monkeypatch.setattr(filling, "_imputer", trained)
    if name == "new.html":
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "in.csv").write_text("a,b\n1.5,2\n,3\n2.5,4\n")
    (tmp_path / "there.html").write_text("mine")
    out = tmp_path / "out.csv"
    words = ["impute", str(tmp_path / "in.csv"), "--out", str(out), "--report"]
    assert main([*words, str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
    assert (tmp_path / "there.html").read_text() == "mine"


def test_a_page_that_cannot_be_made_leaves_no_half(tmp_path, capsys, monkeypatch):
    def fails(*arguments):
        raise ValueError("no picture")

    monkeypatch.setattr(command, "page", fails)
    (tmp_path / "in.csv").write_text("a,b\n1.5,2\n1,3\n2.5,4\n")
    words = ["impute", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv")]
    assert main([*words, "--report", str(tmp_path / "report.html")]) == 2
    assert "no picture" in capsys.readouterr().err
    assert [own.name for own in tmp_path.iterdir()] == ["in.csv"]
