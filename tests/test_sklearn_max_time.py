"""A fit that has a limit ends within it, with fitted members, and says which it had to leave out."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")

from sklearn.exceptions import ConvergenceWarning

from rvi_fast.models import ppca
from rvi_fast.sklearn import RelayEmbedder, RelayImputer, deadline, forest
from rvi_fast.sklearn.blended import BlendedEstimator
from rvi_fast.sklearn.stopping import HeldOutStopping

SMALL = {"latent_dim": 4, "hidden": (16,), "groups": (8,), "random_state": 0}


class Clock:
    """Seconds that go by as work is done, and at no other time."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    """Of a machine on which a linear model takes 1 s, an epoch 1 s, and trees of a column 2 s."""
    own = Clock()
    monkeypatch.setattr(deadline, "clock", own)

    def taking(owner, name, seconds):
        method = getattr(owner, name)

        def slow(*arguments, **options):
            own.seconds += seconds
            return method(*arguments, **options)

        monkeypatch.setattr(owner, name, slow)

    taking(BlendedEstimator, "_blend_of", 1.0)
    taking(forest, "_grown", 2.0)
    for callback in (HeldOutStopping, deadline.Deadline):
        taking(callback, "__call__", 1.0)
    return own


def table(rows=150):
    generator = np.random.default_rng(7)
    x = generator.normal(size=(rows, 2)) @ generator.normal(size=(2, 5))
    x += 0.3 * generator.normal(size=x.shape)
    return np.where(generator.random(x.shape) < 0.25, np.nan, x)


def fitted(clock, seconds, **options):
    imputer = RelayImputer(**SMALL | options, max_time=seconds)
    with pytest.warns(ConvergenceWarning, match="max_time") as caught:
        imputer.fit(table())
    told = [str(own.message) for own in caught if own.category is ConvergenceWarning]
    assert len(told) == 1
    return imputer, told[0]


def check_that_it_fills(imputer):
    x = table()
    filled = imputer.transform(x)
    np.testing.assert_array_equal(filled[~np.isnan(x)], x[~np.isnan(x)])
    holes = np.isnan(x)
    means = np.where(holes, np.nanmean(x, 0), x)
    assert np.isfinite(filled).all()
    assert (filled != means)[holes].all()
    low, high = imputer.impute_interval(x)
    assert (low <= high).all()
    assert imputer.sample(x, 2, random_state=0).shape == (2, *x.shape)
    again = pickle.loads(pickle.dumps(imputer))
    np.testing.assert_array_equal(again.transform(x), filled)


def test_a_limit_that_is_not_reached_changes_nothing(clock, recwarn):
    x = table()
    free = RelayImputer(**SMALL, epochs=4).fit(x)
    large = RelayImputer(**SMALL, epochs=4, max_time=1e4).fit(x)
    assert not [own for own in recwarn if own.category is ConvergenceWarning]
    assert free.blend_.names == large.blend_.names == ("linear", "relay", "forest")
    np.testing.assert_array_equal(free.transform(x), large.transform(x))


def test_the_linear_model_alone_stays_when_it_has_taken_all_the_time(clock):
    imputer, told = fitted(clock, 0.5)
    assert "left out: relay, forest" in told
    assert imputer.blend_.names == ("linear",)
    np.testing.assert_array_equal(imputer.blend_.weights, np.ones((1, 5)))
    check_that_it_fills(imputer)
    assert imputer.held_out_error_ < 1
    assert set(imputer.held_out_errors_) == {"linear", "blend"}
    assert imputer.history_.epochs == 0
    # the linear model's own conditional means
    x = table()
    mean, std = np.nanmean(x, 0), np.nanstd(x, 0)
    rows = (x - mean) / std
    expected = ppca(5).fit(rows).impute(rows).numpy() * std + mean
    wrong = np.abs(imputer.transform(x) - expected)[np.isnan(x)]
    # it was fitted without the held-out entries
    assert 0 < wrong.mean() < 0.3 * np.nanstd(x)


def test_trees_are_left_out_before_the_relay_model(clock):
    imputer, told = fitted(clock, 12.0, epochs=1)
    assert "left out: forest" in told
    assert imputer.blend_.names == ("linear", "relay")
    assert imputer.blend_.weights.shape == (2, 5)
    # there was time for the others, on all entries
    assert "have not learned" not in told
    assert clock.seconds < 12.0
    check_that_it_fills(imputer)


def test_training_stops_where_its_share_of_the_time_ends_with_the_best_so_far(clock):
    imputer, told = fitted(clock, 60.0)
    assert "the relay model has had" in told
    assert 1 <= imputer.history_.epochs < 24
    assert clock.seconds < 61.0
    check_that_it_fills(imputer)


def test_members_that_have_not_seen_all_entries_stay_where_time_ends_in_the_second_training(
    clock, monkeypatch
):
    again = BlendedEstimator._again

    def late(self, blend, *others):
        clock.seconds += 1000.0
        self.first = (blend, self.model_)
        # what was thought to fit in does not
        return again(self, blend, *others)

    monkeypatch.setattr(BlendedEstimator, "_again", late)
    imputer, told = fitted(clock, 500.0, epochs=3)
    assert "have not learned from the entries that were held out" in told
    assert (imputer.blend_, imputer.model_) == imputer.first
    assert imputer.blend_.names == ("linear", "relay", "forest")
    del imputer.first
    check_that_it_fills(imputer)


@pytest.mark.parametrize(
    "estimator",
    [RelayImputer(**SMALL, members=("relay",), max_time=5.5), RelayEmbedder(**SMALL, max_time=5.5)],
)
def test_a_relay_model_alone_is_trained_until_the_time_is_over(clock, estimator):
    with pytest.warns(ConvergenceWarning, match="has had 5 of 400 epochs"):
        estimator.fit(table())
    assert estimator.history_.epochs == 5
    assert np.isfinite(estimator.transform(table())).all()
    assert clock.seconds == 5.0


@pytest.mark.parametrize("kind", [RelayImputer, RelayEmbedder])
@pytest.mark.parametrize("seconds", [0, -1.0, np.nan, np.inf, "soon", True])
def test_a_limit_that_is_none_is_refused(kind, seconds):
    with pytest.raises((ValueError, TypeError), match="max_time: expected"):
        kind(**SMALL, max_time=seconds).fit(table())
