"""The artificial set: the documented law, the same numbers everywhere."""

import sys

import numpy as np
import pytest

from rvi_fast.data import artificial, load_data
from rvi_fast.data.artificial import DISTRIBUTIONS, _uniforms


def test_the_numbers_are_those_written_down():
    expected = [
        [-0.428763210773468, 0.6184201240539551, 1.26265549659729],
        [-0.7080647945404053, -0.9415839314460754, -0.17954300343990326],
        [0.3956856429576874, 0.9368659853935242, -0.6028984785079956],
    ]
    values = artificial(1000)[[0, 7, 999]][:, [0, 150, 299]]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_have_the_moments_and_quantiles_of_their_distribution(name):
    stats = pytest.importorskip("scipy.stats")
    law = {
        "normal": stats.norm(), "uniform": stats.uniform(), "beta": stats.beta(2, 5),
        "exponential": stats.expon(), "gamma": stats.gamma(3), "gumbel": stats.gumbel_r(),
        "laplace": stats.laplace(), "logistic": stats.logistic(), "lognormal": stats.lognorm(0.5),
        "rayleigh": stats.rayleigh(),
    }[name]  # fmt: skip
    draw, mean, variance = DISTRIBUTIONS[name]
    assert (mean, variance) == pytest.approx(law.stats("mv"))
    draws = draw(_uniforms(5, 0, 0, 6, 20_000).reshape(-1, 6).T)
    assert stats.kstest(draws, law.cdf).pvalue > 1e-4


def test_rows_depend_on_number_and_seed_alone(monkeypatch):
    rows = artificial(50, seed=3)
    monkeypatch.setattr(sys.modules["rvi_fast.data.artificial"], "_CHUNK", 7)
    # products of matrices of other shapes may sum in another order
    np.testing.assert_allclose(artificial(50, seed=3), rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(artificial(9, seed=3, first=41), rows[41:], rtol=1e-5, atol=1e-6)
    assert (artificial(50, seed=4) != rows).all()


def test_the_features_are_dense_mixtures_of_thirty_sources():
    rows = artificial(2000)
    assert rows.dtype == np.float32
    assert np.linalg.matrix_rank(rows, tol=1e-2) == 30
    assert abs(rows.mean()) < 0.01
    assert abs(rows.std() - 1) < 0.02
    assert (rows.std(0) > 0.3).all()


def test_the_named_set_has_disjoint_parts_of_one_law():
    dataset = load_data("artificial")
    assert (dataset.train.shape, dataset.test.shape) == ((10_000, 300), (2_000, 300))
    np.testing.assert_allclose(dataset.test[:3], artificial(3, first=10_000), rtol=1e-5, atol=1e-6)
    assert not {*dataset.train[:, 0].tolist()} & {*dataset.test[:, 0].tolist()} - {0.0}


@pytest.mark.parametrize(
    ("options", "name"), [({"num_rows": 0}, "num_rows"), ({"first": -1}, "first")]
)
def test_arguments_out_of_range_are_refused(options, name):
    with pytest.raises(ValueError, match=f"{name}: expected an integer"):
        artificial(**options)
