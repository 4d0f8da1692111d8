import numpy as np
import pytest

from rvi_fast.data import mcar


def test_the_mask_depends_on_nothing_but_shape_rate_and_seed():
    mask = mcar((1500, 1000), 0.3, seed=5)
    np.testing.assert_array_equal(mask, mcar((1500, 1000), 0.3, seed=5))
    assert (mask != mcar((1500, 1000), 0.3, seed=6)).any()
    # pinned: results of a paper must not move with the library's version
    assert mcar((2, 4), 0.5, seed=1).tolist() == [[False, False, False, True], [False] * 4]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_entries_go_missing_independently_at_the_rate(rate):
    missing = ~mcar((2000, 1000), rate)
    assert missing.dtype == bool
    bound = 5 * np.sqrt(rate * (1 - rate))  # five standard errors
    assert abs(missing.mean() - rate) <= bound / np.sqrt(missing.size)
    assert np.abs(missing.mean(axis=0) - rate).max() <= bound / np.sqrt(2000)
    for pair in (missing[1:] & missing[:-1], missing[:, 1:] & missing[:, :-1]):
        assert abs(pair.mean() - rate**2) <= 5 * rate / np.sqrt(pair.size)


def test_a_higher_rate_only_adds_missing_entries():
    assert (mcar(10_000, 0.3) >= mcar(10_000, 0.6)).all()


@pytest.mark.parametrize("shape", [0, 7, (0, 3), (2, 3, 4), ()])
def test_a_mask_has_any_shape(shape):
    assert mcar(shape, 0.5).shape == np.empty(shape).shape


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match="rate: expected 0 <= rate < 1"):
        mcar((2, 2), rate)
