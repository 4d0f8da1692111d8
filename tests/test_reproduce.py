"""`rvi-fast reproduce`: every figure from runs that figures share; tables say what the runs say."""

import csv
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from rvi_fast import cli
from rvi_fast.experiments import registry, scales
from rvi_fast.experiments.experiment import Experiment
from rvi_fast.experiments.figure import REGISTERED, Figure, figure
from rvi_fast.experiments.figures import imputation
from rvi_fast.experiments.sweep import directory_of
from rvi_fast.experiments.work import finished

pytest.importorskip("matplotlib")

NAMES = [
    *(f"fig{number}" for number in range(1, 12)),
    "imputation",
    "interpolation",
    "latent",
    "map",
    "outliers",
    "scale",
    "start",
]
TINY = replace(
    scales.SCALES["quick"],
    common={
        "rows": 40, "test_rows": 20, "epochs": 2, "batch_size": 20, "infer_steps": 2,
        "latent_dim": 4, "hidden": (8,),
    },
    seeds=2, lrs=(1e-3,), decoders=((8,),), grid_missing=(0.5,), curve_missing=(0.0, 0.5),
    missing=(0.0, 0.5), posterior_lrs=(1e-3, 1e-2), ratios=(0.1, 0.9), boxes=(1,),
    classifier_epochs=2, latent_dims=(1, 3),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    """The sizes of the test; Figure 1 sets its decoders itself."""
    common = {name: value for name, value in TINY.common.items() if name != "hidden"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scales.SCALES, "quick", replace(TINY, common=common))
        yield


@pytest.fixture(scope="module")
def out(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("results")
    assert cli.main(["reproduce", "all", "--out", str(directory), "--quiet"]) == 0
    return directory


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def runs(out, name):
    """Configurations and results of a figure, read from the disk."""
    found = registry.FIGURES[name].configurations(scales.SCALES["quick"])
    return [
        (run, json.loads((directory_of(out / "runs", run) / "result.json").read_text()))
        for run in found
    ]


def test_every_figure_has_a_table_and_a_picture(out):
    assert list(registry.FIGURES) == NAMES
    for name in NAMES:
        rows = table(out / f"{name}.csv")
        assert rows
        assert {"quantity", "mean", "std", "median", "runs"} < rows[0].keys()
        assert np.isfinite([float(row[key]) for row in rows for key in ("mean", "std")]).all()
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "fig7-digits-25-50-100.png").exists()
    assert len([*out.glob("fig9-digits-*.png")]) == 3
    assert len([*out.glob("interpolation-digits-*.png")]) == 2
    assert (out / "map-digits.png").exists()


def test_a_point_of_a_curve_is_over_all_runs_that_share_it(out):
    found = runs(out, "fig2")
    for row in table(out / "fig2.csv"):
        values = [
            result["elastic"][int(row["epoch"]) - 1]
            for run, result in found
            if run.model == row["model"] and run.missing == float(row["missing"])
        ]
        assert len(values) == int(row["runs"]) == TINY.seeds
        expected = np.mean(values), np.std(values), np.median(values)
        got = [float(row[name]) for name in ("mean", "std", "median")]
        np.testing.assert_allclose(got, expected)


def test_axes_are_what_the_figure_is_over(out):
    assert {row["missing"] for row in table(out / "fig3.csv")} == {"0.0", "0.5"}
    # where nothing is missing there is nothing to impute
    assert {row["missing"] for row in table(out / "fig4.csv")} == {"0.5"}
    assert {row["data"] for row in table(out / "fig4.csv")} == {"digits", "artificial"}
    assert {row["posterior_lr"] for row in table(out / "fig6.csv")} == {"0.001", "0.01"}
    assert {row["quantity"] for row in table(out / "fig5.csv")} == {"cross_entropy", "accuracy"}
    assert {row["stage"] for row in table(out / "fig7.csv")} == set("01234")
    assert {row["boxes"] for row in table(out / "fig11.csv")} == {"1"}
    assert {row["top"] for row in table(out / "fig10.csv")} == {"0.1", "0.9"}
    assert {row["point"] for row in table(out / "interpolation.csv")} == set("123456789")
    assert {row["component"] for row in table(out / "map.csv")} == set("1234")
    assert {row["latent_dim"] for row in table(out / "latent.csv")} == {"1", "3"}


def test_an_encoder_gives_test_rows_what_it_gives_training_rows(tmp_path):
    """The classifier of Figure 5 would see two kinds of representations otherwise."""
    common = {
        **TINY.common,
        "data": "digits",
        "model": "vae",
        "classifier_epochs": 2,
        "missing": 0.0,
    }
    few, many = (
        finished(Experiment(**common | {"infer_steps": steps}).result(tmp_path / str(steps)))
        for steps in (1, 40)
    )
    assert few == many
    rows = {**common, "model": "rvi", "classifier_epochs": 0}
    few, many = (
        finished(Experiment(**rows | {"infer_steps": steps}).result(tmp_path / f"rvi-{steps}"))
        for steps in (1, 40)
    )
    assert few["test_observed"] != many["test_observed"]


def test_figures_share_runs_and_nothing_is_run_again(out, tmp_path, monkeypatch):
    every = [run for name in NAMES for run, _ in runs(out, name)]
    results = [*out.glob("runs/*/result.json")]
    assert len(results) == len(set(every)) < len(every)
    before = {path: path.stat().st_mtime_ns for path in results}
    monkeypatch.setattr("rvi_fast.training.workers._Worker", None)  # starts no process
    written = (out / "fig3.csv").read_bytes()
    (out / "fig3.csv").unlink()
    assert cli.main(["reproduce", "fig3", "fig4", "--out", str(out), "--quiet"]) == 0
    assert (out / "fig3.csv").read_bytes() == written
    assert {path: path.stat().st_mtime_ns for path in results} == before


def test_a_figure_and_a_data_set_can_have_sizes_of_their_own():
    own = {"fig3": {"epochs": 7, "seeds": 1, "tables": ("t",)}}
    scale = replace(TINY, own=own, sets={"t": {"rows": None, "epochs": 9}})
    assert scale.of("fig2").common == scale.common
    runs = registry.FIGURES["fig3"].configurations(scale.of("fig3"))
    assert {(run.data, run.rows, run.epochs) for run in runs} == {("digits", 40, 7), ("t", None, 9)}
    assert {run.seed for run in runs} == {0}
    # what a figure is about goes before what suits the data set
    assert scale.experiment(data="t", epochs=3).epochs == 3


def test_the_reduced_scale_has_the_main_figure_whole():
    scale = scales.SCALES["reduced"]
    runs = registry.FIGURES["fig2"].configurations(scale.of("fig2"))
    assert {(run.rows, run.epochs, run.batch_size) for run in runs} == {(10_000, 250, 256)}
    assert {run.data for run in runs} == {"mnist", "fashion-mnist"}
    assert len(runs) == 2 * 3 * 4 * 2


def test_the_paper_scale_has_the_sizes_of_the_paper():
    scale = scales.SCALES["paper"]
    assert scale.images == ("mnist", "fashion-mnist")
    for name, one in registry.FIGURES.items():
        found = one.configurations(scale.of(name))
        assert len(set(found)) == len(found), name
        assert {run.epochs for run in found} == {250}, name
        assert {run.rows for run in found if run.data != "mosi"} <= {10_000}, name
        # which has 1,284
        assert {run.rows for run in found if run.data == "mosi"} <= {None}, name
    assert {run.boxes for run in registry.FIGURES["fig11"].configurations(scale)} == {10, 20}
    classifiers = registry.FIGURES["fig5"].configurations(scale)
    assert {run.classifier_epochs for run in classifiers} == {250}
    assert len({run.posterior_lr for run in registry.FIGURES["fig6"].configurations(scale)}) == 7


def test_runs_of_other_seeds_and_scores_that_are_not_there_are_told_apart():
    figure = Figure("", lambda _: [], ("test_missing",), over="missing")
    results = [
        (Experiment(missing=0.0, seed=0), {"test_missing": None}),
        (Experiment(missing=0.5, seed=0), {"test_missing": 1.0}),
        (Experiment(missing=0.5, seed=1), {"test_missing": 4.0}),
    ]
    (row,) = figure.table(results)
    assert (row["missing"], row["mean"], row["std"], row["runs"]) == (0.5, 2.5, 1.5, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fig12"], "figures: expected all, fig1"),
        (["fig3", "--jobs", "0"], "jobs: expected"),
        (["fig11", "--data", "mosi"], "data: expected sets that fig11 is made of, got mosi"),
        (["fig6", "--data", "mnist", "digits"], "data: expected sets that fig6 is made of"),
    ],
)
def test_what_is_unknown_is_refused_before_any_run(arguments, words, tmp_path, capsys):
    assert cli.main(["reproduce", *arguments, "--out", str(tmp_path / "o"), "--quiet"]) == 2
    assert words in capsys.readouterr().err
    assert not [*tmp_path.glob("o/runs/*/")]


