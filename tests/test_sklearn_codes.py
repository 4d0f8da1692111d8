"""Columns of several laws as codes: what members say of them, and how entries come of that again."""

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")

import torch
from sklearn.tree import ExtraTreeClassifier, ExtraTreeRegressor

from rvi_fast import likelihoods
from rvi_fast.models import ppca
from rvi_fast.models.linear_rows import opened
from rvi_fast.models.linear_search import _held_out
from rvi_fast.sklearn.blend import blend_weights, crossed
from rvi_fast.sklearn.codes import Codes
from rvi_fast.sklearn.entries import HeldOutEntries
from rvi_fast.sklearn.forest import ColumnForest

LAWS = ["poisson", ("categorical", 3), "gaussian", "bernoulli", ("categorical", 4)]


def table(rows=400):
    generator = np.random.default_rng(0)
    x = np.column_stack(
        (
            generator.poisson(3.0, rows),
            generator.integers(0, 3, rows),
            generator.normal(size=rows),
            generator.random(rows) < 0.3,
            generator.choice(4, rows, p=[0.5, 0.3, 0.15, 0.05]),
        )
    ).astype(np.float32)
    return np.where(generator.random(x.shape) < 0.2, np.float32(np.nan), x)


LAW, ROWS = likelihoods.Mixed(LAWS), table()
CODES = Codes(LAW, ROWS)


@pytest.mark.parametrize(
    "law",
    [
        *(likelihoods.make(name, 3) for name in ("gaussian", "laplace", "student_t", "bernoulli")),
        *(likelihoods.make(name, 3) for name in ("poisson", "negative_binomial")),
        likelihoods.Categorical(3, [2, 4, 3]),
        likelihoods.Categorical(2, 3),
        LAW,
    ],
    ids=lambda law: type(law).__name__,
)
def test_outputs_are_found_again_by_what_is_expected_of_them(law):
    outputs = torch.randn(7, law.num_outputs, dtype=torch.float64)
    expected = law.expected(outputs)
    assert expected.shape == outputs.shape
    assert sum(law.widths) == law.num_outputs
    again = law.outputs_of(expected)
    torch.testing.assert_close(law.expected(again), expected)
    torch.testing.assert_close(law.mode(again), law.mode(outputs))
    assert Codes.suits(law)


def test_probabilities_of_a_column_stand_at_its_outputs():
    outputs = torch.randn(5, LAW.num_outputs)
    expected = LAW.expected(outputs)
    torch.testing.assert_close(expected[:, 0], outputs[:, 0].exp())
    torch.testing.assert_close(expected[:, 1:4], outputs[:, 1:4].softmax(-1))
    torch.testing.assert_close(expected[:, 4], outputs[:, 4])
    torch.testing.assert_close(expected[:, 5], outputs[:, 5].sigmoid())
    assert LAW.classes == [0, 3, 0, 2, 4]


def test_a_law_that_takes_nothing_back_suits_no_codes():
    class Rate(likelihoods.Elementwise):
        def mean(self, outputs):
            return outputs.exp()

    assert not Codes.suits(Rate(2))
    assert not Codes.suits(likelihoods.Mixed([Rate(1), "bernoulli"]))


def test_codes_of_a_column_have_together_the_variance_one():
    codes = CODES.of_rows(ROWS)
    assert codes.shape == (400, 10)
    assert codes.dtype == np.float32
    variances = np.bincount(CODES.owner, np.nanvar(codes.astype(float), 0))
    np.testing.assert_allclose(variances, 1.0, rtol=1e-4)
    np.testing.assert_array_equal(np.isnan(codes), np.isnan(ROWS)[:, CODES.owner])
    filled = CODES.estimate(LAW, np.nan_to_num(codes.astype(float), nan=0.1), None)
    seen = ~np.isnan(ROWS)
    np.testing.assert_allclose(filled[seen], ROWS[seen], atol=1e-5)


def test_held_out_entries_are_the_codes_of_rows():
    entries = HeldOutEntries.drawn(ROWS, 0)
    lines = CODES.entries(entries)
    codes = CODES.of_rows(ROWS.astype(float))
    np.testing.assert_array_equal(lines.truth, codes[lines.row, lines.column])
    assert len(lines.row) == CODES.widths[entries.column].sum()
    np.testing.assert_array_equal(lines.rows, entries.rows)
    np.testing.assert_array_equal(lines.of(codes[lines.rows]), lines.truth)


def test_expected_counts_are_those_of_a_gaussian_square_root():
    features = CODES.features(ROWS)
    assert features.shape == (400, 8)
    seen = ~np.isnan(ROWS[:, 0])
    np.testing.assert_allclose(features[seen, 0], 2 * np.sqrt(ROWS[seen, 0] + 0.375), rtol=1e-5)
    mean, spread = np.zeros((1, 8)), np.full((1, 8), 0.5)
    mean[0, 0], spread[0, 0], mean[0, 1:3] = 4.0, 1.2, [0.5, 0.1]
    codes, spreads = CODES.of_features(mean, spread)
    drawn = np.random.default_rng(0).normal(4.0, 1.2, 1_000_000) ** 2 / 4 - 0.375
    assert codes[0, 0] * CODES.units[0] == pytest.approx(drawn.mean(), rel=0.01)
    assert spreads[0, 0] * CODES.units[0] == pytest.approx(drawn.std(), rel=0.01)
    np.testing.assert_allclose(CODES.expected(codes)[0, 1:4], [0.5, 0.1, 0.4], atol=1e-9)


