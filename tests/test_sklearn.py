"""The scikit-learn estimators keep scikit-learn's rules, and fill in better than column means."""

import importlib
import pickle
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")

from sklearn.base import TransformerMixin, clone
from sklearn.datasets import load_digits, load_iris
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import (
    check_transformer_data_not_an_array,
    check_transformer_general,
    parametrize_with_checks,
)

import rvi_fast
from rvi_fast.sklearn import RelayEmbedder, RelayImputer

TINY = {"latent_dim": 3, "hidden": (8,), "groups": (4,), "epochs": 2, "steps": 4, "random_state": 0}
OWN = "fit_transform gives the means that training found, transform infers them anew"
TRAINED_MEANS = ("check_transformer_data_not_an_array", "check_transformer_general")
RNG = np.random.default_rng(0)
FULL = (RNG.normal(size=(60, 2)) @ RNG.normal(size=(2, 5))) * [1, 10, 0.1, 1, 1] + [0, 50, 0, 0, 7]
MASK = RNG.random(FULL.shape) < 0.7
X = np.where(MASK, FULL, np.nan)


def expected_failures(estimator):
    return dict.fromkeys(TRAINED_MEANS, OWN) if isinstance(estimator, RelayEmbedder) else {}


@parametrize_with_checks(
    [RelayImputer(**TINY), RelayEmbedder(**TINY)], expected_failed_checks=expected_failures
)
def test_estimators_keep_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


class InferredAnew(RelayEmbedder):
    fit_transform = TransformerMixin.fit_transform


@pytest.mark.parametrize("readonly", [False, True])
def test_expected_failures_have_no_other_reason(readonly):
    embedder = InferredAnew(**TINY)
    check_transformer_general("InferredAnew", embedder, readonly_memmap=readonly)
    check_transformer_data_not_an_array("InferredAnew", embedder)


@pytest.fixture(scope="module")
def imputer():
    return RelayImputer(**TINY).fit(X)


@pytest.fixture(scope="module")
def embedder():
    return RelayEmbedder(**TINY).fit(X)


@pytest.mark.parametrize(("load", "share"), [(load_iris, 0.75), (load_digits, 0.75)])
def test_imputation_beats_the_column_mean_by_a_quarter(load, share):
    full = load().data
    holed = np.random.default_rng(0).random(full.shape) < 0.3
    x = np.where(holed, np.nan, full)
    train = np.arange(len(x)) % 4 > 0
    error = {}
    for imputer in (SimpleImputer(keep_empty_features=True), RelayImputer(random_state=0)):
        filled = imputer.fit(x[train]).transform(x)
        for part, rows in (("train", train), ("test", ~train)):
            wrong = (filled - full)[rows][holed[rows]]
            error[type(imputer), part] = np.sqrt(np.mean(wrong**2))
    for part in ("train", "test"):
        assert error[RelayImputer, part] < share * error[SimpleImputer, part], error


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_observed_entries_come_back_bit_for_bit(imputer, dtype):
    x = X.astype(dtype)
    x[0] = [-0.0, np.pi, 1e-30, 1, np.nan]
    kept = x.copy()
    filled = imputer.transform(x)
    assert filled.dtype == dtype
    assert np.isfinite(filled).all()
    observed = ~np.isnan(x)
    assert filled[observed].tobytes() == x[observed].tobytes()
    np.testing.assert_array_equal(x, kept)


