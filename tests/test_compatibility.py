"""What earlier versions have left on disk is read, and gone on with, as they would have done.

`tests/fixtures/make.py` made the files with the version that their directory names.
"""

import csv
import hashlib
import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from rvi_fast import fit, impute, infer, load
from rvi_fast.cli import main
from rvi_fast.experiments.experiment import Experiment
from rvi_fast.experiments.figures.imputation import Imputation
from rvi_fast.experiments.registry import FIGURES
from rvi_fast.experiments.scales import SCALES
from rvi_fast.experiments.sweep import directory_of, read_result, sweep
from rvi_fast.training import CheckpointWarning
from rvi_fast.training.runs.directory import read_run, write_run

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.parent.name for path in FIXTURES.glob("*/said.npz"))
# sums of float32 in another order: by another implementation of the ops, in longer trainings
CLOSE = {"rtol": 2e-3, "atol": 2e-3}

pytestmark = [
    pytest.mark.parametrize("version", VERSIONS),
    # what a version without checksums wrote is read with a warning
    pytest.mark.filterwarnings("ignore::rvi_fast.training.CheckpointWarning"),
]


def maker():
    """The script that made the files: its models and options are those of the runs."""
    spec = importlib.util.spec_from_file_location("make", FIXTURES / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = maker()


def said(version):
    with np.load(FIXTURES / version / "said.npz") as archive:
        return dict(archive)


def array(version, name):
    return np.load(FIXTURES / version / f"{name}.npy")


def assert_parameters(model, expected, prefix):
    found = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    own = {name.removeprefix(f"{prefix}/") for name in expected if name.startswith(f"{prefix}/")}
    assert found.keys() == own - {"infer", "reconstruct", "loss", "impute"}
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[f"{prefix}/{name}"], err_msg=name)


def scaled(version):
    """0.1.0 trained on the numbers as they came."""
    return {"standardize": version != "0.1.0"}


@pytest.mark.parametrize("name", ["rvi", "vae"])
def test_a_run_directory_is_loaded_bit_for_bit(version, name):
    expected, model = said(version), load(FIXTURES / version / name)
    assert_parameters(model, expected, name)
    # what an encoder gave was all that there was, whatever the steps
    steps = 0 if name == "vae" else 20
    posterior = infer(model, array(version, "others"), steps=steps, seed=3)
    np.testing.assert_allclose(posterior.mean().detach(), expected[f"{name}/infer"], **CLOSE)
    np.testing.assert_allclose(
        model.reconstruct(posterior=posterior), expected[f"{name}/reconstruct"], **CLOSE
    )


