"""What `RelayImputer` tells of entries that it held out."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is missing: the extra sklearn")

from rvi_fast.sklearn import RelayImputer, entries

SMALL = {"latent_dim": 2, "hidden": (8,), "groups": (4,), "epochs": 4, "steps": 3}


def table(rows=200):
    generator = np.random.default_rng(7)
    x = generator.normal(size=(rows, 2)) @ generator.normal(size=(2, 5))
    x = 10 + 3 * (x + 0.3 * generator.normal(size=x.shape))
    x[generator.random(x.shape) < 0.2] = np.nan
    return x


def of_column(told, column):
    own = told["column"] == column
    return {name: values[own] for name, values in told.items()}


def test_predictions_of_held_out_entries_have_the_errors_that_are_told_of_them():
    x = table()
    imputer = RelayImputer(**SMALL, random_state=0).fit(x)
    told = imputer.held_out_predictions_
    np.testing.assert_allclose(told["truth"], x[told["row"], told["column"]], rtol=1e-5)
    assert len(np.unique(told["row"] * 5 + told["column"])) == len(told["row"])
    rest = x.copy()
    rest[told["row"], told["column"]] = np.nan
    for column in range(5):
        own = of_column(told, column)
        of_mean = np.mean((own["truth"] - np.nanmean(rest[:, column])) ** 2)
        for name in ("linear", "relay", "forest", "blend"):
            found = np.sqrt(np.mean((own["truth"] - own[name]) ** 2) / of_mean)
            assert found == pytest.approx(imputer.held_out_errors_[name][column], rel=1e-4)


def test_what_is_held_out_has_no_part_in_what_is_predicted_there():
    x = table()
    options = {**SMALL, "standardize": False, "column_transform": "none", "random_state": 0}
    told = RelayImputer(**options).fit(x).held_out_predictions_
    other = x.copy()
    other[told["row"], told["column"]] += 5.0
    again = RelayImputer(**options).fit(other).held_out_predictions_
    assert (again["row"] == told["row"]).all()
    np.testing.assert_allclose(again["truth"], told["truth"] + 5.0, rtol=1e-5)
    # weights, and when the training of the relay model stops, are chosen by them
    np.testing.assert_array_equal(again["linear"], told["linear"])


def test_of_codes_classes_and_counts_are_told_and_rows_are_those_of_the_table(monkeypatch):
    monkeypatch.setattr(entries, "_SHOWN", 10)
    generator = np.random.default_rng(0)
    health = generator.normal(size=300)
    smokes = (health + generator.normal(size=300) < 0).astype(float)
    group = np.digitize(health + 0.5 * generator.normal(size=300), (-0.5, 0.5)).astype(float)
    visits = generator.poisson(np.exp(1 - health)).astype(float)
    x = np.column_stack((70 - 8 * health, smokes, group, visits))
    x[generator.random(x.shape) < 0.2] = np.nan
    laws = ["gaussian", "bernoulli", ("categorical", 3), "poisson"]
    imputer = RelayImputer(**SMALL, likelihood=laws, subsample=150, random_state=0).fit(x)
    told = imputer.held_out_predictions_
    assert told["row"].max() >= 150
    np.testing.assert_allclose(told["truth"], x[told["row"], told["column"]], rtol=1e-4, atol=1e-4)
    for column, allowed in ((1, {0.0, 1.0}), (2, {0.0, 1.0, 2.0})):
        own = of_column(told, column)
        assert set(own["blend"]) | set(own["linear"]) <= allowed
    assert (of_column(told, 3)["blend"] >= 0).all()


def test_what_is_pickled_holds_no_entry_of_the_table():
    imputer = RelayImputer(**SMALL, random_state=0).fit(table())
    assert imputer.held_out_predictions_ is not None
    again = pickle.loads(pickle.dumps(imputer))
    assert again.held_out_predictions_ is None
    assert again.blend_.looks == imputer.blend_.looks


def test_without_members_beside_the_relay_model_or_in_older_pickles_there_are_none():
    imputer = RelayImputer(**SMALL, members=("relay",), random_state=0)
    assert imputer.held_out_predictions_ is None
    assert imputer.fit(table()).held_out_predictions_ is None
    imputer = RelayImputer(**SMALL, random_state=0).fit(table())
    del imputer.blend_.__dict__["looks"]
    older = pickle.loads(pickle.dumps(imputer))
    assert older.held_out_predictions_ is None
    assert not older.blend_.looks
    assert older.transform(table()).shape == (200, 5)
