"""Errors that an estimator reports: by column in its units, and as a score that searches go by."""

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")

from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import check_random_state

from rvi_fast.data.withheld import withheld
from rvi_fast.likelihoods import make
from rvi_fast.sklearn import RelayEmbedder, RelayImputer
from rvi_fast.sklearn.entries import HeldOutEntries
from rvi_fast.sklearn.errors import column_errors, spreads_of

SMALL = {"latent_dim": 3, "hidden": (8,), "groups": (4,), "epochs": 10, "random_state": 0}


def lowrank(rows=400):
    generator = np.random.default_rng(7)
    x = generator.normal(size=(rows, 2)) @ generator.normal(size=(2, 5))
    return (x + 0.2 * generator.normal(size=x.shape)) * [1, 10, 0.1, 1, 1] + [0, 50, 0, 0, 7]


def holed(x, share=0.2):
    hidden = np.random.default_rng(100).random(x.shape) < share
    return np.where(hidden, np.nan, x), hidden


def people(rows=400):
    generator = np.random.default_rng(0)
    health = generator.normal(size=rows)
    columns = (
        70 - 8 * health + generator.normal(0, 4, rows),
        health + 0.3 * generator.normal(size=rows) < 0,
        np.digitize(health + 0.2 * generator.normal(size=rows), (-0.5, 0.5)),
    )
    return np.column_stack(columns).astype(float)


LAWS = ["gaussian", "bernoulli", ("categorical", 3)]


def test_errors_of_columns_are_those_of_held_out_entries_in_the_units_of_x():
    table, _ = holed(lowrank(200))
    imputer = RelayImputer(**SMALL).fit(table)
    # the entries that fit has drawn, and what the means of the others are off by there
    rows = imputer._rows(table, np.isnan(table))
    drawn = HeldOutEntries.drawn(rows, int(check_random_state(0).randint(2**31 - 1)))
    wrong = (drawn.truth - np.nanmean(drawn.without(rows), 0)[drawn.column]) ** 2
    of_means = np.sqrt(np.bincount(drawn.column, wrong) / np.bincount(drawn.column))
    expected = imputer.held_out_errors_["blend"] * of_means * imputer.standardizer_.std
    np.testing.assert_allclose(imputer.column_errors_, expected, rtol=1e-3)
    # what is filled in is bounded, and so are errors
    bounded = RelayImputer(**SMALL, max_value=-1000.0).fit(table)
    assert (bounded.column_errors_ > 900).all()


def test_errors_of_classes_are_shares_that_are_wrong():
    x = people(300)
    table, hidden = holed(x)
    imputer = RelayImputer(**SMALL, likelihood=LAWS).fit(table)
    wrong = np.abs(imputer.transform(table) - x) > 0.5
    found = [wrong[hidden[:, column], column].mean() for column in (1, 2)]
    # 3 standard errors of about 60 entries each
    np.testing.assert_allclose(imputer.column_errors_[1:], found, atol=0.28)
    # of three classes the most frequent one is wrong in more than half of all
    assert imputer.column_errors_[2] < 0.5
    assert 3 < imputer.column_errors_[0] < 9


def test_errors_of_a_frame_have_names_whole_numbers_and_days():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    size = np.random.default_rng(0).normal(100, 20, 300)
    hours = pandas.to_timedelta((size * 72).astype(int), "h")
    frame = pandas.DataFrame(
        {
            "size": size,
            "rooms": pandas.array((size / 25).round(), dtype="Int64"),
            "large": pandas.array(size > 100, dtype="boolean"),
            "sold": pandas.Timestamp("2024-01-01") + hours,
        }
    )
    table = frame.mask(np.random.default_rng(1).random(frame.shape) < 0.2)
    imputer = RelayImputer(**SMALL).fit(table)
    errors = imputer.column_errors_
    assert list(errors) == ["size", "rooms", "large", "sold"]
    assert 0 <= errors["large"] < 0.4
    # 60 days are their standard deviation, 20 that of sizes
    assert 2.5 < errors["sold"] < 45
    assert 0.5 < errors["size"] < 15
    assert errors["rooms"] < 0.7
    assert imputer.score(table) > -0.9


