"""The scikit-learn estimators on tables that are not well-behaved: scales, tails, masks, dtypes."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")

from sklearn.impute import MissingIndicator, SimpleImputer

import rvi_fast
from rvi_fast.data import FarEntriesWarning
from rvi_fast.sklearn import RelayEmbedder, RelayImputer
from rvi_fast.training import CollapseWarning, held_out_error
from rvi_fast.training.held_out import FACTORS

TINY = {"latent_dim": 3, "hidden": (8,), "groups": (4,), "epochs": 2, "steps": 4, "random_state": 0}
SMALL = {**TINY, "hidden": (16,), "groups": (8,), "epochs": 60, "steps": 50}
RNG = np.random.default_rng(0)
FULL = RNG.normal(size=(400, 2)) @ RNG.normal(size=(2, 8)) + 0.2 * RNG.normal(size=(400, 8))
MASK = RNG.random(FULL.shape) < 0.7
X = np.where(MASK, FULL, np.nan)


def test_a_collapsed_training_is_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        good = RelayImputer(**SMALL).fit(X)
        assert RelayEmbedder(**SMALL).fit(X).held_out_error_ < 0.7
    assert good.held_out_error_ < 0.7
    wrong = {**SMALL, "lr": 1.0}
    for estimator in (RelayImputer(**wrong, members=("relay",)), RelayEmbedder(**wrong)):
        with pytest.warns(CollapseWarning, match=r"no better than the means .* lr, which is 1\.0"):
            estimator.fit(X)
        assert estimator.held_out_error_ > 0.98
    # its other members do not collapse
    assert RelayImputer(**wrong).fit(X).held_out_error_ < 0.7


def test_a_model_that_was_pressed_to_its_prior_finds_no_more_than_means():
    x = torch.from_numpy((X - np.nanmean(X, 0)) / np.nanstd(X, 0)).float()
    found = {}
    for kl_weight in (1.0, 1000.0):
        model = rvi_fast.models.rvi(*x.shape, latent_dim=3, hidden=(16,), groups=(8,))
        options = {"epochs": 60, "lr": 0.01, "batch_size": 32, "progress": False}
        rvi_fast.fit(model, x, kl_weight=kl_weight, **options)
        found[kl_weight] = held_out_error(model, x)
    assert found[1.0] < 0.7
    assert found[1000.0] == pytest.approx(1, abs=0.02)


def test_too_few_entries_are_not_judged():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        assert np.isnan(RelayImputer(**TINY).fit(X[:20]).held_out_error_)


def test_factors_of_the_scale_are_tried_once_each_and_not_one_upon_the_other(monkeypatch):
    tried, infer = [], rvi_fast.infer

    def look(model, rows, **options):
        tried.append((model.likelihood.log_scale.item(), options["scale_factor"]))
        return infer(model, rows, **options)

    monkeypatch.setattr("rvi_fast.sklearn.estimator.infer", look)
    RelayImputer(**TINY, members=("relay",)).fit(X)
    factors = [factor * math.exp(scale - tried[0][0]) for scale, factor in tried]
    assert factors == pytest.approx(FACTORS)


@pytest.mark.parametrize("estimator", [RelayImputer, RelayEmbedder])
def test_one_wrong_entry_does_not_move_its_column(estimator):
    full = RNG.normal(size=(500, 4))
    full[7, 2] = 1e6
    x = np.where(RNG.random(full.shape) < 0.2, np.nan, full)
    x[7, 2] = 1e6
    with pytest.warns(FarEntriesWarning, match=r"1000000\.0 at row 7, column 2"):
        fitted = estimator(**SMALL).fit(x)
    if estimator is RelayImputer:
        filled = fitted.transform(x)
        assert filled[7, 2] == 1e6
        hidden = np.isnan(x[:, 2])
        assert np.sqrt(np.mean((filled - full)[hidden, 2] ** 2)) <= 1.1
    else:
        means = fitted.transform(x)
        # nor does the row stand alone
        assert np.abs(means[7]).max() < 10


@pytest.mark.parametrize("standardize", [True, False])
def test_a_column_of_one_value_is_filled_with_that_value(standardize):
    for value in (0.001, 1e6, -7.0):
        x = X[:60].copy()
        x[:, 1] = np.where(MASK[:60, 1], value, np.nan)
        filled = RelayImputer(**TINY, standardize=standardize).fit_transform(x)
        assert (filled[:, 1] == value).all()
        embedder = RelayEmbedder(**TINY, standardize=standardize)
        assert (embedder.inverse_transform(embedder.fit_transform(x))[:, 1] == value).all()
    once = RelayImputer(**TINY, standardize=standardize)
    filled = once.fit_transform([[1, np.nan, 3], [2, 5, 4]])
    np.testing.assert_array_equal(filled, [[1, 5, 3], [2, 5, 4]])
    shaped = RelayImputer(**TINY, column_transform="quantile").fit(x)
    assert (shaped.transform(x)[:, 1] == -7).all()


@pytest.mark.parametrize("kind", ["auto", "log", "quantile"])
def test_heavy_tails_are_filled_in_better_than_by_medians(kind):
    normal = FULL / FULL.std(axis=0)
    full = np.exp(1.5 * normal) * [1, 1e5, 1e-5, 1, 1, 1, 1, 1]
    x = np.where(MASK, full, np.nan)
    errors = {}
    for imputer in (
        SimpleImputer(strategy="median"),
        RelayImputer(random_state=0, column_transform=kind),
    ):
        filled = imputer.fit_transform(x)
        wrong = np.where(MASK, np.nan, np.abs(filled - full))
        errors[type(imputer)] = np.nanmedian(wrong, axis=0)
    assert (errors[RelayImputer] < errors[SimpleImputer]).all(), errors


def test_heavy_tails_of_either_sign_are_filled_in_better_than_by_medians():
    normal = FULL / FULL.std(axis=0)
    full = np.sinh(3 * normal)
    x = np.where(MASK, full, np.nan)
    imputer = RelayImputer(random_state=0)
    wrong = np.abs(imputer.fit_transform(x) - full)[~MASK]
    assert imputer.column_transform_.kinds == ["quantile"] * 8
    of_medians = np.abs(SimpleImputer(strategy="median").fit_transform(x) - full)[~MASK]
    assert np.median(wrong) < np.median(of_medians)


def test_columns_without_heavy_tails_are_left_as_they_are():
    plain = RelayImputer(**TINY, column_transform="none").fit(X).transform(X)
    auto = RelayImputer(**TINY).fit(X)
    assert auto.column_transform_.kinds == ["none"] * 8
    np.testing.assert_array_equal(auto.transform(X), plain)
    heavy = np.exp(3 * X)
    assert set(RelayImputer(**TINY).fit(heavy).column_transform_.kinds) == {"log"}
    raw = RelayImputer(**TINY, standardize=False).fit(np.exp(X))
    assert raw.column_transform_.kinds == ["none"] * 8


def test_bounds_hold_for_what_is_filled_in_and_for_nothing_else():
    low, high = np.full(8, -0.1), np.full(8, np.inf)
    low[3], high[5] = -np.inf, 0.2
    imputer, free = RelayImputer(**SMALL, min_value=low, max_value=high), RelayImputer(**SMALL)
    filled, expected = imputer.fit_transform(X), free.fit_transform(X)
    np.testing.assert_array_equal(filled[~MASK], expected.clip(low, high)[~MASK])
    np.testing.assert_array_equal(filled[MASK], X[MASK])
    assert (filled[~MASK] != expected[~MASK]).any()
    assert RelayImputer(**TINY, max_value=-50).fit_transform(X)[~MASK].max() == -50
    for wrong in ({"min_value": [1, 2]}, {"max_value": "a"}, {"min_value": np.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected a number or 8"):
            RelayImputer(**TINY, **wrong).fit(X)
    with pytest.raises(ValueError, match=r"min_value: expected less than max_value, .* feature 5"):
        RelayImputer(**TINY, min_value=0.2, max_value=high).fit(X)


@pytest.mark.parametrize("estimator", [RelayImputer, RelayEmbedder])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8])
def test_what_is_masked_is_missing(estimator, dtype):
    whole = (FULL[:60] * 20 + 100).round().astype(dtype)
    mask = MASK[:60]
    table = np.where(mask, whole, np.array(251 if dtype == np.uint8 else -9999, dtype))
    masked = np.ma.array(table, mask=~mask)
    options = {**TINY, "epochs": 20}
    filled = estimator(**options).fit_transform(masked)
    fitted = estimator(**options).fit(masked)
    if dtype == np.uint8:  # NaN in pixels are no pixels
        marked = estimator(**options, missing_values=251)
        shown = table
    else:
        marked = estimator(**options)
        shown = np.where(mask, whole, np.nan).astype(filled.dtype)
    np.testing.assert_array_equal(filled, marked.fit_transform(shown))
    np.testing.assert_array_equal(fitted.transform(masked), marked.fit(shown).transform(shown))
    if estimator is RelayImputer:
        np.testing.assert_array_equal(filled[mask], whole[mask])
        assert filled[~mask].min() > -50
    rows = fitted.transform(list(masked))
    np.testing.assert_array_equal(rows, fitted.transform(masked))


def test_what_a_mask_hides_may_be_no_number():
    table = np.where(MASK[:60], FULL[:60], np.inf)
    masked = np.ma.array(table, mask=~MASK[:60])
    filled = RelayImputer(**TINY, missing_values=-1).fit_transform(masked)
    np.testing.assert_array_equal(filled, RelayImputer(**TINY).fit_transform(X[:60]))


@pytest.mark.parametrize("estimator", [RelayImputer, RelayEmbedder])
def test_nullable_columns_and_columns_of_objects_are_numbers_with_holes(estimator):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = X[:60].copy()
    x[:, 0], x[:, 1] = x[:, 0].round(), np.where(np.isnan(x[:, 1]), np.nan, x[:, 1] > 0)
    frame = pandas.DataFrame(x, columns=list("abcdefgh"))
    frame["a"] = frame["a"].astype("Int64")
    frame["b"] = frame["b"].astype("boolean")
    frame["c"] = pandas.Series(frame["c"].astype(object)).where(frame["c"].notna(), None)
    frame["d"] = pandas.Series(frame["d"].astype(object)).where(frame["d"].notna(), pandas.NA)
    assert frame["c"].dtype == frame["d"].dtype == object
    fitted = estimator(**TINY).fit(x)
    # else "b" is yes/no
    nullable = estimator(**TINY, categorical_features=None).fit(frame)
    assert nullable.feature_names_in_.tolist() == list("abcdefgh")
    # the columns of a frame are added up in another order
    np.testing.assert_allclose(nullable.transform(frame), fitted.transform(x), rtol=1e-9, atol=1e-9)
    objects = frame.astype(object).to_numpy()
    np.testing.assert_array_equal(fitted.transform(objects), fitted.transform(x))
    frame["c"] = "text"
    with pytest.raises(ValueError, match=r"text|str dtype"):
        estimator(**TINY, categorical_features=None).fit(frame)


@pytest.mark.parametrize("estimator", [RelayImputer, RelayEmbedder])
@pytest.mark.parametrize("kind", ["auto", "quantile"])
def test_float32_comes_back_as_float32(estimator, kind):
    x = X[:60].astype(np.float32)
    fitted = estimator(**TINY, column_transform=kind)
    assert fitted.fit_transform(x).dtype == np.float32
    assert fitted.transform(x).dtype == np.float32
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert fitted.transform(pandas.DataFrame(x)).dtype == np.float32
    assert fitted.transform(X).dtype == np.float64


@pytest.mark.parametrize("estimator", [RelayImputer, RelayEmbedder])
def test_autocast_changes_nothing(estimator):
    plain = estimator(**TINY)
    means = plain.fit_transform(X)
    with torch.autocast("cpu", torch.bfloat16):
        under = estimator(**TINY)
        np.testing.assert_array_equal(under.fit_transform(X), means)
        np.testing.assert_array_equal(under.transform(X), plain.transform(X))
        if estimator is RelayEmbedder:
            back = under.inverse_transform(means)
            assert torch.is_autocast_enabled("cpu")
    if estimator is RelayEmbedder:
        np.testing.assert_array_equal(back, plain.inverse_transform(means))


def test_features_never_observed_are_dropped_or_kept_by_name():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(X[:60], columns=list("abcdefgh"))
    frame["c"] = np.nan
    imputer = RelayImputer(**TINY, add_indicator=True).set_output(transform="pandas")
    with pytest.warns(UserWarning, match=r"dropped: \['c'\]; keep_empty_features=True"):
        filled = imputer.fit_transform(frame)
    holes = MissingIndicator().set_output(transform="pandas").fit_transform(frame)
    assert filled.columns.tolist() == [*"abdefgh", *holes.columns]
    assert filled.columns.tolist() == imputer.get_feature_names_out().tolist()
    assert not filled.isna().any(axis=None)
    seen = [name for name in frame if name != "c"]
    known = frame[seen].notna()
    assert filled[seen].where(known).equals(frame[seen].where(known))
    # what was never observed in fit is dropped also where it is observed
    frame["c"] = 3.0
    assert imputer.transform(frame)[seen].equals(filled[seen])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = RelayImputer(**TINY, keep_empty_features=True).set_output(transform="pandas")
        table = kept.fit_transform(frame.assign(c=np.nan))
    assert table.columns.tolist() == kept.get_feature_names_out().tolist() == list("abcdefgh")
    assert (table["c"] == 0).all()
    # to rounding: here every row misses an entry, and more rows are filled in together
    np.testing.assert_allclose(table[seen], filled[seen], rtol=0, atol=1e-9)
    with pytest.warns(UserWarning, match="dropped"):
        assert RelayImputer(**TINY).fit_transform(np.full((3, 2), np.nan)).shape == (3, 0)


def test_what_is_fitted_holds_no_training_rows():
    # trees grow with the rows
    members = ("linear", "relay")
    sizes = []
    for count in (60, 400):
        for estimator in (RelayImputer(**TINY, members=members), RelayEmbedder(**TINY)):
            sizes.append(len(pickle.dumps(estimator.fit(X[:count]))))
    assert sizes[2] < sizes[0] + 500
    assert sizes[3] < sizes[1] + 500
    model = estimator.model_
    assert model.num_data == model.config["num_data"] == 1
    again = rvi_fast.models.build(model.config)
    again.load_state_dict(model.state_dict())


def test_shapes_of_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"column_transform: expected one of auto, .* got 'sqrt'"):
        RelayImputer(**TINY, column_transform="sqrt").fit(X)
    with pytest.raises(ValueError, match=r"expected positive entries for 'log', got -.* in column"):
        RelayEmbedder(**TINY, column_transform="log").fit(X)
    pixels = RNG.integers(0, 256, (20, 6)).astype(np.uint8)
    with pytest.raises(ValueError, match=r"column_transform: expected 'auto' or 'none' for pixels"):
        RelayImputer(**TINY, column_transform="log").fit(pixels)
