"""`rvi-fast impute FILE --report FILE.html`: a page that needs nothing else."""

import re

import pytest

pandas = pytest.importorskip("pandas", reason="pandas is missing: the extra tabular")
pytest.importorskip("sklearn", reason="scikit-learn is missing: the extra sklearn")
pytest.importorskip("matplotlib", reason="matplotlib is missing: the extra plot")

from messy_table import messy_table  # noqa: E402
from test_report import Page  # noqa: E402

from rvi_fast.cli import main  # noqa: E402
from rvi_fast.cli.table import filling  # noqa: E402
from rvi_fast.sklearn import RelayImputer  # noqa: E402


def imputer(device, seed, progress):
    options = {"epochs": 4, "steps": 3, "latent_dim": 2, "hidden": (8,), "groups": (4,)}
    return RelayImputer(device=device, random_state=seed, **options)


@pytest.fixture(scope="module", autouse=True)
def short():
    """A small model trained for a moment: what is filled in is not judged here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "_imputer", imputer)
        yield


EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A messy table with names and classes that are not meant well, filled in."""
    directory = tmp_path_factory.mktemp("messy")
    messy = messy_table(300)
    content = messy.content.decode("latin-1").replace("Saldo", EVIL).replace("Alter", "US$ & A$")
    content = content.replace("mittel", "<b>--> $x$").replace("hoch", 'x" id="a')
    path = directory / "in <b>.csv"
    path.write_bytes(content.encode("latin-1"))
    report = directory / "report.html"
    words = ["impute", str(path), "--out", str(directory / "out.csv"), "--report", str(report)]
    assert main([*words, "--quiet"]) == 0
    return directory, messy


@pytest.fixture(scope="module")
def text(made):
    return (made[0] / "report.html").read_text(encoding="utf-8")


def test_the_page_is_sound_and_fetches_nothing(text):
    page = Page(text)
    assert page.open == []
    assert "://" not in text
    assert not re.search(r"@import|<link|<iframe|<object|<embed|<base| on\w+=", text)
    fetched = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', text)
    assert all((a or b).startswith(("#", "data:image/png")) for a, b in fetched)
    assert len(page.anchors) == len([own for _, own in page.tags if "id" in own])
    targets = {a[1:] for a, b in fetched if a.startswith("#")}
    assert targets <= page.anchors


def test_words_of_the_file_are_text_and_no_markup(text):
    page = Page(text)
    assert "<script" not in text
    assert not [own for name, own in page.tags if name in ("script", "b")]
    shown = "".join(page.text)
    for words in (EVIL, "US$ & A$", "in <b>.csv", "<b>--> $x$", 'x" id="a'):
        assert words in shown
    assert "a" not in page.anchors