def test_what_a_line_says_of_a_class_is_a_probability():
    mean, spread = np.full((1, 8), 1.4), np.ones((1, 8))
    mean[0, 1:3] = [1.5, -0.5]
    shares = CODES.expected(CODES.of_features(mean, spread)[0])[0]
    np.testing.assert_allclose(shares[1:4], [1.0, 0.0, 0.0], atol=1e-9)
    assert shares[5] == pytest.approx(1.0)
    np.testing.assert_allclose(shares[6:].sum(), 1.0)


def test_entries_are_drawn_as_often_as_they_are_expected():
    codes = CODES.of_rows(np.nan_to_num(ROWS[:1])).astype(float)
    shares = np.array([3.0, 0.2, 0.5, 0.3, 0.7, 0.4, 0.1, 0.4, 0.3, 0.2])
    codes[0] = shares / CODES.units
    drawn = (np.arange(20_000)[:, None, None] + 0.5) / 20_000 * np.ones((1, 1, 8))
    levels, last = CODES.levels(drawn, codes)
    # the most probable of those that are features
    assert last[0, 1] == 1
    assert last[0, 4] == 1
    found = CODES.entries_at(levels, codes, codes, last, whole=True)
    for column, own in ((1, shares[1:4]), (3, [0.6, 0.4]), (4, shares[6:])):
        seen = np.bincount(found[:, 0, column].astype(int), minlength=len(own)) / 20_000
        np.testing.assert_allclose(seen, own, atol=1e-3)
    # a high level is the class whose feature is high
    assert (found[-100:, 0, 1] == 1).all()
    assert (found[-100:, 0, 3] == 1).all()
    assert (found[..., 0] % 1 == 0).all()
    low, high = (
        CODES.entries_at(np.full((1, 5), share), codes, codes)[0, 4] for share in (0.05, 0.95)
    )
    assert (low, high) == (0, 3)


def test_codes_of_one_column_are_held_out_together():
    x = torch.from_numpy(CODES.features(ROWS)).double()
    data, _ = opened(x, None, scalar=False)
    groups = torch.from_numpy(CODES.owner_of_features)
    for part in _held_out(data, torch.Generator().manual_seed(0), groups):
        gone = torch.isnan(part.data.x) & ~torch.isnan(x)
        assert gone.any(0).all()
        assert torch.equal(gone[:, 1], gone[:, 2])
        assert torch.equal(gone[:, 5], gone[:, 7])
        assert not torch.equal(gone[:, 1], gone[:, 5])


@pytest.mark.parametrize("groups", [[0, 1], [0.0, 1.0, 2.0]])
def test_groups_that_are_none_are_refused(groups):
    with pytest.raises(ValueError, match="groups: expected 3 whole numbers"):
        ppca(3).fit(np.zeros((5, 3)), groups=groups)


def test_weights_count_an_entry_once_however_many_codes_it_has():
    generator = np.random.default_rng(0)
    truth, column = generator.normal(size=90), np.zeros(90, int)
    predictions = truth + generator.normal(size=(2, 90)) * [[1.0], [0.7]]
    entry = np.arange(90)
    once = blend_weights(predictions, truth, column, 1)
    three = np.repeat(predictions, 3, 1) / np.sqrt(3)
    many = blend_weights(
        three, np.repeat(truth, 3) / np.sqrt(3), np.repeat(column, 3), 1, entry.repeat(3)
    )
    np.testing.assert_allclose(once, many, atol=1e-6)
    # no code of an entry is judged by weights that have seen another of its codes
    found = crossed(
        three, np.repeat(truth, 3) / np.sqrt(3), np.repeat(column, 3), 1, entry.repeat(3)
    )
    expected = crossed(predictions, truth, column, 1)
    np.testing.assert_allclose(found[::3] * np.sqrt(3), expected, atol=1e-6)


def test_trees_of_codes_are_those_of_a_classifier():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(300, 4)), generator.integers(0, 3, 300)
    y = np.where(x[:, 0] > 0.5, 2, y)
    options = {"min_samples_leaf": 3, "max_features": 1.0, "random_state": 0}
    classes = ExtraTreeClassifier(**options).fit(x, y).predict_proba(x)
    codes = ExtraTreeRegressor(**options).fit(x, np.eye(3)[y]).predict(x)
    np.testing.assert_allclose(codes, classes, atol=1e-12)
    rows = np.column_stack((x, np.eye(3)[y])).astype(np.float32)
    observed = generator.random((300, 5)) < 0.7
    owner = np.array([0, 1, 2, 3, 4, 4, 4])
    found = ColumnForest(0).fit(rows, observed, owner).complete(rows, ~observed, owner)
    hidden = ~observed[:, 4]
    np.testing.assert_allclose(found[hidden, 4:].sum(1), 1.0, atol=1e-5)
    sure = hidden & (x[:, 0] > 0.8)
    assert found[sure, 6].mean() > 0.7
