"""The members of the imputer: judged by entries nobody has seen, never worse than the linear one."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")

import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris

from rvi_fast import likelihoods
from rvi_fast.models import ppca
from rvi_fast.sklearn import RelayImputer
from rvi_fast.sklearn.blend import blend_weights, crossed
from rvi_fast.sklearn.calibration import Residuals
from rvi_fast.sklearn.entries import HeldOutEntries, some_rows
from rvi_fast.sklearn.forest import ColumnForest

SMALL = {"latent_dim": 4, "hidden": (16,), "groups": (8,), "epochs": 20, "random_state": 0}


class Halves(likelihoods.Bernoulli):
    """A law that does not say of which outputs a probability comes."""

    def outputs_of(self, expected):
        raise ValueError("none")


def lowrank(rows=300):
    generator = np.random.default_rng(7)
    x = generator.normal(size=(rows, 3)) @ generator.normal(size=(3, 8))
    return x + 0.3 * generator.normal(size=x.shape)


def bent(rows=500):
    generator = np.random.default_rng(9)
    inner = generator.uniform(-2, 2, (rows, 2)) @ generator.normal(size=(2, 6))
    return np.sin(inner + generator.normal(size=6)) + 0.1 * generator.normal(size=(rows, 6))


TABLES = {
    "iris": lambda: load_iris().data,
    "diabetes": lambda: load_diabetes().data * 1000,
    "lowrank": lowrank,
    "bent": bent,
}


def holed(x, seed=100):
    hidden = np.random.default_rng(seed).random(x.shape) < 0.3
    return np.where(hidden, np.nan, x), hidden


def error(filled, x, hidden):
    return np.sqrt(np.mean(((filled - x) / x.std(0))[hidden] ** 2))


@pytest.mark.parametrize("name", TABLES)
def test_imputer_is_never_worse_than_the_linear_model(name):
    x = TABLES[name]()
    table, hidden = holed(x)
    mean, std = np.nanmean(table, 0), np.nanstd(table, 0)
    linear = ppca(x.shape[1]).fit((table - mean) / std)
    of_linear = error(linear.impute((table - mean) / std).numpy() * std + mean, x, hidden)
    # a relay model that is hardly trained is no help, and no harm
    for epochs in (1, 40):
        imputer = RelayImputer(**SMALL | {"epochs": epochs}).fit(table)
        assert error(imputer.transform(table), x, hidden) <= 1.02 * of_linear


def test_trees_find_what_a_line_does_not():
    generator = np.random.default_rng(8)
    centres = 1.5 * generator.normal(size=(8, 10))
    x = centres[generator.integers(0, 8, 500)] + 0.5 * generator.normal(size=(500, 10))
    table, hidden = holed(x)
    # a relay model that has learned nothing yet
    options, found = SMALL | {"epochs": 1}, {}
    for members in (("linear", "relay"), ("linear", "relay", "forest")):
        imputer = RelayImputer(**options, members=members)
        found[members] = error(imputer.fit_transform(table), x, hidden)
    assert found["linear", "relay", "forest"] < 0.9 * found["linear", "relay"]


def test_held_out_error_is_that_of_new_entries():
    x = bent()
    table, hidden = holed(x)
    imputer = RelayImputer(random_state=0).fit(table)
    of_means = error(np.where(hidden, np.nanmean(table, 0), x), x, hidden)
    found = error(imputer.transform(table), x, hidden) / of_means
    # what holds out entries learns from fewer: it does not promise more than there is
    assert found < imputer.held_out_error_ * 1.05
    assert found > imputer.held_out_error_ * 0.7
    errors = imputer.held_out_errors_
    assert set(errors) == {"linear", "relay", "forest", "blend"}
    assert errors["blend"].shape == (6,)
    assert errors["forest"].mean() < errors["linear"].mean()


def test_entries_that_are_held_out_are_shared_out_and_leave_each_row_something():
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    rows[np.random.default_rng(1).random(rows.shape) < 0.4] = np.nan
    rows[3] = np.nan
    rows[3, 2], rows[5] = 1.0, np.nan
    entries = HeldOutEntries.drawn(rows, 0)
    shown = entries.without(rows)
    lost = np.isnan(shown) & ~np.isnan(rows)
    assert lost.sum() == len(entries.truth)
    np.testing.assert_array_equal(rows[entries.row, entries.column], entries.truth)
    share = lost.sum() / (~np.isnan(rows)).sum()
    assert 0.15 < share <= 0.21
    assert (lost.sum(0) >= 1).all()
    full = ~np.isnan(rows).all(1)
    assert (~np.isnan(shown[full]).all(1)).all()
    assert HeldOutEntries.drawn(rows[:4], 0) is None
    large = np.zeros((9000, 3), np.float32)
    assert len(HeldOutEntries.drawn(large, 0).rows) <= 4096


def test_weights_are_those_of_the_best_mixture():
    generator = np.random.default_rng(0)
    truth, column = generator.normal(size=4000), np.arange(4000) % 2
    noise = generator.normal(size=(2, 4000)) * np.array([[1.0], [2.0]])
    weights = blend_weights(truth + noise, truth, column, 2)
    # in inverse proportion to the variances
    np.testing.assert_allclose(weights, [[0.8, 0.8], [0.2, 0.2]], atol=0.04)
    np.testing.assert_allclose(weights.sum(0), 1.0)
    apart = np.where(column == 0, [[0.0], [3.0]], [[3.0], [0.0]])
    weights = blend_weights(truth + noise * 0.1 + apart, truth, column, 2)
    assert weights[0, 0] > 0.9
    assert weights[1, 1] > 0.9
    few = blend_weights((truth + noise * 0.1 + apart)[:, :6], truth[:6], column[:6], 2)
    assert abs(few[0, 0] - few[0, 1]) < 0.2


def test_weights_that_judge_an_entry_have_not_seen_it():
    generator = np.random.default_rng(0)
    truth, column = generator.normal(size=30), np.zeros(30, int)
    predictions = generator.normal(size=(20, 30))
    wrong = crossed(predictions, truth, column, 1) - truth
    seen = blend_weights(predictions, truth, column, 1)[:, column] * predictions
    assert np.mean(wrong**2) > np.mean((seen.sum(0) - truth) ** 2)


def test_trees_are_grown_from_the_rows_and_columns_that_are_observed():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 3)).astype(np.float32)
    x[:, 2] = np.sign(x[:, 0]) * np.abs(x[:, 1])
    observed = np.ones(x.shape, bool)
    observed[:200, 2] = False
    spoilt = x.copy()
    spoilt[:200, 2] = 100.0
    forest = ColumnForest(0).fit(spoilt, observed)
    found = forest.complete(spoilt, ~observed)
    assert np.sqrt(np.mean((found - x)[:200, 2] ** 2)) < 0.7
    np.testing.assert_array_equal(found[200:], x[200:])
    assert not ColumnForest.suits(10_000, 200)


def test_pickled_trees_hold_what_they_ask_to_predict_and_predict_the_same_bits():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 4)).astype(np.float32)
    # column 0 and two codes of a class: trees of one output and of two
    x[:, 2] = x[:, 1] > 0
    x[:, 3] = 1 - x[:, 2]
    owner, observed = np.array([0, 1, 2, 2]), np.ones((600, 3), bool)
    forest = ColumnForest(0).fit(x, observed, owner)
    content = pickle.dumps(forest)
    missing = generator.random((600, 3)) < 0.5
    found = forest.complete(x, missing, owner)
    again = pickle.loads(content)
    assert again.complete(x, missing, owner).tobytes() == found.tobytes()
    assert (
        pickle.loads(pickle.dumps(again)).complete(x, missing, owner).tobytes() == found.tobytes()
    )
    # what earlier versions have pickled: the trees themselves
    old = object.__new__(ColumnForest)
    old.__setstate__({"seed": 0, "passes": forest.passes})
    assert old.complete(x, missing, owner).tobytes() == found.tobytes()
    trees = [tree for own in forest.passes for grown in own.values() for tree in grown]
    # two numbers of 4 bytes for a node, 13 for a split, 8 for each value of a leaf; and names
    needed = sum(
        8 * tree.node_count
        + 13 * (tree.node_count - tree.n_leaves)
        + 8 * tree.n_outputs * tree.n_leaves
        for tree in trees
    )
    assert len(content) < needed + 1200 * len(trees)
    assert len(content) < 0.4 * len(pickle.dumps(forest.passes))


@pytest.mark.parametrize("name", ["diabetes", "lowrank", "bent"])
def test_intervals_and_draws_hold_what_they_promise(name):
    x = TABLES[name]()
    table, hidden = holed(x)
    new = np.arange(len(x)) % 3 == 0
    imputer = RelayImputer(**SMALL).fit(table[~new])
    truth, own = x[new], hidden[new]
    draws = imputer.sample(table[new], 100, random_state=0)
    for coverage in (0.5, 0.9):
        low, high = imputer.impute_interval(table[new], coverage)
        assert (low <= high).all()
        np.testing.assert_array_equal(low[~own], truth[~own])
        held = ((low <= truth) & (truth <= high))[own].mean()
        shares = [0.5 - coverage / 2, 0.5 + coverage / 2]
        bottom, top = np.quantile(draws, shares, axis=0)
        of_draws = ((bottom <= truth) & (truth <= top))[own].mean()
        # 3 standard errors of what was scored, and as many of what was held out
        margin = 3 * np.sqrt(coverage * (1 - coverage) * (1 / own.sum() + 1 / 200))
        assert held == pytest.approx(coverage, abs=margin)
        assert of_draws == pytest.approx(coverage, abs=margin + 0.02)
    np.testing.assert_array_equal(
        draws[:, ~own], np.broadcast_to(truth[~own], draws[:, ~own].shape)
    )
    again = imputer.sample(table[new], 100, random_state=0)
    np.testing.assert_array_equal(draws, again)


def test_transform_fills_in_a_draw_where_it_is_asked_to():
    table, hidden = holed(lowrank()[:100])
    imputer = RelayImputer(**SMALL, sample_posterior=True).fit(table)
    drawn = imputer.transform(table)
    np.testing.assert_array_equal(drawn, imputer.transform(table))
    np.testing.assert_array_equal(drawn, imputer.sample(table, 1, random_state=0)[0])
    score = imputer.score(table)
    imputer.set_params(sample_posterior=False)
    assert imputer.score(table) == score
    filled = imputer.transform(table)
    np.testing.assert_array_equal(drawn[~hidden], table[~hidden])
    assert (drawn != filled)[hidden].all()
    imputer.set_params(sample_posterior=True, random_state=None)
    # by a seed of their own each time; two draws beyond the outermost residuals are the same
    assert (imputer.transform(table) != imputer.transform(table))[hidden].mean() > 0.9


def test_entries_of_a_row_are_drawn_together():
    generator = np.random.default_rng(0)
    x = np.repeat(generator.normal(size=(300, 1)), 4, 1) + 0.05 * generator.normal(size=(300, 4))
    table = np.where(generator.random(x.shape) < 0.2, np.nan, x)
    imputer = RelayImputer(**SMALL).fit(table)
    # nothing is known of two rows but that their entries are alike
    draws = imputer.sample(np.full((2, 4), np.nan), 200, random_state=0)
    assert np.corrcoef(draws[:, 0, 0], draws[:, 0, 1])[0, 1] > 0.9
    assert abs(np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]) < 0.3


def test_quantiles_of_a_column_are_its_own_where_it_has_entries():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(size=5000), 3 * generator.normal(size=5000), [9.0]])
    column = np.concatenate([np.zeros(5000, int), np.ones(5000, int), [2]])
    found = Residuals(values, column, 4)
    np.testing.assert_allclose(found.at(0.95)[:2], [1.645, 4.93], rtol=0.06)
    # of one entry and of none the table's
    assert found.at(0.95)[2:] == pytest.approx([3.7, 3.7], rel=0.3)
    assert (np.diff(found.quantiles) >= 0).all()


def test_a_row_is_given_the_same_whatever_stands_beside_it():
    table, _ = holed(lowrank())
    imputer = RelayImputer(**SMALL).fit(table)
    whole = imputer.transform(table)
    rows = np.r_[40:20:-3, 7]
    np.testing.assert_allclose(imputer.transform(table[rows]), whole[rows], rtol=1e-4, atol=1e-4)
    low, high = imputer.impute_interval(table)
    few = imputer.impute_interval(table[rows])
    np.testing.assert_allclose(few[0], low[rows], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(few[1], high[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson"])
def test_without_members_beside_it_the_relay_model_draws(likelihood):
    generator = np.random.default_rng(0)
    rate = np.exp(1 + generator.normal(size=(200, 1)) * [1.0, 0.5, 0.8])
    x = generator.poisson(rate).astype(float)
    table, hidden = holed(x)
    imputer = RelayImputer(**SMALL, likelihood=likelihood, members=("relay",)).fit(table)
    assert imputer.blend_ is None
    draws = imputer.sample(table, 20, random_state=1)
    assert (draws.std(0)[hidden] > 0).mean() > 0.9
    low, high = imputer.impute_interval(table, 0.9)
    assert 0.6 < ((low <= x) & (x <= high))[hidden].mean() <= 1
    if likelihood == "poisson":
        assert (draws % 1 == 0).all()


def test_bounds_constants_and_dropped_columns_hold_for_intervals_and_draws():
    x = lowrank()[:100]
    table, hidden = holed(x)
    table[:, 1], table[:, 4] = np.nan, np.where(hidden[:, 4], np.nan, 7.0)
    with pytest.warns(UserWarning, match="dropped"):
        imputer = RelayImputer(**SMALL, min_value=-1.0).fit(table)
    low, high = imputer.impute_interval(table)
    draws = imputer.sample(table, 5, random_state=0)
    assert low.shape == high.shape == (100, 7)
    assert draws.shape == (5, 100, 7)
    kept = np.delete(hidden, 1, 1)
    assert (low[kept] >= -1).all()
    assert (draws[:, kept] >= -1).all()
    assert (draws[:, :, 3] == 7).all()


def test_a_part_of_the_rows_is_learned_from_and_rare_columns_are_in_it():
    x = lowrank(1200)
    holed = np.where(np.random.default_rng(1).random(x.shape) < 0.3, np.nan, x)
    holed[:, 5] = np.nan
    holed[100:120, 5] = x[100:120, 5]  # few of 200 random rows show it
    chosen = some_rows(holed, 200, 0)
    assert set(range(100, 120)) < set(chosen)
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(some_rows(holed, 1200, 0), np.arange(1200))
    dense = np.where(np.arange(6000)[:, None] % 2, np.nan, np.zeros((6000, 3)))
    assert len(some_rows(dense, 5000, 0)) == 5000

    part, whole = (RelayImputer(**SMALL, subsample=most) for most in (200, None))
    for imputer in (part, whole):
        fitted = imputer.fit_transform(holed)
        shown = ~np.isnan(holed)
        assert np.array_equal(fitted[shown], holed[shown])
        wrong = (fitted - x)[~shown]
        assert np.sqrt(np.mean(wrong**2)) < 0.8 * x.std()
    # scales are those of all rows
    assert np.array_equal(part.standardizer_.mean, whole.standardizer_.mean)
    assert not torch.equal(part.blend_.linear.bias, whole.blend_.linear.bias)
    with pytest.raises(ValueError, match="subsample"):
        RelayImputer(**SMALL, subsample=0).fit(holed)


def test_what_does_not_fit_is_refused():
    table, _ = holed(lowrank()[:40])
    for members in ("all", ("forest",), ("linear",), ("relay", "forest"), None, 5):
        with pytest.raises(ValueError, match="members: expected 'auto'"):
            RelayImputer(**SMALL, members=members).fit(table)
    imputer = RelayImputer(**SMALL, members=("relay",)).fit(table)
    with pytest.raises(ValueError, match=r"members: expected 'auto' or \('relay',\)"):
        RelayImputer(**SMALL, members=("linear", "relay"), likelihood=Halves(8)).fit(
            (table > 0) * 1.0
        )
    for coverage in (0.0, 0.995, 1.0, -1):
        with pytest.raises(ValueError, match="coverage: expected"):
            imputer.impute_interval(table, coverage)
    with pytest.raises(ValueError, match="n_draws: expected"):
        imputer.sample(table, 0)


@pytest.mark.parametrize("members", ["auto", ("relay",)])
def test_of_rows_that_miss_nothing_bounds_and_draws_are_the_rows(members):
    x = lowrank()[:60]
    table, _ = holed(x)
    imputer = RelayImputer(**SMALL, members=members).fit(table)
    low, high = imputer.impute_interval(x)
    draws = imputer.sample(x, 3)
    assert draws.shape == (3, *x.shape)
    for found in (low, high, *draws):
        np.testing.assert_array_equal(found, x)


def test_pickles_without_the_newer_parameters_still_transform():
    table, _ = holed(lowrank()[:60])
    imputer = RelayImputer(**SMALL, members=("relay",)).fit(table)
    state = dict(imputer.__getstate__())
    for name in ("members", "blend_", "kl_weight", "initial_log_std", "decoder_weight_decay"):
        del state[name]
    old = object.__new__(RelayImputer)
    old.__setstate__(state)
    np.testing.assert_array_equal(old.transform(table), imputer.transform(table))
    assert clone(old).get_params() == RelayImputer(**SMALL).get_params()
    whole = RelayImputer(**SMALL).fit(table)
    loaded = pickle.loads(pickle.dumps(whole))
    np.testing.assert_array_equal(loaded.transform(table), whole.transform(table))


def test_training_and_draws_leave_torch_alone():
    table, _ = holed(lowrank()[:60])
    before = torch.get_rng_state()
    RelayImputer(**SMALL).fit(table).sample(table, 2, random_state=0)
    assert torch.equal(torch.get_rng_state(), before)
