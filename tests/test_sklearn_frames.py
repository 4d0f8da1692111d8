"""Estimators and DataFrames that are not all numbers: a frame in, a filled frame out."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.6", reason="scikit-learn 1.6 is not installed")
pd = pytest.importorskip("pandas", reason="pandas is not installed")

from sklearn.base import clone

from rvi_fast.sklearn import RelayEmbedder, RelayImputer

SMALL = {"latent_dim": 3, "hidden": (16,), "groups": (8,), "epochs": 30, "random_state": 0}
ROWS = 240


def whole():
    g = np.random.default_rng(0)
    health = g.normal(size=ROWS)
    frame = pd.DataFrame(
        {
            "id": range(1, ROWS + 1),
            "weight": 70 - 8 * health + g.normal(0, 2, ROWS),
            "visits": pd.array(np.clip(5 - 3 * health, 0, None).round(), dtype="Int64"),
            "smokes": pd.array(health < 0, dtype="boolean"),
            "group": pd.Categorical(
                np.where(health < -0.5, "bad", np.where(health < 0.5, "fair", "good")),
                ["good", "fair", "bad"],
                ordered=True,
            ),
            "since": pd.Timestamp("2020-01-01") + pd.to_timedelta((health * 30).round(), unit="D"),
            "remark": [f"case {k}" for k in range(ROWS)],
        }
    )
    return frame.set_axis([f"r{k}" for k in range(ROWS)])


def holed(frame):
    g = np.random.default_rng(1)
    frame = frame.copy()
    for name in frame.columns[1:]:
        frame.loc[g.random(ROWS) < 0.2, name] = None
    return frame


@pytest.fixture(scope="module")
def fitted():
    frame = holed(whole())
    return RelayImputer(**SMALL, add_indicator=True).fit(frame), frame


def test_a_frame_comes_back_filled_with_its_dtypes_and_observed_cells(fitted):
    imputer, frame = fitted
    filled = imputer.transform(frame)
    own = filled[list(frame.columns)]
    assert own.dtypes.equals(frame.dtypes)
    assert own.index.equals(frame.index)
    for name in frame.columns:
        seen = frame[name].notna()
        assert (own[name][seen] == frame[name][seen]).all()
        assert own[name].notna().all() or name == "remark"
    assert own["remark"].equals(frame["remark"])
    holes = frame.isna().loc[:, frame.isna().any()]
    indicated = filled.iloc[:, len(frame.columns) :]
    assert [*filled.columns] == [*imputer.get_feature_names_out()]
    assert np.array_equal(indicated.to_numpy(bool), holes.to_numpy())


def test_what_is_filled_in_is_near_what_was_there(fitted):
    imputer, frame = fitted
    truth, filled = whole(), imputer.transform(frame)
    for name, best in (("smokes", True), ("group", "fair")):
        gone = frame[name].isna()
        wrong = (filled[name][gone] != truth[name][gone]).mean()
        assert wrong < 0.8 * (truth[name][gone] != best).mean(), name
    for name in ("weight", "visits"):
        gone = frame[name].isna()
        error = (filled[name][gone].astype(float) - truth[name][gone].astype(float)).std()
        assert error < 0.8 * truth[name].astype(float).std(), name


def test_rows_of_their_own_and_draws_are_frames_too(fitted):
    imputer, frame = fitted
    some = frame.iloc[5:9]
    assert imputer.transform(some).equals(imputer.transform(frame).iloc[5:9])
    draws = imputer.sample(frame, 3, random_state=0)
    assert len(draws) == 3
    assert all(own[list(frame.columns)].dtypes.equals(frame.dtypes) for own in draws)
    assert not draws[0]["weight"].equals(draws[1]["weight"])
    low, high = imputer.impute_interval(frame)
    gone = frame["weight"].isna()
    assert (low["weight"][gone] < high["weight"][gone]).all()
    assert low["group"].isna().equals(frame["group"].isna())
    again = pickle.loads(pickle.dumps(imputer))
    assert again.transform(some).equals(imputer.transform(some))


def test_text_does_not_change_what_is_found(fitted):
    imputer, frame = fitted
    bare = frame.drop(columns=["id", "remark"])
    found = clone(imputer).fit(bare).transform(bare)["weight"]
    assert np.abs(found - bare["weight"].mean()).max() > 5
    other = frame.assign(remark="x" + frame["remark"].fillna(""))
    assert (
        clone(imputer)
        .fit(other)
        .transform(other)["weight"]
        .equals(imputer.transform(frame)["weight"])
    )


def test_bounds_hold_for_numbers_and_not_for_what_dates_and_classes_are_encoded_as(fitted):
    imputer, frame = fitted
    bounded = clone(imputer).set_params(min_value=68.0, max_value=69.0).fit(frame)
    found, free = bounded.transform(frame), imputer.transform(frame)
    gone = frame["weight"].isna()
    assert found["weight"][gone].between(68, 69).all()
    for name in ("since", "group", "smokes"):
        assert found[name].equals(free[name]), name


def test_pickles_from_before_there_were_frames_still_transform():
    g = np.random.default_rng(0)
    x = g.normal(size=(80, 3)) @ g.normal(size=(3, 4))
    x[g.random(x.shape) < 0.2] = np.nan
    imputer = RelayImputer(**SMALL).fit(x)
    expected = imputer.transform(x), imputer.sample(x, 2, random_state=0)
    for name in ("encoder_", "_text"):
        del vars(imputer)[name]
    again = pickle.loads(pickle.dumps(imputer))
    assert np.array_equal(again.transform(x), expected[0])
    assert np.array_equal(again.sample(x, 2, random_state=0), expected[1])


def test_frames_of_numbers_are_what_they_were():
    g = np.random.default_rng(0)
    x = g.normal(size=(80, 3)) @ g.normal(size=(3, 4))
    x[g.random(x.shape) < 0.2] = np.nan
    frame = pd.DataFrame(x, columns=list("abcd"))
    imputer = RelayImputer(**SMALL).fit(frame)
    assert imputer.encoder_ is None
    # up to the order of sums: a frame's columns lie one after another
    own = RelayImputer(**SMALL).fit(x).transform(x)
    np.testing.assert_allclose(imputer.transform(frame), own, rtol=1e-4, atol=1e-6)
    counted = frame.assign(n=range(80))
    assert RelayImputer(**SMALL).fit(counted).encoder_ is None


@pytest.mark.parametrize("named", [["code"], [1], [False, True]])
def test_numbers_can_be_named_classes(named):
    g = np.random.default_rng(0)
    code = g.integers(3, size=90)
    frame = pd.DataFrame({"x": code + 0.1 * g.normal(size=90), "code": code.astype(float)})
    frame.loc[::7, "code"] = np.nan
    imputer = RelayImputer(**SMALL, categorical_features=named)
    filled = imputer.fit_transform(frame)
    assert imputer.encoder_.kinds_["code"] == "category"
    assert set(filled["code"]) <= {0.0, 1.0, 2.0}
    assert filled["code"].dtype == np.float64


def test_an_embedder_takes_them_as_well(fitted):
    _, frame = fitted
    embedder = RelayEmbedder(latent_dim=2, epochs=5, random_state=0)
    means = embedder.fit_transform(frame)
    assert means.shape == (ROWS, 2)
    assert np.isfinite(embedder.transform(frame.iloc[:4])).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"likelihood": "student_t"}, "likelihood: expected 'gaussian'"),
        ({"missing_values": -1}, "missing_values: expected NaN"),
        ({"categorical_features": "auto"}, "categorical_features: expected 'from_dtype'"),
        ({"categorical_features": ["nothing"]}, "expected columns of X, got 'nothing'"),
        ({"categorical_features": [True]}, "expected 7 of True and False"),
        ({"categorical_features": None}, "could not convert|Cannot cast"),
    ],
)
def test_what_does_not_fit_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        RelayImputer(**SMALL, **settings).fit(holed(whole()))


def test_other_tables_than_those_of_fit_are_refused(fitted):
    imputer, frame = fitted
    with pytest.raises(TypeError, match="expected a pandas DataFrame"):
        imputer.transform(frame.to_numpy())
    with pytest.raises(ValueError, match="without 'weight'"):
        imputer.transform(frame.drop(columns="weight"))
    with pytest.raises(TypeError, match="expected a pandas DataFrame beside columns"):
        RelayImputer(**SMALL, categorical_features=[0]).fit(np.zeros((5, 2)))
