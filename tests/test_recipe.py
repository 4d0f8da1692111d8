"""Rows, holes, units and scores of a table: once for the command line, figures and estimators."""

import json

import numpy as np
import pytest
import torch

import rvi_fast
from rvi_fast import cli, data
from rvi_fast.data import ColumnTransform, Standardizer
from rvi_fast.data.pixels import fractions, is_pixels, observed, pixels
from rvi_fast.data.recipe import Units, rows_of_figure, scores
from rvi_fast.experiments.experiment import Experiment, parts
from rvi_fast.experiments.experiment import run as run_experiment
from rvi_fast.scaler import Scaler
from rvi_fast.training import export, impute

BYTES = np.arange(256, dtype=np.uint8)
SMALL = (
    "--latent-dim",
    "3",
    "--hidden",
    "8",
    "--groups",
    "4",
    "5",
    "--batch-size",
    "16",
    "--quiet",
)


def heavy(num_rows=120, seed=0):
    """One log-normal column, one of Cauchy's, one normal; a fifth missing."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(num_rows, 1))
    x = z * [2.0, 1.0, 1.0] + 0.2 * random.normal(size=(num_rows, 3))
    x[:, 0], x[:, 1] = np.exp(x[:, 0]), np.tan(np.clip(x[:, 1], -1.5, 1.5))
    x[random.random(x.shape) < 0.2] = np.nan
    return x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels_are_the_floats_next_to_255ths_in_numpy_and_torch(dtype):
    expected = (BYTES.astype(np.float64) / 255).astype(dtype)
    np.testing.assert_array_equal(fractions(BYTES, dtype), expected)
    tensor = torch.from_numpy(BYTES)
    np.testing.assert_array_equal(fractions(tensor, torch.from_numpy(expected).dtype), expected)
    np.testing.assert_array_equal(pixels(expected), BYTES)
    assert [is_pixels(x) for x in (BYTES, tensor, expected)] == [True, True, False]


def test_numbers_are_observed_where_they_are_not_nan_and_pixels_everywhere():
    x, mask = np.array([[1.0, np.nan, 3.0]]), np.array([[True, True, False]])
    for make in (np.asarray, torch.from_numpy):
        assert observed(make(x)).tolist() == [[True, False, True]]
        assert observed(make(x), make(mask)).tolist() == [[True, False, False]]
        assert observed(make(BYTES[:2])).tolist() == [True, True]


def test_rows_of_a_figure_are_drawn_as_0_1_0_drew_them():
    part, rows = rows_of_figure(100, None, "test", 5, 3, "rows")
    order = np.random.default_rng(0).permutation(100)
    pools = np.sort(order[25:]), np.sort(order[:25])
    generator = np.random.default_rng((3, 1))
    generator.permutation(75)
    assert part == "train"
    np.testing.assert_array_equal(rows, pools[1][np.sort(generator.permutation(25)[:5])])
    with pytest.raises(ValueError, match="rows: expected 1 to 75 rows, got 76"):
        rows_of_figure(100, None, "train", 76, 0, "rows")
    with pytest.raises(ValueError, match="data: expected at least two rows"):
        rows_of_figure(1, None, "train", None, 0, "rows")


def test_units_and_their_inverse_are_those_of_scale_and_transform():
    x = heavy()
    units = Units.fit(x, ~np.isnan(x), kind="auto")
    assert units.transform.kinds == ["log", "quantile", "none"]
    bent = units.transform.transform(x)
    np.testing.assert_array_equal(units.to_model(x), units.scale.transform(bent))
    near = np.abs(bent - units.scale.mean) < 9 * units.scale.std
    found = units.to_data(units.scale.transform(bent).astype(np.float64))
    np.testing.assert_allclose(found[near], x[near], rtol=1e-4)
    draws = units.to_data(np.zeros((4, 7, 3)))
    assert draws.shape == (4, 7, 3)
    assert Units.fit(BYTES[None], np.ones((1, 256), bool)).scale is None


def test_scores_are_of_what_was_shown_and_of_what_was_hidden():
    x, mask = np.array([[1.0, 2.0, np.nan]]), np.array([[True, False, False]])
    found = scores(x, np.zeros((1, 3)), mask, observed(x))
    assert found == {"observed": (2.0, 1), "missing": (6.0, 1)}
    assert scores(x, x, mask, mask)["missing"][1] == 0


# the scale within a model


def scaler(kind="auto"):
    x = heavy()
    units = Units.fit(x, ~np.isnan(x), kind=kind)
    return x, units, Scaler(units.scale, units.transform)


def test_a_scaler_takes_data_through_the_transform_and_back():
    x, units, module = scaler()
    own = module.to_model(torch.from_numpy(x), torch.float32)
    np.testing.assert_array_equal(own, units.to_model(x))
    values = np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_allclose(module.to_data(torch.from_numpy(values)), units.to_data(values))


def test_a_scaler_s_volume_is_that_of_the_density_of_the_data():
    x, units, module = scaler()
    x = x[~np.isnan(x).any(axis=1)]
    # off the knots, where the lines of the quantiles meet
    inside = np.quantile(x, 0.3, axis=0) * [1.001, 1.001, 1.0]
    step = 1e-6 * np.abs(inside)
    ends = [units.bent((inside + sign * step)[None])[0] for sign in (-1, 1)]
    slope = (ends[1] - ends[0]) / (2 * step) / units.scale.std
    found = module.log_volume(torch.from_numpy(inside[None]), None)
    np.testing.assert_allclose(found, -np.log(slope).sum(), rtol=1e-3)
    hidden = torch.tensor([[False, False, True]])
    volume = module.log_volume(torch.from_numpy(inside[None]), hidden)
    np.testing.assert_allclose(volume, np.log(units.scale.std[2]))


def test_a_state_dict_holds_the_transform_and_a_model_takes_it(tmp_path):
    _, units, module = scaler()
    model = rvi_fast.models.rvi(120, 3, latent_dim=2, groups=(4,), hidden=(8,))
    model.scaler = module
    other = rvi_fast.models.rvi(120, 3, latent_dim=2, groups=(4,), hidden=(8,))
    other.load_state_dict(model.state_dict())
    export(model, tmp_path / "a.safetensors")
    for found in (other, rvi_fast.load(tmp_path / "a.safetensors"), model.double()):
        assert (
            found.scaler.to_dict()
            == module.to_dict()
            == Scaler.from_dict(module.to_dict()).to_dict()
        )
        assert found.scaler.transform().to_dict() == units.transform.to_dict()
    assert module.copy().to_dict() == module.to_dict()


@pytest.mark.parametrize("kind", ["none", "auto", "quantile"])
def test_knots_are_all_there_is_to_a_transform(kind):
    x = heavy()
    x[:, 2] = np.nan
    transform = ColumnTransform.fit(x, kind=kind)
    again = ColumnTransform.from_knots(*transform.knots())
    assert again.to_dict() == transform.to_dict()
    with pytest.raises(ValueError, match="kinds: expected 0, 1 or 2, got 3"):
        ColumnTransform.from_knots(np.zeros((1, 2, 1)), np.array([3]))


# the command line


def command(*arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.mark.parametrize("name", ["digits", "artificial"])
def test_train_makes_the_run_of_a_figure(tmp_path, name):
    experiment = Experiment(
        data=name, rows=40, test_rows=20, epochs=3, batch_size=16, infer_steps=5, latent_dim=3,
        hidden=(8,), groups=(4, 5), lr=0.01, missing=0.3, seed=2,
    )  # fmt: skip
    expected = run_experiment(experiment, tmp_path / "figure")
    recipe = ("--recipe", "figure", "--seed", 2, "--missing", 0.3)
    train = ("train", "--data", name, "--subset", 40, "--epochs", 3, "--lr", 0.01)
    command(*train, *recipe, "--run-dir", tmp_path / "own", *SMALL)
    found = [json.loads(line)["elastic"] for line in (tmp_path / "own/metrics.jsonl").open()]
    assert found == expected["elastic"]
    # the test rows, hidden entries and all
    out = tmp_path / "latents.npy"
    command("infer", "--run-dir", tmp_path / "own", "--subset", 20, "--seed", 2, "--missing", 0.3,
        "--steps", 5, "--out", out, "--quiet")  # fmt: skip
    _, test = parts(experiment, None)
    model = rvi_fast.load(tmp_path / "figure")
    posterior = rvi_fast.infer(model, test.x, mask=test.mask, steps=5, lr=0.01, seed=2)
    np.testing.assert_allclose(np.load(out)[:, :3], posterior.mean().detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("transform", ["auto", "none"])
def test_a_trained_model_speaks_the_units_of_its_table(tmp_path, transform):
    x = heavy()
    data.save_table(tmp_path / "x.csv", x, ("a", "b", "c"))
    train = ("train", "--data", tmp_path / "x.csv", "--epochs", 3, "--lr", 0.01)
    command(*train, "--transform", transform, "--run-dir", tmp_path / "r", *SMALL)
    command("impute", "--run-dir", tmp_path / "r", "--out", tmp_path / "filled.csv", "--quiet")
    command("export", "--run-dir", tmp_path / "r", "--out", tmp_path / "m.safetensors")
    expected = data.read_table(tmp_path / "filled.csv").values
    for path in ("r", "m.safetensors"):
        model = rvi_fast.load(tmp_path / path)
        assert isinstance(model.scaler.standardizer(), Standardizer)
        found = impute(model, data.read_table(tmp_path / "x.csv").values)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        # log-normal numbers are positive, and the range that was seen is not left
        if transform == "auto":
            assert model.scaler.transform().kinds == ["log", "quantile", "none"]
            assert (model.reconstruct()[:, 0] > 0).all()
    command(*train, "--transform", transform, "--run-dir", tmp_path / "r", "--resume", *SMALL)
    assert "standardizer" not in json.loads((tmp_path / "r/run.json").read_text())
