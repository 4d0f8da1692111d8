"""Transforms of columns are monotone, have inverses, and are chosen by one rule for all data."""

import json

import numpy as np
import pytest

from rvi_fast.data import ColumnTransform

RNG = np.random.default_rng(0)
N = 400
SHAPES = {
    "normal": (RNG.normal(7, 2, N), "none"),
    "uniform": (RNG.random(N), "none"),
    "exponential": (RNG.exponential(1.0, N), "none"),
    "steps": (RNG.integers(0, 4, N).astype(float), "none"),
    "rare events": ((RNG.random(N) < 0.03).astype(float), "none"),
    "constant": (np.full(N, 0.001), "none"),
    "log-normal": (RNG.lognormal(3, 1.5, N), "log"),
    "Pareto": (RNG.pareto(1.5, N) + 1, "log"),
    "Cauchy": (RNG.standard_cauchy(N), "quantile"),
    "negative log-normal": (-RNG.lognormal(0, 1.5, N), "quantile"),
    "mostly zeros": (np.where(RNG.random(N) < 0.6, 0, RNG.lognormal(0, 2, N)), "quantile"),
    "far from zero": (1e6 + RNG.lognormal(0, 1.5, N), "quantile"),
}
TABLE = np.stack([values for values, _ in SHAPES.values()], axis=1)
KINDS = [kind for _, kind in SHAPES.values()]


def test_one_rule_chooses_by_the_shape_of_a_column():
    assert ColumnTransform.fit(TABLE).kinds == KINDS
    scaled = ColumnTransform.fit(TABLE * 1e-5)
    assert scaled.kinds == KINDS


def test_what_is_missing_does_not_choose():
    hidden = RNG.random(TABLE.shape) < 0.2
    shown = np.where(hidden, -9e99, TABLE)
    masked = ColumnTransform.fit(shown, ~hidden)
    assert masked.to_dict() == ColumnTransform.fit(np.where(hidden, np.nan, TABLE)).to_dict()
    empty = ColumnTransform.fit(np.full((5, 2), np.nan))
    assert empty.kinds == ["none", "none"]


def test_a_single_wrong_number_does_not_choose():
    table = RNG.normal(size=(50, 3))
    table[7, 1] = 1e6
    assert ColumnTransform.fit(table).kinds == ["none"] * 3


@pytest.mark.parametrize("kind", ["none", "auto", "quantile"])
def test_the_inverse_gives_back_what_was_transformed(kind):
    transform = ColumnTransform.fit(TABLE, kind=kind)
    bent = transform.transform(TABLE)
    for column in range(bent.shape[1]):
        order = np.argsort(TABLE[:, column])
        assert (np.diff(bent[order, column]) >= 0).all()
    back = transform.inverse(bent)
    if kind == "quantile":  # straight lines between knots
        spread = TABLE.std(axis=0)
        assert (np.abs(back - TABLE).max(axis=0) <= 0.02 * spread).all()
    else:
        np.testing.assert_allclose(back, TABLE, rtol=1e-2)


def test_logarithms_give_back_what_was_transformed():
    table = RNG.lognormal(3, 2, (N, 2))
    transform = ColumnTransform.fit(table, kind="log")
    np.testing.assert_allclose(transform.transform(table), np.log(table), rtol=1e-12)
    np.testing.assert_allclose(transform.inverse(np.log(table)), table, rtol=1e-12)


def test_scores_are_those_of_a_normal_distribution():
    x = RNG.standard_cauchy((5000, 1))
    scores = ColumnTransform.fit(x, kind="quantile").transform(x)
    np.testing.assert_allclose([scores.mean(), scores.std()], [0, 1], atol=0.02)


def test_values_outside_the_training_range_have_defined_images():
    x = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    log = ColumnTransform.fit(x, kind="log")
    new = np.array([[-1.0, 0.0], [0.5, 8.0], [np.nan, 1.0]])
    expected = [[-2.0, -1.0], [-0.5, np.log(8)], [np.nan, 0.0]]
    np.testing.assert_allclose(log.transform(new), expected)
    far = np.array([[-50.0, 50.0], [np.nan, 0.5]])
    np.testing.assert_array_equal(log.inverse(far)[0], [1.0, 4.0])
    assert np.isnan(log.inverse(far)[1, 0])
    quantile = ColumnTransform.fit(x, kind="quantile")
    ends = quantile.transform(x)[[0, 2], 0]
    np.testing.assert_array_equal(quantile.transform(np.array([[-9.0, 9.0]]))[0], ends)
    np.testing.assert_array_equal(quantile.inverse(far)[0], [1.0, 4.0])
    assert np.isnan(quantile.inverse(far)[1, 0])


def test_a_table_left_as_it_is_is_not_copied():
    table = RNG.normal(size=(9, 2)).astype(np.float32)
    transform = ColumnTransform.fit(table)
    assert transform.transform(table) is table
    assert transform.inverse(table) is table


def test_dictionaries_are_exact_through_json():
    transform = ColumnTransform.fit(TABLE)
    again = ColumnTransform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert again.kinds == transform.kinds
    bent = transform.transform(TABLE)
    np.testing.assert_array_equal(again.transform(TABLE), bent)
    np.testing.assert_array_equal(again.inverse(bent), transform.inverse(bent))


def test_transforms_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"transform: expected one of auto, none.* got 'sqrt'"):
        ColumnTransform.fit(TABLE, kind="sqrt")
    with pytest.raises(ValueError, match=r"expected positive .* 'log', got -1.0 in column 1"):
        ColumnTransform.fit(np.array([[1.0, -1.0]]), kind="log")
    with pytest.raises(ValueError, match="x: expected finite observed entries in column 1"):
        ColumnTransform.fit(np.array([[1.0, np.inf]]))
    with pytest.raises(ValueError, match=r"x: expected \[N, D\], got shape \[2\]"):
        ColumnTransform.fit(np.zeros(2))
    with pytest.raises(ValueError, match=r"x: expected \[N, 12\], got shape \[3, 2\]"):
        ColumnTransform.fit(TABLE).transform(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"mask: expected x's shape \[2, 2\], got \[1, 2\]"):
        ColumnTransform.fit(np.zeros((2, 2)), np.ones((1, 2), bool))
    good = [{"kind": "log", "low": 1.0, "high": 2.0}]
    for wrong in (
        None,
        {},
        {"columns": [{"kind": "sqrt"}]},
        {"columns": [{**good[0], "more": 1}]},
        {"columns": [{**good[0], "low": 0.0}]},
        {"columns": [{"kind": "quantile", "values": [1.0, 1.0], "scores": [0.0, 1.0]}]},
    ):
        with pytest.raises(ValueError, match="expected"):
            ColumnTransform.from_dict(wrong)
    assert ColumnTransform.from_dict({"columns": good}).kinds == ["log"]
