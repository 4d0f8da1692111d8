"""DataFrames of numbers: the same as their arrays, with names that are remembered and compared."""

import pickle

import numpy as np
import pytest
import torch
from common import assert_same

import rvi_fast
from rvi_fast import fit, fit_many, impute, infer, models
from rvi_fast.data.frames import unframed
from rvi_fast.training import export, held_out_error

pandas = pytest.importorskip("pandas", reason="pandas is not installed")

N = 50
VALUES = np.random.default_rng(0).normal(size=(N, 4)).cumsum(1)
VALUES[np.random.default_rng(1).random(VALUES.shape) < 0.2] = np.nan
FRAME = pandas.DataFrame(VALUES, columns=["a", "b", "c", 4])


def make():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return models.rvi(N, 4, latent_dim=3, hidden=(8,), groups=(4,))


def run(model, x, **options):
    return fit(model, x, **{"epochs": 5, "lr": 0.02, "progress": False} | options)


def test_a_frame_is_its_array():
    model, other = make(), make()
    history = run(model, FRAME)
    assert_same(model, history, other, run(other, VALUES))
    assert model.columns == ("a", "b", "c", "4")
    assert other.columns is None
    assert torch.equal(impute(model, FRAME), impute(other, VALUES))
    one, two = infer(model, FRAME[:7], steps=3), infer(other, VALUES[:7], steps=3)
    assert torch.equal(one.rows, two.rows)
    assert held_out_error(model, FRAME) == pytest.approx(held_out_error(other, VALUES), nan_ok=True)


def test_a_mask_may_be_a_frame_too():
    mask = pandas.DataFrame(VALUES < 1, columns=FRAME.columns)
    full = FRAME.fillna(0.0)
    model, other = make(), make()
    history = run(model, full, mask=mask)
    assert_same(model, history, other, run(other, full.to_numpy(), mask=mask.to_numpy()))
    with pytest.raises(ValueError, match="mask: expected the columns a, b, c, 4, got b, a, c, 4"):
        run(make(), full, mask=mask[["b", "a", "c", 4]])


def test_columns_of_every_numeric_kind_are_numbers():
    frame = pandas.DataFrame(
        {
            "float": [1.5, np.nan],
            "int": [1, 2],
            "small": np.array([1, 255], np.uint8),
            "yes": [True, False],
            "Int": pandas.array([3, None], "Int64"),
            "boolean": pandas.array([None, True], "boolean"),
        }
    )
    found = unframed("x", frame)
    assert found.dtype == np.float64
    nan = np.nan
    expected = [[1.5, 1, 1, 1, 3, nan], [nan, 2, 255, 0, nan, 1]]
    assert np.array_equal(found, expected, equal_nan=True)
    assert unframed("x", frame[["float"]].astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    "column", [["x", "y"], pandas.to_datetime(["2020", "2021"]), pandas.Categorical(["x", "y"])]
)
def test_columns_of_other_kinds_are_refused_by_name(column):
    frame = pandas.DataFrame({"a": [1.0, 2.0], "city": column})
    with pytest.raises(TypeError, match="x: expected numeric columns, got 'city' of dtype"):
        run(models.vad(2, 2, latent_dim=1), frame)


@pytest.mark.parametrize("ask", [run, infer, impute], ids=["fit", "infer", "impute"])
def test_other_columns_than_those_of_the_training_are_refused(ask):
    model = make()
    run(model, FRAME)
    other = FRAME[["b", "a", "c", 4]]
    with pytest.raises(ValueError, match="x: expected the columns a, b, c, 4, got b, a, c, 4"):
        ask(model, other)
    assert model.columns == ("a", "b", "c", "4")


def test_names_come_back_from_checkpoints_exports_pickles_and_processes(tmp_path):
    model = make()
    run(model, FRAME, run_dir=tmp_path / "run")
    export(model, tmp_path / "model.safetensors")
    many = [make(), make()]
    fit_many([{"model": one} for one in many], x=FRAME, epochs=2, jobs=2, progress=False, lr=0.02)
    found = [
        rvi_fast.load(tmp_path / "run"),
        rvi_fast.load(tmp_path / "model.safetensors"),
        pickle.loads(pickle.dumps(model)),
        *many,
    ]
    assert [one.columns for one in found] == [("a", "b", "c", "4")] * 5
    with pytest.raises(ValueError, match="x: expected the columns"):
        infer(found[0], FRAME.rename(columns={"a": "z"}))


def test_a_failed_fit_remembers_no_names():
    model = make()
    with pytest.raises(ValueError, match="finite"):
        run(model, FRAME.replace(FRAME.loc[0, "a"], np.inf))
    assert model.columns is None