def test_columns_without_held_out_entries_and_relay_models_alone_have_no_error():
    table, _ = holed(lowrank()[:100])
    table[:, 2] = np.nan
    with pytest.warns(UserWarning, match="dropped"):
        imputer = RelayImputer(**SMALL).fit(table)
    assert np.isnan(imputer.column_errors_).tolist() == [False, False, True, False, False]
    imputer.set_params(members=("relay",), keep_empty_features=True).fit(table)
    assert np.isnan(imputer.column_errors_).all()
    assert not hasattr(imputer, "held_out_errors_")


def test_column_errors_are_root_mean_squares_and_shares():
    column, classes = np.array([0, 0, 1, 1, 1]), np.array([False, True, False])
    truth, found = np.array([1.0, 2, 0, 1, 2]), np.array([4.0, 6, 1, 1, 0])
    errors = column_errors(found, truth, column, classes)
    np.testing.assert_allclose(errors, [12.5**0.5, 2 / 3, np.nan])


def test_spreads_are_what_means_and_most_frequent_classes_are_off_by():
    x = np.array([[1.0, 0], [3, 1], [5, 1], [9, 1]])
    missing = np.zeros(x.shape, bool)
    missing[3, 0] = True
    spreads = spreads_of(x, missing, make(["gaussian", "bernoulli"], 2))
    np.testing.assert_allclose(spreads, [(8 / 3) ** 0.5, 0.5])


@pytest.mark.parametrize("kind", [RelayImputer, RelayEmbedder])
def test_the_score_is_minus_the_error_in_standard_deviations(kind):
    x = lowrank()
    table, _ = holed(x)
    estimator = kind(**SMALL | {"epochs": 100}).fit(table[:300])
    score = estimator.score(table[300:])
    assert score == estimator.score(table[300:])
    assert -0.75 < score < -0.1
    # of a model that knows nothing about these rows
    strange = np.random.default_rng(5).permuted(table[300:], axis=0)
    assert estimator.score(strange) < -0.9


def test_the_score_of_an_imputer_is_that_of_entries_hidden_by_hand(monkeypatch):
    table, _ = holed(lowrank())
    imputer = RelayImputer(**SMALL).fit(table[:200])
    shown, hidden = table[200:], []

    def recorded(*given):
        hidden.append(withheld(*given))
        return hidden[0]

    monkeypatch.setattr("rvi_fast.sklearn.errors.withheld", recorded)
    score = imputer.score(shown)
    share = hidden[0].sum(0) / (~np.isnan(shown)).sum(0)
    np.testing.assert_allclose(share, 0.1, atol=0.01)
    filled = imputer.transform(np.where(hidden[0], np.nan, shown))
    wrong = ((filled - shown) / np.nanstd(table[:200], 0))[hidden[0]]
    assert score == pytest.approx(-np.sqrt(np.mean(wrong**2)), rel=1e-4)


def test_searches_and_cross_validation_need_no_scorer():
    table, _ = holed(lowrank(240))
    options = SMALL | {"steps": 30}
    grid = {"members": [("relay",), ("linear", "relay")], "epochs": [1]}
    search = GridSearchCV(RelayImputer(**options), grid, cv=2).fit(table)
    assert search.best_params_["members"] == ("linear", "relay")
    assert search.cv_results_["mean_test_score"].max() < 0
    scores = cross_val_score(RelayEmbedder(**options), table, cv=2)
    assert np.isfinite(scores).all()


def test_what_cannot_be_scored_is_refused():
    table, _ = holed(lowrank()[:60])
    imputer = RelayImputer(**SMALL).fit(table)
    alone = np.full((3, 5), np.nan)
    alone[:, 1] = 50.0
    with pytest.raises(ValueError, match="two observed entries"):
        imputer.score(alone)
    del imputer.__dict__["_spreads"]
    with pytest.raises(ValueError, match="score: expected an estimator fitted by this version"):
        imputer.score(table)