def test_a_row_does_not_depend_on_the_rows_beside_it(imputer, embedder):
    rows = np.r_[40:20:-3, 7]
    for estimator in (imputer, embedder):
        whole = estimator.transform(X)
        np.testing.assert_allclose(estimator.transform(X[rows]), whole[rows], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(estimator.transform(np.asfortranarray(X)), whole)


def test_fit_transform_of_the_embedder_gives_the_means_of_the_training(embedder, monkeypatch):
    trained = []

    def fit(model, rows, **options):
        trained.append(model.posterior)
        return rvi_fast.fit(model, rows, **options)

    monkeypatch.setattr("rvi_fast.sklearn.estimator.fit", fit)
    again = clone(embedder)
    means = again.fit_transform(X)
    np.testing.assert_array_equal(means, trained[0].mean().detach().numpy())
    np.testing.assert_array_equal(again.transform(X), embedder.transform(X))


def test_embeddings_of_new_rows_are_classified_by_what_was_learned_from_the_training_rows():
    x, y = load_digits(return_X_y=True)
    x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    train = np.arange(len(x)) % 4 > 0
    embedder = RelayEmbedder(random_state=0)
    classifier = LogisticRegression(max_iter=2000).fit(embedder.fit_transform(x[train]), y[train])
    assert classifier.score(embedder.transform(x[~train]), y[~train]) > 0.8


def test_inverse_transform_decodes_in_the_units_of_the_data(embedder, imputer):
    decoded = embedder.inverse_transform(embedder.transform(X))
    assert decoded.shape == X.shape
    assert 30 < decoded[:, 1].mean() < 70
    # the same model and scale: what the imputer fills in is the embedder's decoding
    same = RelayImputer(**TINY, scale_factor=1.0, members=("relay",)).fit(X).transform(X)
    np.testing.assert_allclose(decoded[~MASK], same[~MASK], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="X: expected 3 columns, latent_dim, got 2"):
        embedder.inverse_transform(np.zeros((4, 2)))


def test_rows_and_columns_without_any_observed_entry_are_filled():
    x = X.copy()
    x[3], x[:, 2] = np.nan, np.nan
    for standardize in (True, False):
        imputer = RelayImputer(**TINY, standardize=standardize, keep_empty_features=True).fit(x)
        filled = imputer.transform(x)
        assert filled.shape == x.shape
        assert np.isfinite(filled).all()
        assert (filled[:, 2] == 0).all()
        np.testing.assert_array_equal(imputer.transform(X)[MASK], X[MASK])
    nothing = np.full((3, 2), np.nan)
    imputer = RelayImputer(**TINY, keep_empty_features=True)
    np.testing.assert_array_equal(imputer.fit_transform(nothing), np.zeros((3, 2)))


def test_missing_entries_can_be_marked_by_a_number(imputer):
    marked = RelayImputer(**TINY, missing_values=-1).fit(np.where(MASK, FULL, -1))
    np.testing.assert_array_equal(marked.transform(np.where(MASK, FULL, -1)), imputer.transform(X))
    with pytest.raises(ValueError, match="NaN"):
        marked.transform(X)


def test_none_in_a_list_is_missing(imputer):
    first = np.where(MASK, FULL, None).tolist()
    np.testing.assert_array_equal(imputer.transform(first), imputer.transform(X))


def test_pixels_share_one_scale():
    pixels = RNG.integers(0, 256, (20, 6)).astype(np.uint8)
    imputer = RelayImputer(**TINY, missing_values=0).fit(pixels)
    assert (imputer.standardizer_.std == 255).all()
    filled = imputer.transform(pixels)
    np.testing.assert_array_equal(filled[pixels > 0], pixels[pixels > 0])
    np.testing.assert_array_equal(filled, imputer.transform(pixels.astype(float)))


def test_indicator_columns_are_those_of_missing_indicator():
    x = X.copy()
    x[:, 3] = FULL[:, 3]
    imputer = RelayImputer(**TINY, add_indicator=True)
    found = imputer.fit_transform(x)
    np.testing.assert_array_equal(found[:, 5:], MissingIndicator().fit_transform(x))
    names = ["x0", "x1", "x2", "x3", "x4"]
    names += [f"missingindicator_x{column}" for column in (0, 1, 2, 4)]
    assert imputer.get_feature_names_out().tolist() == names


def test_data_frames_keep_index_and_names():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X, columns=list("abcde"), index=range(100, 160))
    frame["f"] = pandas.array([1, None, 3] * 20, dtype="Int64")
    imputer = RelayImputer(**TINY, add_indicator=True).set_output(transform="pandas").fit(frame)
    assert imputer.feature_names_in_.tolist() == list("abcdef")
    filled = imputer.transform(frame)
    assert filled.index.equals(frame.index)
    assert filled.columns.tolist()[:7] == [*"abcdef", "missingindicator_a"]
    assert not filled.isna().any(axis=None)
    embedder = RelayEmbedder(**TINY).set_output(transform="pandas")
    for means in (embedder.fit_transform(frame), embedder.transform(frame)):
        assert means.columns.tolist() == [f"relayembedder{t}" for t in range(3)]
        assert means.index.equals(frame.index)