def test_a_figure_is_made_of_the_data_that_are_asked_for(tiny, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 6))
    own, out = tmp_path / "own.npy", tmp_path / "out"
    np.save(own, x)
    for names, sets in ((["fig3"], ["digits", str(own)]), (["fig4"], [str(own)])):
        arguments = ["reproduce", *names, "--data", *sets, "--out", str(out), "--quiet"]
        assert cli.main(arguments) == 0
        assert {row["data"] for row in table(out / f"{names[0]}.csv")} == set(sets)


def test_help_names_every_figure(capsys):
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "--help"])
    words = capsys.readouterr().out.replace(",", " ").split()
    assert {*registry.FIGURES, "all"} <= {*words}


def test_runs_that_are_done_keep_their_names(tmp_path):
    """The names that 0.1.0 gave; a field that comes later counts where it is set."""
    wide = imputation.Imputation(method="KNN", hidden=(256, 256))
    assert directory_of(tmp_path, Experiment()).name == "b5681bbcf0e6c88d"
    assert directory_of(tmp_path, wide).name == "72c22ea7ee3b3e07"

    @dataclass(frozen=True)
    class Later(Experiment):
        share: float = 0.0

    assert directory_of(tmp_path, Later()) == directory_of(tmp_path, Experiment())
    assert directory_of(tmp_path, Later(share=0.1)) != directory_of(tmp_path, Experiment())


