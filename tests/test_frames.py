"""DataFrames of all kinds as tables of a model, and back: observed cells and dtypes as they came."""

import datetime

import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="pandas is not installed")

from rvi_fast.frames import KINDS, FrameEncoder, recognise

N = 60


def columns():
    """name -> (whole column, its kind)."""
    g = np.random.default_rng(0)
    found = {
        "row": (pd.Series(range(1, N + 1)), "text"),
        "float": (pd.Series(g.normal(size=N)), "number"),
        "float32": (pd.Series(g.normal(size=N).astype(np.float32)), "number"),
        "Float64": (pd.Series(pd.array(g.normal(size=N), dtype="Float64")), "number"),
        "Int64": (pd.Series(pd.array(g.integers(0, 9, N), dtype="Int64")), "integer"),
        "UInt8": (pd.Series(pd.array(g.integers(0, 255, N), dtype="UInt8")), "integer"),
        "ints": (pd.Series(g.integers(0, 9, N).tolist(), dtype=object), "integer"),
        "boolean": (pd.Series(pd.array(g.random(N) < 0.5, dtype="boolean")), "boolean"),
        "bools": (pd.Series((g.random(N) < 0.5).tolist(), dtype=object), "boolean"),
        "ordered": (
            pd.Series(
                pd.Categorical(g.choice(["low", "high"], N), ["low", "high", "never"], ordered=True)
            ),
            "category",
        ),
        "string": (pd.Series(g.choice(["x", "y", "z"], N), dtype="string"), "category"),
        "strings": (pd.Series(g.choice(["x", "y"], N), dtype=object), "category"),
        "one": (pd.Series(["same"] * N, dtype=object), "category"),
        "free": (pd.Series([f"text {k}" for k in range(N)], dtype=object), "text"),
        "day": (pd.Series(pd.date_range("2020-02-27", periods=N)), "date"),
        "zoned": (
            pd.Series(pd.date_range("2020-10-24 10:00", periods=N, freq="h", tz="Europe/Berlin")),
            "date",
        ),
        "dates": (
            pd.Series([datetime.date(2020, 1, 1 + k % 28) for k in range(N)], dtype=object),
            "date",
        ),
        "span": (pd.Series(pd.to_timedelta(g.integers(0, 99, N), unit="m")), "duration"),
    }
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return found
    arrow = {
        "int64[pyarrow]": (g.integers(0, 9, N), "integer"),
        "bool[pyarrow]": (g.random(N) < 0.5, "boolean"),
        "string[pyarrow]": (g.choice(["x", "y"], N), "category"),
        "timestamp[ns][pyarrow]": (pd.date_range("2021-01-01", periods=N), "date"),
        "timestamp[ns, tz=Europe/Berlin][pyarrow]": (
            pd.date_range("2021-01-01 10:00", periods=N, freq="h", tz="Europe/Berlin"),
            "date",
        ),
    }
    return found | {
        name: (pd.Series(pd.array(values, dtype=name)), kind)
        for name, (values, kind) in arrow.items()
    }


COLUMNS = columns()


def holed(column):
    """A column without every fifth entry, but for dtypes that have no missing ones."""
    column = column.copy()
    column.iloc[2::5] = None
    return column


@pytest.mark.parametrize("name", COLUMNS)
def test_kinds_are_told_by_dtypes_and_by_what_objects_are(name):
    column, kind = COLUMNS[name]
    assert recognise(column.to_frame(name)) == {name: kind}
    assert kind in KINDS


@pytest.mark.parametrize("name", [name for name in COLUMNS if COLUMNS[name][1] != "text"])
def test_what_is_encoded_comes_back_with_its_dtype(name):
    whole = COLUMNS[name][0].to_frame(name).set_axis(["r"] * N)
    frame = holed(whole[name]).to_frame(name)
    encoder = FrameEncoder({name: COLUMNS[name][1]}).fit(frame)
    x, mask = encoder.encode(frame)
    assert x.dtype == np.float64
    assert np.array_equal(mask[:, 0], frame[name].notna().to_numpy(bool))
    truth, shown = encoder.encode(whole)
    assert shown.all()
    assert np.array_equal(truth[mask], x[mask])
    filled = encoder.decode(truth, frame)
    assert filled[name].dtype == frame[name].dtype
    assert filled.index.equals(frame.index)
    assert [type(own) for own in filled[name]] == [type(own) for own in whole[name]]
    assert (filled[name] == whole[name]).all()
    # nothing is filled in where nothing is said
    untouched = encoder.decode(np.full(frame.shape, np.nan), frame)
    pd.testing.assert_frame_equal(untouched, frame)
    assert frame[name].isna().sum() == N // 5


def test_integers_are_rounded_to_what_their_dtype_holds():
    frame = pd.DataFrame({"n": pd.array([1, None, 250, None], dtype="UInt8")})
    encoder = FrameEncoder().fit(frame)
    filled = encoder.decode(np.array([[0.0], [3.6], [0.0], [300.0]]), frame)
    assert filled["n"].tolist() == [1, 4, 250, 255]
    large = pd.DataFrame({"n": pd.array([2**62, None, 5], dtype="Int64")})
    found = FrameEncoder().fit(large).decode(np.array([[0.0], [1e30], [0.0]]), large)
    assert found["n"][0] == 2**62
    assert 2**62 < found["n"][1] < 2**63


