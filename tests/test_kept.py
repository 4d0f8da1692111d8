"""The table of a figure keeps the numbers of its runs: report and further runs do without the rest."""

import csv
import re
import shutil
from dataclasses import replace

import pytest
from test_reproduce import TINY

from rvi_fast import cli
from rvi_fast.experiments import scales
from rvi_fast.experiments.figure import Bound
from rvi_fast.experiments.kept import kept
from rvi_fast.experiments.registry import FIGURES
from rvi_fast.experiments.sweep import directory_of, read_result

pytest.importorskip("matplotlib")

MADE = ["fig1", "fig4", "fig5", "fig6", "fig7", "fig10"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small real sweep; the scale stays for the tests."""
    common = {name: value for name, value in TINY.common.items() if name != "hidden"}
    scale = replace(TINY, common=common, tables=())
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scales.SCALES, "quick", scale)
        assert cli.main(["reproduce", *MADE, "--out", str(out), "--quiet"]) == 0
        yield out


def wanted(name):
    return FIGURES[name].configurations(scales.SCALES["quick"].of(name))


def without_values(path):
    """The table as earlier versions wrote it."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        del line["values"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


@pytest.mark.parametrize("name", MADE)
def test_a_table_gives_back_the_numbers_of_every_run(results, name):
    figure = FIGURES[name]
    found = kept(figure, results / f"{name}.csv", wanted(name))
    expected = {
        run: {
            key: read_result(directory_of(results / "runs", run))[key] for key in figure.quantities
        }
        for run in wanted(name)
    }
    assert found == expected


def test_an_older_table_gives_two_numbers_and_not_whose_they_are(results, tmp_path):
    shutil.copy(results / "fig4.csv", tmp_path)
    without_values(tmp_path / "fig4.csv")
    found = kept(FIGURES["fig4"], tmp_path / "fig4.csv", wanted("fig4"))
    exact = kept(FIGURES["fig4"], results / "fig4.csv", wanted("fig4"))
    assert found.keys() == exact.keys()
    for run in exact:
        pair = [own for own in exact if replace(own, seed=0) == replace(run, seed=0)]
        got = [found[own] for own in pair]
        assert [each["bound"] for each in got] == [Bound.LOW, Bound.HIGH]
        numbers = sorted(exact[own]["test_missing"] for own in pair)
        assert [each["test_missing"] for each in got] == pytest.approx(numbers)


def test_what_a_table_does_not_hold_is_not_made_up(results, tmp_path):
    figure, path = FIGURES["fig4"], results / "fig4.csv"
    assert kept(figure, tmp_path / "fig4.csv", wanted("fig4")) == {}
    other = [replace(run, missing=0.25) for run in wanted("fig4")]
    assert kept(figure, path, other) == {}
    # the table was made of two seeds: of another number nobody knows which are meant
    more = [replace(run, seed=seed) for run in wanted("fig4") for seed in (run.seed, run.seed + 2)]
    assert kept(figure, path, more) == {}


def verdicts(page):
    """The lines of the claims that the figures decide."""
    lines = page.read_text(encoding="utf-8").splitlines()
    numbers = "|".join(name.removeprefix("fig") for name in MADE)
    return [line for line in lines if re.search(rf"\| Figure ({numbers})[ ,]", line)]


def test_a_report_needs_no_more_than_the_tables(results, tmp_path):
    assert cli.main(["report", "--results", str(results)]) == 0
    copy = tmp_path / results.name
    shutil.copytree(results, copy, ignore=shutil.ignore_patterns("runs", "report.*"))
    assert cli.main(["report", "--results", str(copy)]) == 0
    there, here = (verdicts(path / "report.md") for path in (results, copy))
    assert len(there) > 10
    assert here == there
    assert not any("so far" in line for line in here)


def test_runs_that_a_table_keeps_are_not_run_again_where_that_is_asked_for(
    results, tmp_path, monkeypatch
):
    for name in ("fig6", "fig10"):
        shutil.copy(results / f"{name}.csv", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
    arguments = ["reproduce", "fig6", "fig10", "--out", str(tmp_path), "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr("rvi_fast.training.workers._Worker", None)  # starts no process
        assert cli.main([*arguments, "--keep"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("*.csv")} == before
    assert not [*tmp_path.glob("runs/*/")]
    # a level more: its runs alone
    more = replace(scales.SCALES["quick"], posterior_lrs=(1e-3, 3e-3, 1e-2))
    monkeypatch.setitem(scales.SCALES, "quick", more)
    assert cli.main([*arguments[:2], "--out", str(tmp_path), "--quiet", "--keep"]) == 0
    assert len([*tmp_path.glob("runs/*/result.json")]) == 2
    rates = {line["posterior_lr"] for line in csv.DictReader((tmp_path / "fig6.csv").open())}
    assert rates == {"0.001", "0.003", "0.01"}
    # an older table beside a new run: what it lacks stays lacking
    without_values(tmp_path / "fig6.csv")
    assert cli.main([*arguments[:2], "--out", str(tmp_path), "--quiet", "--keep"]) == 0
    for line in csv.DictReader((tmp_path / "fig6.csv").open()):
        assert bool(line["values"]) == (line["posterior_lr"] == "0.003")
