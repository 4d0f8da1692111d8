"""What README, the pages of the site, its notebooks and the examples print runs, and prints that."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from printed import blocks_of_a_notebook, blocks_of_a_page

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
# those that take a table; tests/test_training_examples.py runs the loops
EXAMPLES = [path for path in sorted(ROOT.glob("examples/*.py")) if "--small" in path.read_text()]
# python and bash are run, text is what they print, console takes data sets, hours or an installation
KINDS = {"python", "bash", "text", "console"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A function from name and blocks of a page to what they print, in an empty directory."""
    for name in ("sklearn", "matplotlib", "pandas"):
        pytest.importorskip(name)
    programs = tmp_path_factory.mktemp("programs")
    (programs / "rvi-fast").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rvi_fast "$@"\n')
    (programs / "rvi-fast").chmod(0o755)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(ROOT / "tests/printed.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as server:

        def run(page, blocks):
            request = [page, blocks, str(tmp_path_factory.mktemp("empty"))]
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            found = json.loads(server.stdout.readline())
            assert isinstance(found, list), found
            return found

        yield run
        server.stdin.close()


def words(text):
    """Words, marks and short whole numbers as they are; as numbers what training may round anew."""
    for word in re.findall(r"-?\d*[.,]\d+|\d+|[^\W\d]+|[^\w\s]", text):
        measured = re.fullmatch(r"-?\d*[.,]\d+|\d{5,}", word)
        yield float(word.replace(",", ".")) if measured else word


def alike(found, expected):
    """Whether two texts say the same, numbers to a tenth: another CPU sums in another order."""
    found, expected = list(words(found)), list(words(expected))
    return len(found) == len(expected) and all(
        abs(a - b) <= 0.1 * abs(b) + 0.0101
        if isinstance(a, float) and isinstance(b, float)
        else a == b
        for a, b in zip(found, expected, strict=True)
    )


def test_outputs_are_compared_word_by_word_and_decimals_to_a_tenth():
    assert alike("rows 12, error 0.512\n", "rows 12, error 0.53")
    for other in ("rows 13, error 0.53", "rows 12, error 0.83", "rows 12", "row 12, error 0.53"):
        assert not alike("rows 12, error 0.53", other)


def test_there_are_pages_to_run():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len([kind for kind, *_ in blocks_of_a_page(text) if kind == "python"]) >= 20
    assert len(NOTEBOOKS) >= 3
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_printed_and_prints_what_it_says(page, printed):
    blocks = blocks_of_a_page(page.read_text(encoding="utf-8"))
    assert {kind for kind, *_ in blocks} <= KINDS
    before = ""
    for (kind, line, text), out in zip(blocks, printed(page.name, blocks), strict=True):
        if kind == "text" and before:
            assert alike(before, text), f"{page.name}, line {line}: printed\n{before}"
        before = out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook, printed):
    printed(notebook.name, blocks_of_a_notebook(notebook.read_text(encoding="utf-8")))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_at_small_size(example, printed):
    call = f"import runpy, sys\nsys.argv = [{example.name!r}, '--small']\n"
    call += f"runpy.run_path({str(example)!r}, run_name='__main__')\n"
    (out,) = printed(example.name, [["python", 1, call]])
    assert out.strip()