def test_times_are_rounded_to_the_unit_of_those_seen():
    hours = pd.DataFrame({"t": pd.to_datetime(["2020-01-01 03:00", None, "2020-01-02 05:00"])})
    encoder = FrameEncoder().fit(hours)
    between = encoder.encode(hours)[0][[0, 2]].mean() + 0.3
    filled = encoder.decode(np.array([[0.0], [between], [0.0]]), hours)
    assert filled["t"][1] == pd.Timestamp("2020-01-01 16:00")
    # what lies beyond all dates is the last one
    assert encoder.decode(np.array([[0.0], [1e300], [0.0]]), hours)["t"].notna().all()


def test_classes_that_fit_has_not_seen_are_missing_for_the_model_and_stay():
    seen = pd.DataFrame({"c": ["a", "b", "a", "b"] * 3})
    encoder = FrameEncoder().fit(seen)
    assert encoder.laws == [("categorical", 2)]
    new = pd.DataFrame({"c": ["z", None, "b"]})
    mask = encoder.encode(new)[1]
    assert mask[:, 0].tolist() == [False, False, True]
    assert encoder.decode(np.array([[0.0], [1.0], [0.0]]), new)["c"].tolist() == ["z", "b", "b"]
    narrow = pd.DataFrame({"c": pd.Categorical(["a", None, "a"], ["a"])})
    filled = encoder.decode(np.array([[0.0], [1.0], [0.0]]), narrow)["c"]
    assert filled.tolist() == ["a", "b", "a"]
    assert isinstance(filled.dtype, pd.CategoricalDtype)


def test_unused_categories_are_no_classes_and_one_class_is_a_constant():
    frame = pd.DataFrame({"c": pd.Categorical(["a", "b"] * 5, ["a", "b", "c"]), "o": ["x"] * 10})
    assert FrameEncoder().fit(frame).laws == [("categorical", 2), "gaussian"]


def test_text_and_empty_columns_are_no_part_of_a_model():
    frame = pd.DataFrame(
        {
            "name": [f"n{k}" for k in range(30)],
            "empty": pd.Series([None] * 30, dtype=object),
            "id": range(100, 130),
            "x": np.arange(30) ** 2.0,
        }
    )
    encoder = FrameEncoder().fit(frame)
    assert encoder.modelled.tolist() == [False, False, False, True]
    x, mask = encoder.encode(frame)
    assert np.isnan(x[:, :3]).all()
    assert not mask[:, :3].any()
    pd.testing.assert_frame_equal(encoder.decode(np.zeros(frame.shape), frame), frame)


@pytest.mark.parametrize("dtype", ["Int64", object])
def test_integers_of_which_some_are_missing_number_no_rows(dtype):
    years = pd.Series(range(1950, 1950 + N)).astype(dtype)
    assert recognise(years.to_frame("year")) == {"year": "text"}
    assert recognise(holed(years).to_frame("year")) == {"year": "integer"}


def test_columns_may_stand_in_another_order():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "x"]})
    encoder = FrameEncoder().fit(frame)
    assert np.array_equal(encoder.encode(frame[["b", "a"]])[0], encoder.encode(frame)[0])


@pytest.mark.filterwarnings("ignore:Could not infer format")
@pytest.mark.parametrize(
    ("frame", "kinds", "words"),
    [
        (lambda: pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), None, "'a' more than once"),
        (lambda: pd.DataFrame({"a": [1.0]}), {"b": "text"}, "'b'"),
        (lambda: pd.DataFrame({"a": [1.0]}), {"a": "colour"}, "number, integer.*'colour' for 'a'"),
        (lambda: pd.DataFrame({"a": ["x", "y"]}), {"a": "number"}, None),
        (lambda: pd.DataFrame({"a": ["x", "y"]}), {"a": "date"}, None),
        # "no" is not True, and no number is a time
        (lambda: pd.DataFrame({"a": ["yes", "no"]}), {"a": "boolean"}, "True and False, got 'yes'"),
        (lambda: pd.DataFrame({"a": [0, 1, 7]}), {"a": "boolean"}, "True and False, got 7"),
        (lambda: pd.DataFrame({"a": ["2020-01-02"]}), {"a": "date"}, "got '2020-01-02'"),
        (lambda: pd.DataFrame({"a": [1.5, 2.5]}), {"a": "duration"}, "got 1.5"),
    ],
)
def test_what_does_not_fit_is_refused(frame, kinds, words):
    own = frame()
    with pytest.raises(ValueError, match=words or "column 'a'"):
        FrameEncoder(kinds).fit(own).encode(own)
    with pytest.raises(TypeError, match="DataFrame, got list"):
        recognise([[1.0]])


def test_times_with_a_zone_and_without_are_not_mixed():
    zoned = pd.DataFrame({"t": pd.date_range("2020-01-01", periods=3, tz="Europe/Berlin")})
    encoder = FrameEncoder().fit(zoned)
    with pytest.raises(ValueError, match=r"column 't'.*with a time zone"):
        encoder.encode(zoned.assign(t=zoned["t"].dt.tz_localize(None)))
    in_utc = zoned.assign(t=zoned["t"].dt.tz_convert("UTC"))
    assert np.array_equal(encoder.encode(in_utc)[0], encoder.encode(zoned)[0])


def test_other_columns_than_those_of_fit_are_named():
    encoder = FrameEncoder().fit(pd.DataFrame({"a": [1.0], "b": [2.0]}))
    with pytest.raises(ValueError, match="without 'b'"):
        encoder.encode(pd.DataFrame({"a": [1.0]}))
    with pytest.raises(ValueError, match="with 'c'"):
        encoder.encode(pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}))
    with pytest.raises(ValueError, match=r"filled: expected shape \[1, 2\], got \[2, 2\]"):
        encoder.decode(np.zeros((2, 2)), pd.DataFrame({"a": [1.0], "b": [2.0]}))
