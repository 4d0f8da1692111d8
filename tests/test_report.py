"""`rvi-fast report`: a sound page that needs nothing else and says what the runs say."""

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from test_reproduce import TINY

from rvi_fast import cli
from rvi_fast.experiments import scales
from rvi_fast.experiments.document import Heading, Paragraph, Picture, Table, to_html, to_markdown
from rvi_fast.experiments.report import _some, report, scale_of

pytest.importorskip("matplotlib")

MADE = ["fig3", "fig4", "fig7", "fig8"]
VOID = {"meta", "img", "br", "hr", "link", "input"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small real sweep of some figures, and its page."""
    common = {name: value for name, value in TINY.common.items() if name != "hidden"}
    scale = replace(TINY, common=common, tables=())
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scales.SCALES, "quick", scale)
        assert cli.main(["reproduce", *MADE, "--out", str(out), "--quiet"]) == 0
        assert cli.main(["report", "--results", str(out)]) == 0
        yield out


class Page(HTMLParser):
    """Tags in balance, and what the page holds."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.anchors = [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.anchors |= {value for name, value in attributes if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(results):
    return Page((results / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_sound_and_needs_nothing_else(results, page):
    text = (results / "report.html").read_text(encoding="utf-8")
    assert page.open == []
    assert "://" not in text
    assert not re.search(r"url\(|@import|<script|<link|<iframe", text)
    kinds = []
    for attributes in page.all("img"):
        assert attributes["alt"]
        kind, content = re.fullmatch(r"data:image/(.*);base64,(.*)", attributes["src"]).groups()
        begins = {"png": b"\x89PNG", "svg+xml": b"<?xml"}[kind]
        assert base64.b64decode(content).startswith(begins)
        kinds.append(kind)
        assert (int(attributes["width"]), int(attributes["height"])) > (100, 100)
    # every picture of the figures that were made
    pictures = [path for name in MADE for path in results.glob(f"{name}[.-]*png")]
    assert len(page.all("img")) == len(pictures) > len(MADE)
    # curves are drawn as curves
    assert kinds.count("svg+xml") == len(MADE)
    assert {attributes["href"] for attributes in page.all("a")} <= {f"#{a}" for a in page.anchors}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("title")


def test_numbers_commands_and_times_are_on_the_page(results, page):
    text = "\n".join(page.text)
    for name in MADE:
        assert f"rvi-fast reproduce {name} --scale quick --out {results}" in text
    assert "rvi-fast reproduce fig1 fig5 fig6" in text  # figure 2 has the runs of figure 3
    every = [json.loads(path.read_text()) for path in results.glob("runs/*/result.json")]
    assert f"{len(every)} runs" in text
    clusters = [
        json.loads((path.parent / "result.json").read_text())["train_observed"]
        for path in results.glob("runs/*/config.json")
        if json.loads(path.read_text())["form"] == "cluster"
    ]
    assert f"cluster {np.mean(clusters):.4f}" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "added up" in text
    for verdict in ("holds", "no results"):
        assert verdict in text
    # sizes here, and those of the paper
    assert "40" in page.text
    assert "all" in page.text


def test_markdown_says_the_same_and_links_its_pictures(results):
    text = (results / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]+\]\(<([^>]+)>\)", text)
    assert links
    assert all((results / link).is_file() for link in links)
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
        assert len(columns) == 1, block


def test_a_page_elsewhere_links_back_to_the_pictures(results, tmp_path):
    written = report(results, tmp_path / "page.html")
    assert written == [tmp_path / "page.html", tmp_path / "page.md"]
    links = re.findall(r"\]\(<([^>]+)>\)", written[1].read_text())
    assert links
    assert all((tmp_path / link).resolve().is_file() for link in links)


def test_an_unfinished_sweep_is_reported_as_such(results, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    (copy / "fig8.png").unlink()
    for path in copy.glob("runs/*/config.json"):
        if json.loads(path.read_text())["model"] == "vae":
            (path.parent / "result.json").write_text("{")  # damaged counts as not done
    for path in copy.glob("*.csv"):  # from which they would be taken
        path.unlink()
    report(copy)
    text = (copy / "report.html").read_text()
    assert "8 of 12 runs are done." in text
    marks = [attributes["data-is"] for attributes in Page(text).all("span")]
    assert any(mark.endswith(" so far") for mark in marks)
    assert "The picture is not made yet" in text
    Page(text)


def test_what_is_not_there_is_refused(results, tmp_path, capsys):
    assert cli.main(["report", "--results", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert f"results: expected a directory that `rvi-fast reproduce` wrote, got {tmp_path}" in error
    assert cli.main(["report", "--results", str(tmp_path)]) == 2
    assert f"no run of a figure is done in {tmp_path}" in capsys.readouterr().err
    assert cli.main(["report", "--results", str(results), "--out", "page.pdf"]) == 2
    assert "out: expected a name that ends in .html, got 'page.pdf'" in capsys.readouterr().err
    missing = tmp_path / "no" / "page.html"
    assert cli.main(["report", "--results", str(results), "--out", str(missing)]) == 2
    assert "does not exist" in capsys.readouterr().err
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    (copy / "fig8.png").write_bytes(b"not a picture")
    assert cli.main(["report", "--results", str(copy)]) == 2
    assert "fig8.png: expected a PNG file" in capsys.readouterr().err


def test_the_scale_is_that_of_the_runs(results):
    assert scale_of(results) == "quick"


def test_of_many_columns_some_are_shown():
    assert _some([1, 2, 3]) == [1, 2, 3]
    assert _some([*range(1, 251)]) == [1, 3, 7, 15, 31, 62, 125, 250]
    assert _some([*range(1, 12)]) == [1, 2, 5, 11]


def test_foreign_text_stays_text(tmp_path):
    nasty = "<b>&\"'|`*_[x](y)"
    blocks = [
        Heading(nasty, "x"),
        Paragraph(nasty),
        Table(nasty, ("", nasty), [[nasty, [nasty, "b"]], [nasty, nasty]], marked=1),
    ]
    found = Page(to_html(nasty, blocks))
    assert found.open == []
    assert not found.all("b")
    assert found.text.count(nasty) >= 6
    markdown = to_markdown(nasty, blocks, tmp_path)
    assert "<b>" not in markdown.replace("\\<b\\>", "")
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match="PNG"):
        to_html("", [Picture(tmp_path / "x.png", "", "")])


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# the page in a frame of the width of a screen; what it measures becomes the title
FRAME = """<!DOCTYPE html><title>-</title><style>body {{ margin: 0 }}</style>
<iframe width="{width}" height="3000" style="border: 0" srcdoc="{page}"></iframe>
<script>
document.querySelector("iframe").onload = event => {{
  const root = event.target.contentDocument.documentElement;
  document.title = [root.scrollWidth, root.clientWidth, root.scrollHeight].join(" ");
}};
</script>
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_within_its_width(results, tmp_path, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    from matplotlib.image import imread

    content = html.escape((results / "report.html").read_text(encoding="utf-8"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, page=content), encoding="utf-8")

    def browse(*options):
        return subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}",
                *options, frame.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip

    measured = re.search(r"<title>(\d+) (\d+) (\d+)</title>", browse("--dump-dom"))
    inner, outer, height = map(int, measured.groups())
    assert inner <= outer <= width
    assert height > 1000
    browse(f"--window-size={width},1000", f"--screenshot={tmp_path / 'page.png'}")
    shot = imread(tmp_path / "page.png")[:, :width, :3]
    assert shot.shape[:2] == (1000, width)
    drawn = np.abs(shot - shot[0, 0]).max(-1) > 0.2
    assert 0.005 < drawn.mean() < 0.5
    assert drawn[500:].any()