def test_pipelines_and_searches_run_and_what_is_fitted_can_be_pickled():
    y = FULL[:, 0] > 0
    for step in (RelayImputer(**TINY), RelayEmbedder(**TINY)):
        pipeline = make_pipeline(step, LogisticRegression()).fit(X, y)
        loaded = pickle.loads(pickle.dumps(pipeline))
        np.testing.assert_array_equal(loaded.predict_proba(X), pipeline.predict_proba(X))
        name = pipeline.steps[0][0]
        numbers = {"latent_dim": np.int64(3), "steps": np.int32(4), "infer_lr": np.float32(0.01)}
        numbers |= {"epochs": np.int64(2), "scale_factor": np.float32(2), "top": np.float32(0.5)}
        grid = {f"{name}__{key}": [value] for key, value in numbers.items()}
        search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
        assert 0 <= search.best_score_ <= 1


def test_epochs_and_batches_adapt_to_the_table():
    small = RelayImputer(**{**TINY, "epochs": None}).fit(X[:20])
    assert small.history_.epochs == 1000  # two batches of 16 and 4
    assert RelayImputer(**TINY).fit(X).history_.epochs == 2


def test_the_same_random_state_gives_the_same_model_and_leaves_torch_alone():
    import torch

    state = torch.get_rng_state()
    first, second = (RelayImputer(**TINY).fit(X).transform(X) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first, second)
    other = RelayImputer(**{**TINY, "random_state": np.random.RandomState(1)}).fit_transform(X)
    assert (other[~MASK] != first[~MASK]).any()


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "rvi_fast.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r'pip install "rvi-fast\[sklearn\]"'):
        importlib.import_module("rvi_fast.sklearn")


def test_what_does_not_fit_is_refused(imputer):
    with pytest.raises(ValueError, match="infinity"):
        RelayImputer(**TINY).fit([[1.0, np.inf]])
    with pytest.raises(ValueError, match="X has 2 features, but RelayImputer is expecting 5"):
        imputer.transform([[1.0, 2.0]])
    far = [[0.0] * 5, [0.0, np.nan, 0.0, 1e200, 0.0]]
    with pytest.raises(ValueError, match=r"X: expected .* 1e\+200 at row 1, column 3"):
        RelayImputer(**TINY, standardize=False).fit(X).transform(far)
    # standardised numbers are cut
    assert np.isfinite(imputer.transform(far)).all()
    for standardize in (True, False):
        with pytest.raises(ValueError, match="X: expected numbers that"):
            RelayImputer(**TINY, standardize=standardize).fit([[1e200, 1.0], [-1e200, np.nan]])
    for name in ("hidden", "groups"):
        with pytest.raises(TypeError, match=f"{name}: expected a sequence of integers, got 5"):
            RelayEmbedder(**{**TINY, name: 5}).fit(X)
    wrong = {
        "missing_values": "?",
        "latent_dim": 0,
        "hidden": (0,),
        "epochs": 0,
        "batch_size": -1,
        "lr": 0.0,
        "steps": 0,
        "infer_lr": -1.0,
        "scale_factor": "large",
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            RelayImputer(**{**TINY, name: value}).fit(X)
