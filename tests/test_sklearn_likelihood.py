"""The estimators with laws other than Gaussians: every filled cell is one that its column can hold."""

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")

from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from rvi_fast import likelihoods
from rvi_fast.sklearn import RelayEmbedder, RelayImputer

LAWS = ["gaussian", "bernoulli", ("categorical", 3), "poisson", "gaussian"]
SMALL = {"latent_dim": 2, "hidden": (8,), "groups": (8,), "epochs": 60, "random_state": 0}
TINY = SMALL | {"epochs": 2, "steps": 4}
N = 300


def table():
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=N)
    noise = generator.normal(size=(N, 2))
    logits = np.stack((2 * hidden, np.zeros(N), -2 * hidden), 1) + generator.gumbel(size=(N, 3))
    x = np.column_stack(
        (
            1e4 + 300 * (hidden + 0.3 * noise[:, 0]),
            hidden + 0.5 * noise[:, 1] > 0,
            logits.argmax(1),
            generator.poisson(np.exp(1.5 + 0.8 * hidden)),
            # heavy tails: "auto" takes its logarithm
            np.exp(2 * hidden + 0.5 * generator.normal(size=N)),
        )
    )
    return x, generator.random(x.shape) < 0.7


FULL, MASK = table()
X = np.where(MASK, FULL, np.nan)


@pytest.fixture(scope="module")
def imputer():
    return RelayImputer(likelihood=LAWS, **SMALL).fit(X)


def test_filled_cells_are_legal_and_observed_ones_are_as_they_were(imputer):
    filled = imputer.transform(X)
    assert (filled[MASK] == FULL[MASK]).all()
    assert set(filled[:, 1]) <= {0.0, 1.0}
    assert set(filled[:, 2]) <= {0.0, 1.0, 2.0}
    assert (filled[:, 3] >= 0).all()
    assert (filled[~MASK[:, 3], 3] % 1 > 0).any()
    whole = clone(imputer).set_params(estimate="mode").fit(X).transform(X)
    assert (whole[:, 3] % 1 == 0).all()
    means = clone(imputer).set_params(estimate="mean").fit(X).transform(X)
    yes = means[~MASK[:, 1], 1]
    assert ((yes > 0) & (yes < 1)).all()


def test_every_kind_of_column_is_found_better_than_by_its_middle(imputer):
    filled, hidden = imputer.transform(X), ~MASK
    for column in (1, 2):
        own, wrong = X[MASK[:, column], column], hidden[:, column]
        values, counts = np.unique(own, return_counts=True)
        middle = np.mean(FULL[wrong, column] != values[counts.argmax()])
        assert np.mean((filled != FULL)[wrong, column]) < 0.8 * middle
    for column in (0, 3, 4):
        wrong, middle = hidden[:, column], np.nanmedian(X[:, column])
        error = np.abs(filled - FULL)[wrong, column].mean()
        assert error < 0.85 * np.abs(middle - FULL[wrong, column]).mean(), column


def test_codes_and_counts_are_neither_bent_nor_scaled(imputer):
    assert imputer.column_transform_.kinds == ["none", "none", "none", "none", "log"]
    assert imputer.standardizer_.mean[1:4].tolist() == [0, 0, 0]
    assert imputer.standardizer_.std[1:4].tolist() == [1, 1, 1]
    assert imputer.standardizer_.std[0] == pytest.approx(300, rel=0.2)
    bent = RelayImputer(likelihood=LAWS, column_transform="quantile", **TINY).fit(X)
    assert bent.column_transform_.kinds == ["quantile", "none", "none", "none", "quantile"]


def test_a_row_is_given_the_same_whatever_rows_stand_beside_it(imputer):
    np.testing.assert_allclose(imputer.transform(X[:7]), imputer.transform(X)[:7], rtol=1e-4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "mixed", "instances"])
def test_a_given_law_is_copied_cloned_and_pickled(likelihood):
    x = X[:, [1, 1, 1, 1, 1]] if likelihood == "bernoulli" else X
    given = {
        "bernoulli": "bernoulli",
        "mixed": likelihoods.Mixed(LAWS),
        "instances": [*LAWS[:4], likelihoods.StudentT(1)],
    }[likelihood]
    before = copy.deepcopy(given)
    imputer = RelayImputer(likelihood=given, **TINY).fit(x)
    assert imputer.likelihood is given
    if likelihood == "mixed":
        for name, value in before.state_dict().items():
            assert (given.state_dict()[name] == value).all()
    if likelihood == "instances":
        assert given[4].log_scale.item() == before[4].log_scale.item()
    filled = imputer.transform(x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(imputer)).transform(x), filled)
    np.testing.assert_array_equal(clone(imputer).fit(x).transform(x), filled)


def test_laws_are_searched_like_any_parameter():
    pipeline = make_pipeline(RelayImputer(**TINY), LogisticRegression(max_iter=500))
    laws = ["gaussian", "student_t", LAWS[:3]]
    search = GridSearchCV(pipeline, {"relayimputer__likelihood": laws}, cv=2, error_score="raise")
    search.fit(X[:, :3], FULL[:, 3] > 4)
    assert search.best_params_["relayimputer__likelihood"] in laws