def test_training_rows_are_filled_in_as_they_were(version):
    x = array(version, "table")
    filled = impute(load(FIXTURES / version / "rvi"), x)
    np.testing.assert_allclose(filled, said(version)["rvi/impute"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(filled[~np.isnan(x)], x[~np.isnan(x)])


@pytest.mark.parametrize("name", ["rvi", "vae"])
def test_a_run_goes_on_as_it_would_have_gone(version, name, tmp_path):
    run_dir = shutil.copytree(FIXTURES / version / name, tmp_path / name)
    options = MAKE.FIT | scaled(version) | {"run_dir": run_dir, "resume": True}
    history = fit(MAKE.BUILD[name](), array(version, "table"), epochs=MAKE.LAST, **options)
    expected = said(version)[f"{name}/loss"]
    assert len(expected) == MAKE.LAST
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-3)


def test_an_export_is_loaded_bit_for_bit(version):
    model = load(FIXTURES / version / "rvi.safetensors")
    assert_parameters(model, said(version), "rvi")


def test_tables_in_files_are_opened_and_trained_on(version, tmp_path, monkeypatch):
    shutil.copytree(FIXTURES / version / "mapped", tmp_path / "mapped")
    monkeypatch.chdir(tmp_path)  # where the tables lie is written down, as it was given
    assert_parameters(load("mapped"), said(version), "mapped")
    model = MAKE.BUILD["rvi"](storage="mapped/tables")
    options = MAKE.FIT | scaled(version) | {"run_dir": "mapped", "resume": True}
    history = fit(model, array(version, "table"), epochs=MAKE.LAST, **options)
    np.testing.assert_allclose(history["loss"], said(version)["rvi/loss"], rtol=1e-3)


def numbers(path):
    """The cells of a text table, without names of rows and columns; NaN for empty ones."""
    with open(path, newline="") as file:
        rows = [row[-6:] for row in csv.reader(file)][1:]
    return np.array([[cell or "nan" for cell in row] for row in rows], np.float64)


def trained(version, tmp_path):
    """The directory of `rvi-fast train`, with its table where run.json says that it is."""
    run_dir = shutil.copytree(FIXTURES / version / "train", tmp_path / "train")
    table = shutil.copy(FIXTURES / version / "table.csv", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        run = read_run(run_dir) | {"data": str(table)}
    if version == "0.1.0":
        (run_dir / "run.json").write_text(json.dumps(run))
    else:
        write_run(run_dir, run)
    return run_dir, table


def test_the_command_line_fills_in_its_training_data_as_before(version, tmp_path):
    run_dir, _ = trained(version, tmp_path)
    assert main(["impute", "--run-dir", str(run_dir), "--out", str(tmp_path / "out.csv")]) == 0
    expected = numbers(FIXTURES / version / "filled.csv")
    np.testing.assert_allclose(numbers(tmp_path / "out.csv"), expected, rtol=1e-5, atol=1e-5)


def test_the_command_line_infers_with_a_model_of_then(version, tmp_path):
    run_dir, table = trained(version, tmp_path)
    arguments = ["impute", "--run-dir", str(run_dir), "--data", str(table), "--quiet"]
    for steps in (100, 400):
        out = ["--steps", str(steps), "--out", str(tmp_path / f"{steps}.csv")]
        assert main([*arguments, *out]) == 0
    x, once, again = numbers(table), numbers(tmp_path / "100.csv"), numbers(tmp_path / "400.csv")
    np.testing.assert_allclose(once[~np.isnan(x)], x[~np.isnan(x)], rtol=1e-6)
    # posteriors that have been found, in the units of the columns
    assert (np.abs(once - again) < 0.5 * np.nanstd(x, axis=0)).all()


def test_the_command_line_goes_on_with_a_run_of_then(version, tmp_path, capsys):
    run_dir, table = trained(version, tmp_path)
    arguments = list(MAKE.TRAIN)
    arguments[arguments.index("--epochs") + 1] = "5"
    command = ["train", "--data", str(table), "--run-dir", str(run_dir), *arguments, "--resume"]
    assert main(command) == 0, capsys.readouterr().err
    epochs = [json.loads(line)["epoch"] for line in (run_dir / "metrics.jsonl").open()]
    assert epochs == [1, 2, 3, 4, 5]


def refuse(configuration, directory):
    raise AssertionError(f"{directory} was done, and is started again")


def test_a_sweep_knows_its_runs_by_name(version, tmp_path):
    out = shutil.copytree(FIXTURES / version / "sweep", tmp_path / "sweep")
    results = sweep(MAKE.EXPERIMENTS, refuse, out, progress=False)
    assert len(results) == len(list(out.glob("*/result.json"))) == len(MAKE.EXPERIMENTS)
    for experiment, result in zip(MAKE.EXPERIMENTS, results, strict=True):
        directory = directory_of(out, experiment)
        stored = json.loads((directory / "config.json").read_text())
        kind = Imputation if "method" in stored else Experiment
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        assert kind(**fields) == experiment
        assert read_result(directory)["made"]["version"] == version
        assert read_result(directory).items() >= result.items()


def test_no_run_of_a_figure_has_lost_its_name(version):
    expected = json.loads((FIXTURES / version / "names.json").read_text())
    for place, (count, digest) in expected.items():
        scale, name = place.split("/")
        runs = FIGURES[name].configurations(SCALES[scale].of(name))
        # a model that came later has runs of its own beside them
        known = [each for each in runs if each.model in ("rvi", "vad", "vae")]
        names = sorted({directory_of(Path(), each).name for each in known})
        assert len(names) == count, place
        assert hashlib.sha256("".join(names).encode()).hexdigest()[:16] == digest, place


def test_the_files_are_of_the_version_that_their_directory_names(version):
    with safe_open(FIXTURES / version / "rvi.safetensors", framework="pt") as file:
        assert file.metadata()["rvi_fast"] == version
