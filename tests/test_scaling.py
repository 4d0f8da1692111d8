"""The scale of features: what is robust, what is exact, and parts that add up."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from rvi_fast.data.scaling import FarEntriesWarning, Moments, Standardizer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 5))
HEAVY = {
    "normal": X,
    "exponential": RNG.exponential(size=(1000, 20)),
    "log-normal": np.exp(RNG.normal(size=(1000, 20))),
    "a rare mark": (np.arange(1000)[:, None] % 400 == 0).astype(float),
    "two clusters": RNG.normal(size=(1000, 5)) + 100 * (RNG.random((1000, 5)) < 0.1),
}


def moments_of(x, cuts=()):
    whole, edges = Moments(*x.shape), [0, *cuts, len(x)]
    for start, stop in itertools.pairwise(edges):
        whole.add(torch.from_numpy(x[start:stop]), start)
    return whole


def test_one_wrong_entry_does_not_set_the_scale():
    wrong = X.copy()
    wrong[17, 3] = 1e6
    with pytest.warns(FarEntriesWarning, match="1000000.0 at row 17, column 3"):
        scale = Standardizer.fit(wrong)
    clean = Standardizer.fit(X)
    assert abs(scale.mean[3] - clean.mean[3]) < 0.1
    assert abs(scale.std[3] - clean.std[3]) < 0.1
    others = [0, 1, 2, 4]
    np.testing.assert_array_equal(scale.mean[others], clean.mean[others])
    np.testing.assert_array_equal(scale.std[others], clean.std[others])
    assert scale.transform(wrong)[17, 3] == 10
    np.testing.assert_array_equal(scale.transform(wrong)[:, others], clean.transform(X)[:, others])


@pytest.mark.parametrize("name", HEAVY)
def test_tails_that_a_law_brings_forth_keep_mean_and_standard_deviation(name):
    x = HEAVY[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scale, plain = Standardizer.fit(x), Standardizer.fit(x, robust=False)
    np.testing.assert_array_equal(scale.mean, plain.mean)
    np.testing.assert_array_equal(scale.std, plain.std)
    np.testing.assert_array_equal(scale.transform(x), plain.transform(x))


def test_new_rows_are_cut_where_training_has_seen_nothing():
    scale = Standardizer.fit(X)
    assert scale.transform(np.full((1, 5), -1e9)).tolist() == [[-10.0] * 5]


def test_moments_of_parts_add_up_to_those_of_the_whole():
    x = X * [1, 1e-3, 1e3, 1, 1] + [1.7e9, 0, 5, 0, 0]
    x[RNG.random(x.shape) < 0.3] = np.nan
    x[:400, 3], x[:, 4] = np.nan, np.nan
    whole, parts = moments_of(x), moments_of(x, (100, 130, 900))
    for name in ("count", "low", "high", "low_row", "high_row", "sample"):
        np.testing.assert_array_equal(getattr(whole, name)[..., :4], getattr(parts, name)[..., :4])
    one, other = whole.standardizer(), parts.standardizer()
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-13, atol=1e-17)
    # a mean of 1.7e9 is a number of float64 to 2e-7, which is what two parts may be apart by mistake
    np.testing.assert_allclose(one.std, other.std, rtol=1e-8)
    exact = np.nanstd(x - np.nan_to_num(np.nanmin(x, axis=0)), axis=0)
    np.testing.assert_allclose(one.std[:4], exact[:4], rtol=1e-12)
    assert one.std[4] == one.mean[4] == 0


def test_the_rows_that_quantiles_come_from_do_not_depend_on_the_parts(monkeypatch):
    monkeypatch.setattr("rvi_fast.data.scaling._SAMPLED_ROWS", 50)
    whole, parts = moments_of(X), moments_of(X, (3, 500))
    assert 40 <= len(whole.sample) <= 50
    np.testing.assert_array_equal(whole.sample, parts.sample)


def test_a_column_of_one_number_but_for_one_entry_keeps_a_scale():
    x = np.zeros((1000, 1))
    x[5] = 1e6
    scale = Standardizer.fit(x)
    assert scale.std[0] == pytest.approx(x.std())


def test_numbers_whose_variance_cannot_be_held_are_refused():
    with pytest.raises(ValueError, match="variance float64 can hold, got -1e\\+300 to 1e\\+300"):
        Standardizer.fit(np.array([[1e300], [-1e300]]))


def test_a_limit_survives_json():
    scale = Standardizer.fit(X)
    again = Standardizer.from_dict(scale.to_dict())
    np.testing.assert_array_equal(scale.limit, again.limit)
    assert "limit" not in Standardizer(np.zeros(2), np.ones(2)).to_dict()