@parametrize_with_checks(
    [RelayImputer(likelihood="student_t", **TINY)], expected_failed_checks=lambda estimator: {}
)
def test_a_likelihood_keeps_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [(1, 2.0, "0 or 1"), (2, 3.0, "a code 0 to 2"), (3, -1.0, "a count"), (3, 0.5, "a count")],
)
def test_what_a_column_cannot_hold_is_named_by_row_column_and_value(imputer, column, value, words):
    bad = X.copy()
    bad[123, column] = value
    expected = rf"x: expected {words}.* got {value} at row 123, column {column}"
    for call in (clone(imputer).fit, imputer.transform, RelayEmbedder(likelihood=LAWS, **TINY).fit):
        with pytest.raises(ValueError, match=expected):
            call(bad)


def test_columns_of_a_frame_are_named_in_errors():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X, columns=["height", "yes", "class", "count", "price"])
    frame.loc[5, "yes"] = 7
    with pytest.raises(ValueError, match=r"got 7\.0 at row 5, column 'yes'"):
        RelayImputer(likelihood=LAWS, **TINY).fit(frame)


@pytest.mark.parametrize(
    ("likelihood", "error", "words"),
    [
        ("gauss", ValueError, "likelihood: expected one of .* got 'gauss'"),
        (["gaussian"] * 4, ValueError, "likelihood: expected one of 5 features, got 4"),
        (3, TypeError, "likelihood: expected a name"),
    ],
)
def test_what_is_no_law_is_named_by_the_estimators(likelihood, error, words):
    with pytest.raises(error, match=words):
        RelayImputer(likelihood=likelihood, **TINY).fit(X)


def test_an_estimate_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="estimate: expected 'mean', 'mode' or None, got 'median'"):
        RelayImputer(estimate="median", **TINY).fit(X)


def test_bounds_and_empty_and_constant_columns_hold_beside_laws():
    x = X.copy()
    x[:, 1], x[:, 3] = np.nan, np.where(MASK[:, 3], 4.0, np.nan)
    options = {"likelihood": LAWS, "min_value": -np.inf, "max_value": [1e4, 1, 1, 9, 5]}
    filled = RelayImputer(keep_empty_features=True, **options, **TINY).fit_transform(x)
    assert (filled[:, 1] == 0).all()
    assert (filled[:, 3] == 4).all()
    assert (filled[~MASK[:, 4], 4] <= 5).all()
    assert set(filled[~MASK[:, 2], 2]) <= {0.0, 1.0}


def test_a_law_without_a_scale_has_none_to_look_for():
    x = X[:, [1, 1, 1]]
    assert RelayImputer(likelihood="bernoulli", **TINY).fit(x).scale_factor_ == 1.0
    with pytest.raises(ValueError, match="scale_factor: expected 1"):
        RelayImputer(likelihood="bernoulli", scale_factor=2.0, **TINY).fit(x)


def test_embeddings_of_codes_are_decoded_to_codes():
    embedder = RelayEmbedder(likelihood=LAWS, **SMALL)
    latents = embedder.fit_transform(X)
    decoded = embedder.inverse_transform(latents)
    assert set(decoded[:, 1]) <= {0.0, 1.0}
    assert set(decoded[:, 2]) <= {0.0, 1.0, 2.0}
    assert np.mean(decoded[:, 2] == FULL[:, 2]) > 0.6
    hidden = (FULL[:, 0] - 1e4) / 300
    best = max(abs(np.corrcoef(latents[:, t], hidden)[0, 1]) for t in range(2))
    assert best > 0.6


def test_black_and_white_pixels_are_zeros_and_ones():
    x = (255 * FULL[:, [1, 1, 1]]).astype(np.uint8)
    masked = np.ma.MaskedArray(x, ~MASK[:, :3])
    filled = RelayImputer(likelihood="bernoulli", **TINY).fit(masked).transform(masked)
    assert set(filled[~MASK[:, :3]]) <= {0.0, 255.0}
    x[3, 1] = 80
    with pytest.raises(ValueError, match=r"0 or 1 as x / 255.* got 80 at row 3, column 1"):
        RelayImputer(likelihood="bernoulli", **TINY).fit(x)


def test_held_out_error_of_classes_tells_what_was_learned():
    x = np.column_stack([FULL[:, 2]] * 6)
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    laws = [("categorical", 3)] * 6
    good = RelayImputer(likelihood=laws, **SMALL).fit(x)
    assert good.held_out_error_ < 0.6
    shuffled = np.stack([np.random.default_rng(c).permutation(x[:, c]) for c in range(6)], 1)
    with pytest.warns(UserWarning, match="no better than the means"):
        nothing = RelayImputer(likelihood=laws, **SMALL | {"epochs": 5}).fit(shuffled)
    assert nothing.held_out_error_ > 0.95


def test_linear_model_relay_model_and_trees_are_blended_for_every_kind_of_column(imputer):
    blend = imputer.blend_
    assert blend.names == ("linear", "relay", "forest", "boosting")
    np.testing.assert_allclose(blend.weights.sum(0), 1.0)
    assert (blend.weights >= 0).all()
    errors = imputer.held_out_errors_
    assert errors["blend"].shape == (5,)
    for column in range(5):
        assert errors["blend"][column] < 1.05 * errors["linear"][column], column
    alone = RelayImputer(likelihood=LAWS, members=("relay",), **SMALL).fit(X)
    assert alone.blend_ is None
    assert imputer.held_out_error_ < 0.9
