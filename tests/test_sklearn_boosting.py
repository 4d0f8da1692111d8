"""Boosted trees beside an imputer's other members: what they see, what they say, where they stand."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

import copy

from rvi_fast.likelihoods import make
from rvi_fast.sklearn import RelayImputer
from rvi_fast.sklearn.boosting import BoostedColumns
from rvi_fast.sklearn.codes import Codes
from rvi_fast.sklearn.members import Blend

LAWS = ["gaussian", "bernoulli", ("categorical", 4), "poisson"]


def thresholds(rows=600, seed=0):
    """A skewed number, whether it is above its median, a class by where it lies, and a count."""
    generator = np.random.default_rng(seed)
    number = np.exp(1.5 * generator.normal(size=rows))
    grade = np.digitize(number, [0.5, 1.7, 4.0])
    x = [number, number > 1.0, grade, generator.poisson(2.0, rows)]
    return np.column_stack(x).astype(np.float32)


def test_thresholds_are_found_and_observed_codes_are_left_alone():
    x, new = thresholds(), thresholds(seed=1)
    codes = Codes(make(LAWS, 4), x)
    shown = x.copy()
    shown[np.random.default_rng(2).random(x.shape) < 0.2] = np.nan
    boosting = BoostedColumns(codes, 0).fit(shown)
    holed = new.copy()
    holed[:, 1], holed[::2, 2] = np.nan, np.nan
    given = codes.of_rows(np.zeros_like(new))
    found = boosting.complete(holed, given)
    np.testing.assert_array_equal(found[:, codes.owner == 0], given[:, codes.owner == 0])
    np.testing.assert_array_equal(found[1::2, codes.owner == 2], given[1::2, codes.owner == 2])
    said = found * codes.units
    assert np.mean((said[:, 1] - new[:, 1]) ** 2) < 0.01
    classes = said[::2, codes.owner == 2]
    np.testing.assert_allclose(classes.sum(1), 1.0, atol=1e-6)
    assert np.mean(classes.argmax(1) == new[::2, 2]) > 0.97


def test_classes_and_columns_that_nobody_has_observed_are_not_learned():
    x = thresholds(200)
    codes = Codes(make(LAWS, 4), x)
    shown = x.copy()
    shown[:, 3] = np.nan
    shown[shown[:, 2] == 1, 2] = np.nan
    boosting = BoostedColumns(codes, 0).fit(shown)
    given = codes.of_rows(x)
    found = boosting.complete(np.full_like(x, np.nan), given) * codes.units
    np.testing.assert_allclose(found[:, codes.owner == 3], x[:, 3:], rtol=1e-5)
    assert (found[:, np.flatnonzero(codes.owner == 2)[1]] == 0).all()


def test_tables_of_several_laws_have_boosted_trees_and_tables_of_numbers_none():
    x = thresholds(300).astype(float)
    table = np.where(np.random.default_rng(1).random(x.shape) < 0.2, np.nan, x)
    options = {"latent_dim": 2, "hidden": (8,), "epochs": 2, "steps": 10, "random_state": 0}
    imputer = RelayImputer(**options, likelihood=LAWS).fit(table)
    assert imputer.blend_.names == ("linear", "relay", "forest", "boosting")
    errors = imputer.held_out_errors_
    assert errors["boosting"][1] < errors["linear"][1]
    assert imputer.blend_.weights[3, 1] > 0.2
    assert RelayImputer(**options).fit(table).blend_.names == ("linear", "relay", "forest")
    three = RelayImputer(**options, likelihood=LAWS, members=("linear", "relay", "forest"))
    blend = three.fit(table).blend_
    # what pickles of versions without them hold
    state = copy.copy(blend.__dict__)
    del state["boosting"]
    old = object.__new__(Blend)
    old.__setstate__(state)
    rows, relayed = table.astype(np.float32), blend.codes.of_rows(x.astype(np.float32))
    np.testing.assert_array_equal(old.complete(rows, relayed), blend.complete(rows, relayed))
