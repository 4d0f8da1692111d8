import sys

import numpy as np
import pytest

from rvi_fast.data import column_mean, conditional_gaussian, knn, mcar

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
X[:, 3] = X[:, 0] * 2
HOLED = np.where(mcar(X.shape, 0.2, seed=3), X, np.float32("nan"))


@pytest.mark.parametrize("impute", [column_mean, knn, conditional_gaussian])
def test_imputers_fill_holes_and_nothing_else(impute):
    if impute is knn:
        pytest.importorskip("sklearn")
    before = HOLED.copy()
    filled = impute(HOLED)
    assert filled.dtype == np.float32
    assert not np.isnan(filled).any()
    np.testing.assert_array_equal(filled[~np.isnan(HOLED)], HOLED[~np.isnan(HOLED)])
    np.testing.assert_array_equal(HOLED, before)


@pytest.mark.parametrize("impute", [column_mean, knn, conditional_gaussian])
def test_a_column_never_observed_becomes_zero(impute):
    if impute is knn:
        pytest.importorskip("sklearn")
    table = HOLED.copy()
    table[:, 2] = np.nan
    filled = impute(table)
    assert filled.shape == table.shape
    assert (filled[:, 2] == 0).all()


def test_column_mean_fills_with_the_mean_of_the_observed():
    filled = column_mean(HOLED)
    for column in range(4):
        holes = np.isnan(HOLED[:, column])
        mean = np.nanmean(HOLED[:, column], dtype=np.float64)
        np.testing.assert_allclose(filled[holes, column], mean, rtol=1e-6)


def test_knn_takes_the_mean_of_the_nearest_rows():
    pytest.importorskip("sklearn")
    table = np.array([[0, 1], [0.1, 3], [5, 100], [0, np.nan]])
    assert knn(table, k=2)[3, 1] == 2


def test_knn_names_the_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.impute", None)
    with pytest.raises(ImportError, match=r'pip install "rvi-fast\[sklearn\]"'):
        knn(HOLED)


def test_conditional_gaussian_is_the_regression_on_what_is_observed():
    random = np.random.default_rng(1)
    mixing = random.normal(size=(3, 5))
    x = random.normal(size=(4000, 3)) @ mixing + 0.1 * random.normal(size=(4000, 5)) + 2.0
    holed = x.copy()
    holed[:500, 4] = np.nan
    filled = conditional_gaussian(holed, ridge=0.0)
    design = np.column_stack([np.ones(3500), x[500:, :4]])
    weights = np.linalg.lstsq(design, x[500:, 4], rcond=None)[0]
    expected = weights[0] + x[:500, :4] @ weights[1:]
    np.testing.assert_allclose(filled[:500, 4], expected, atol=0.1 * np.std(x[:, 4]))
    error = np.square(filled[:500, 4] - x[:500, 4]).mean()
    assert error < 0.1 * np.square(column_mean(holed)[:500, 4] - x[:500, 4]).mean()


def test_conditional_gaussian_takes_rows_without_any_entry_and_constant_columns():
    x = HOLED.copy()
    x[0] = np.nan
    x[:, 1] = 3.0
    filled = conditional_gaussian(x)
    np.testing.assert_allclose(filled[0], np.nanmean(x, 0), rtol=1e-5)
    assert np.isfinite(filled).all()
    constant = np.full((4, 2), 7.0)
    constant[1, 1] = np.nan
    np.testing.assert_array_equal(conditional_gaussian(constant), 7.0)


@pytest.mark.parametrize("impute", [column_mean, knn, conditional_gaussian])
def test_imputers_learn_from_other_rows(impute):
    if impute is knn:
        pytest.importorskip("sklearn")
    x = np.array([[np.nan, 1.0, 0.0, np.nan], [2.0, np.nan, 0.0, 1.0]], np.float32)
    together = impute(x, train=HOLED)
    apart = [impute(row[None], train=HOLED)[0] for row in x]
    np.testing.assert_allclose(together, apart, rtol=1e-6)
    assert (together[~np.isnan(x)] == x[~np.isnan(x)]).all()
    assert not np.allclose(together, impute(x, train=HOLED + 1))
    np.testing.assert_array_equal(impute(HOLED, train=HOLED), impute(HOLED))