def test_a_figure_registers_itself_with_what_it_needs(tmp_path):
    @figure("own", "Batch sizes", ("spread",), over="batch_size", labels={"spread": "a spread"})
    def runs(scale):
        return [scale.experiment(data="digits", batch_size=size, seed=0) for size in (16, 64)]

    try:
        (made,) = {name: one for name, one in REGISTERED.items() if name == "own"}.values()
        results = [(run, {"spread": run.batch_size / 2}) for run in made.configurations(TINY)]
        made.save(tmp_path / "own", results, [tmp_path] * 2)
        assert [row["mean"] for row in table(tmp_path / "own.csv")] == ["8.0", "32.0"]
        with pytest.raises(ValueError, match=r"name: expected another one .* got 'own'"):
            figure("own", "Again", ("spread",))(runs)
    finally:
        del REGISTERED["own"]
    with pytest.raises(
        ValueError, match=r"quantities: expected a label for each, got none for 'w'"
    ):
        figure("other", "Without words", ("w",))


def test_runs_that_fail_are_named(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        scales.SCALES, "quick", replace(scales.SCALES["quick"], images=(str(tmp_path / "no.npy"),))
    )
    assert cli.main(["reproduce", "fig8", "--out", str(tmp_path / "o"), "--quiet"]) == 2
    text = capsys.readouterr().err
    assert "4 of 4 runs failed" in text
    assert "no.npy: no such file" in text


def test_a_figure_is_made_although_runs_of_another_fail(tiny, tmp_path, capsys, monkeypatch):
    scale = replace(scales.SCALES["quick"], own={"fig8": {"images": (str(tmp_path / "no.npy"),)}})
    monkeypatch.setitem(scales.SCALES, "quick", scale)
    assert cli.main(["reproduce", "fig7", "fig8", "--out", str(tmp_path / "o"), "--quiet"]) == 2
    assert "4 of 5 runs failed" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("o/fig*.csv")} == {"fig7.csv"}


def test_pictures_are_redrawn_from_their_tables_byte_for_byte(out, tmp_path, capsys):
    for name in ("fig2", "fig9", "outliers"):
        (tmp_path / f"{name}.csv").write_bytes((out / f"{name}.csv").read_bytes())
    capsys.readouterr()
    assert cli.main(["reproduce", "all", "--redraw", "--out", str(tmp_path)]) == 0
    written = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".csv")
    assert written == sorted(
        f"{n}{e}" for n in ("fig2", "fig9", "outliers") for e in (".png", ".svg")
    )
    assert sorted(capsys.readouterr().out.split()) == [str(tmp_path / name) for name in written]
    for name in written:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name
    assert cli.main(["reproduce", "fig8", "--redraw", "--out", str(tmp_path)]) != 0
    (tmp_path / "fig8.csv").write_text("quantity,mean\n")
    assert cli.main(["reproduce", "fig8", "--redraw", "--out", str(tmp_path)]) == 2
    assert "fig8.csv: expected columns" in capsys.readouterr().err
