"""Missing entries that depend on what is observed: the members are judged for what is missing."""

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")

from rvi_fast.data import ColumnTransform
from rvi_fast.sklearn import RelayImputer
from rvi_fast.sklearn.bends import bends_help
from rvi_fast.sklearn.blend import blend_weights
from rvi_fast.sklearn.entries import HeldOutEntries

SMALL = {"latent_dim": 4, "hidden": (16,), "groups": (8,), "epochs": 20, "random_state": 0}


def clusters_and_lines(seed, rows=400):
    """Five whole columns in clusters, which trees find, and three linear ones that miss much."""
    generator = np.random.default_rng(seed)
    centres = 3 * generator.normal(size=(6, 5))
    inputs = centres[generator.integers(0, 6, rows)] + 0.3 * generator.normal(size=(rows, 5))
    lines = inputs @ generator.normal(size=(5, 3)) + 0.3 * generator.normal(size=(rows, 3))
    x = np.hstack([inputs, lines])
    x = (x - x.mean(0)) / x.std(0)
    odds = 1 / (1 + np.exp(-2 * x[:, :5] @ generator.random((5, 3))))
    hidden = np.zeros(x.shape, bool)
    hidden[:, 5:] = generator.random((rows, 3)) < 0.5 * odds / odds.mean(0)
    return x, hidden


def error(filled, x, hidden):
    return np.sqrt(np.mean((filled - x)[hidden] ** 2))


@pytest.mark.parametrize("seed", [1, 2])
def test_missing_at_random_the_blend_is_hardly_worse_than_its_linear_member(seed):
    x, hidden = clusters_and_lines(seed)
    table = np.where(hidden, np.nan, x)
    imputer = RelayImputer(**SMALL).fit(table)
    linear = imputer.blend_.predicted(imputer._rows(table, hidden))[0]
    of_linear = error(imputer._in_data(linear), x, hidden)
    # with entries drawn alike from all columns as judges it was 2.0 and 4.1 times as much
    assert error(imputer.transform(table), x, hidden) <= 1.25 * of_linear


def test_entries_of_columns_weigh_as_much_as_these_miss():
    rows = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    rows[:100, 1] = rows[:200, 2] = np.nan
    entries = HeldOutEntries.drawn(rows, 0)
    weights = np.bincount(entries.column, entries.weight, 4)
    np.testing.assert_allclose(weights / weights.sum(), [0, 1 / 3, 2 / 3, 0], atol=1e-12)
    # a third of n entries and two thirds of m judge as well as 1 / (1/9/n + 4/9/m) alike do
    whole, first, second, other = np.bincount(entries.column)
    # nor are many of them drawn where nothing is missing
    assert max(whole, other) < 0.25 * min(first / 300, second / 200) * 400
    np.testing.assert_allclose(weights.sum(), 9 / (1 / first + 4 / second))
    assert entries.mean(np.where(entries.column == 2, 3.0, 0.0)) == pytest.approx(2.0)
    # of a column that is nearly empty few entries do not decide alone, though it misses 91 % of all
    rows[:, 1], rows[:5, 2], rows[5:, 2] = 0.0, 1.0, np.nan
    rows[::10, 1] = np.nan
    entries = HeldOutEntries.drawn(rows, 0)
    assert 1 <= (entries.column == 2).sum() <= 2
    assert entries.weight[entries.column == 2].sum() < 0.75 * entries.weight.sum()


def test_where_columns_miss_as_much_as_each_other_entries_weigh_alike():
    for seed in range(5):
        generator = np.random.default_rng(seed)
        rows = generator.normal(size=(500, 10))
        assert HeldOutEntries.drawn(rows, 0).weight is None
        rows[generator.random(rows.shape) < 0.3] = np.nan
        alike = HeldOutEntries.drawn(rows, 0)
        assert alike.weight is None
        assert np.ptp(np.bincount(alike.column)) < 12
        # nor does a column tell anything of which nothing is there
        rows[:, 4] = np.nan
        assert HeldOutEntries.drawn(rows, 0).weight is None


def test_weights_of_the_table_are_those_of_its_weighted_entries():
    generator = np.random.default_rng(0)
    truth, column = generator.normal(size=3000), np.arange(3000) % 3
    # the first member is right in the first column, the second in the others
    off = np.where(column == 0, [[0.1], [1.0]], [[1.0], [0.1]])
    predictions = truth + off * generator.normal(size=(2, 3000))
    counted = np.where(column == 0, 1.0, 0.0)
    # the last column has no entries of its own: it has the weights of the table
    assert blend_weights(predictions, truth, column, 4)[0, 3] < 0.4
    assert blend_weights(predictions, truth, column, 4, weight=counted)[0, 3] > 0.95
    twice = blend_weights(predictions, truth, column, 4, weight=np.full(3000, 2.0))
    doubled = blend_weights(
        *(np.repeat(own, 2, -1) for own in (predictions, truth, column)),
        4,
        weight=np.ones(6000),
    )
    np.testing.assert_allclose(twice[:, 3], doubled[:, 3], atol=1e-6)


def proportional(seed, rows=600):
    """Skewed counts and sums, exactly in proportion; sums are hidden where a third column is large."""
    generator = np.random.default_rng(seed)
    counts = np.ceil(np.exp(1.2 + 0.95 * generator.normal(size=rows)))
    seen = counts * np.exp(0.3 * generator.normal(size=rows))
    x = np.column_stack([seen, counts, 250 * counts, generator.normal(size=rows)])
    hidden = np.zeros(x.shape, bool)
    hidden[:, 2] = generator.random(rows) < np.argsort(np.argsort(seen)) / rows * 0.9
    return x, hidden


def test_columns_are_not_bent_apart_where_what_is_left_of_one_has_another_shape():
    x, hidden = proportional(2)
    table = np.where(hidden, np.nan, x)
    assert len(set(ColumnTransform.fit(table, ~hidden).kinds[1:3])) == 2
    imputer = RelayImputer(**SMALL, members=("linear", "relay")).fit(table)
    assert imputer.column_transform_.kinds == ["none"] * 4
    # sums follow from counts; with the columns bent apart the error is that of the spread
    assert error(imputer.transform(table), x, hidden) <= 0.05 * x[:, 2].std()
    # of entries that are missing completely at random "auto" asks nothing else
    everywhere = np.random.default_rng(0).random(x.shape) < 0.2
    assert bends_help(x, everywhere, np.ones(4, bool), 0)
