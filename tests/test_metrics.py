import json
import tracemalloc

import numpy as np
import pytest
import torch

from rvi_fast.data import Standardizer, elastic

X = np.random.default_rng(0).normal(size=(300, 7)).astype(np.float32)
Y = X + np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
MASK = np.random.default_rng(2).random(X.shape) < 0.6
HOLED = np.where(MASK, X, np.float32("nan"))


def expected(mask):
    error = np.abs(X.astype(np.float64) - Y)[mask]
    return (error + error**2).mean()


def as_tensor(array):
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("make_x", [np.asarray, as_tensor])
@pytest.mark.parametrize("make_y", [np.asarray, as_tensor])
def test_elastic_is_the_mean_over_scored_entries(make_x, make_y, monkeypatch):
    monkeypatch.setattr("rvi_fast.data.tables._CHUNK", 64)
    everything = np.ones_like(MASK)
    assert elastic(make_x(X), make_y(Y)) == pytest.approx(expected(everything), rel=1e-14)
    assert elastic(make_x(HOLED), make_y(Y)) == pytest.approx(expected(MASK), rel=1e-14)
    for mask in (MASK, ~MASK):
        for make_mask in (np.asarray, as_tensor):
            score = elastic(make_x(X), make_y(Y), make_mask(mask))
            assert score == pytest.approx(expected(mask), rel=1e-14)


@pytest.mark.parametrize("trim", [0.0, 0.0004, 0.001, 0.3, 0.9999])
@pytest.mark.parametrize("make", [np.asarray, as_tensor])
def test_trimmed_elastic_leaves_out_the_largest_errors(make, trim, monkeypatch):
    monkeypatch.setattr("rvi_fast.data.tables._CHUNK", 64)
    error = np.sort(np.abs(X.astype(np.float64) - Y)[MASK])
    kept = error[: len(error) - int(trim * len(error))]
    wanted = (kept + kept**2).mean()
    assert elastic(make(X), make(Y), make(MASK), trim=trim) == pytest.approx(wanted, rel=1e-13)


def test_trimming_hides_no_nan_and_has_a_range():
    wild = np.where(MASK, Y, np.nan)
    assert np.isnan(elastic(X, wild, trim=0.9))
    assert elastic(X, wild, MASK, trim=0.1) < elastic(X, wild, MASK)
    for trim in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"trim: expected a share in \[0, 1\), got"):
            elastic(X, Y, trim=trim)


def test_a_reconstruction_is_not_read_where_nothing_is_scored():
    wild = np.where(MASK, Y, np.nan)
    assert elastic(HOLED, wild) == elastic(X, wild, MASK) == elastic(HOLED, Y)
    assert np.isnan(elastic(X, wild))


@pytest.mark.parametrize("make", [np.asarray, as_tensor])
def test_bytes_are_pixels(make):
    pixels = make(np.array([[0, 255], [51, 102]], np.uint8))
    shares = make(np.array([[0, 1], [0.2, 0.4]]))
    assert elastic(pixels, shares) == pytest.approx(0, abs=1e-15)
    assert elastic(shares, pixels) == pytest.approx(0, abs=1e-15)
    assert elastic(pixels, np.zeros((2, 2))) == pytest.approx((2 + 0.24 + 0.56) / 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_elastic_of_any_float_dtype_is_summed_in_float64(dtype):
    x, y = as_tensor(X).to(dtype), as_tensor(Y).to(dtype).requires_grad_()
    error = (x.double() - y.detach().double()).abs()
    assert elastic(x, y) == pytest.approx((error + error**2).mean().item(), rel=1e-14)


def test_elastic_takes_views_and_read_only_arrays():
    frozen = np.broadcast_to(np.float32(1), X.shape)
    assert elastic(frozen, frozen[::-1], MASK[::-1]) == 0


def test_elastic_makes_no_float64_copy_of_the_table():
    x = np.zeros((40_000, 784), np.uint8)
    tracemalloc.start()
    elastic(x, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes  # the copy would be eight times that


@pytest.mark.gpu
def test_elastic_on_a_gpu():
    x, y, mask = (as_tensor(array).cuda() for array in (X, Y, MASK))
    assert elastic(x, y, mask) == pytest.approx(expected(MASK), rel=1e-12)
    assert elastic(X, y, MASK) == pytest.approx(expected(MASK), rel=1e-12)


def test_nan_where_the_mask_says_scored_is_located(monkeypatch):
    monkeypatch.setattr("rvi_fast.data.tables._CHUNK", 64)
    x = X.copy()
    x[123, 4] = np.nan
    mask = np.ones_like(MASK)
    for call in (lambda: elastic(x, Y, mask), lambda: Standardizer.fit(x, mask)):
        with pytest.raises(ValueError, match="NaN where the mask is True in row 123, column 4"):
            call()


def test_elastic_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[300, 7\] and \[300, 1\]"):
        elastic(X, Y[:, :1])
    with pytest.raises(ValueError, match=r"\[300\] and \[300\]"):
        elastic(X[:, 0], Y[:, 0])
    with pytest.raises(ValueError, match=r"mask: expected x's shape \[300, 7\], got \[7\]"):
        elastic(X, Y, MASK[0])
    with pytest.raises(TypeError, match="mask: expected bool, got float32"):
        elastic(X, Y, MASK.astype(np.float32))
    for nothing in ((X, Y, MASK & False), (X[:0], Y[:0]), (X[:, :0], Y[:, :0]), (X * np.nan, Y)):
        with pytest.raises(ValueError, match="nothing to score"):
            elastic(*nothing)


def test_standardised_observed_entries_have_mean_0_and_std_1(monkeypatch):
    monkeypatch.setattr("rvi_fast.data.tables._CHUNK", 64)
    table = HOLED * np.float32(3) + np.float32(1000)
    scaler = Standardizer.fit(table)
    np.testing.assert_allclose(scaler.mean, np.nanmean(table.astype(float), axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, np.nanstd(table.astype(float), axis=0), rtol=1e-9)
    scaled = scaler.transform(table)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(scaled), ~MASK)
    np.testing.assert_allclose(np.nanmean(scaled, axis=0, dtype=float), 0, atol=1e-6)
    np.testing.assert_allclose(np.nanstd(scaled, axis=0, dtype=float), 1, atol=1e-6)
    np.testing.assert_allclose(scaler.inverse(scaled), table, rtol=1e-6)


def test_a_mask_hides_entries_from_the_fit():
    hidden, holed = Standardizer.fit(np.where(MASK, X, 1e6), MASK), Standardizer.fit(HOLED)
    np.testing.assert_array_equal(hidden.mean, holed.mean)
    np.testing.assert_array_equal(hidden.std, holed.std)


def test_constant_and_unseen_features_come_back_as_one_number():
    table = np.full((1000, 3), 0.1)
    table[:, 1] = np.nan
    table[1:, 2] = np.nan
    scaler = Standardizer.fit(table)
    assert scaler.std.tolist() == [0, 0, 0]
    assert scaler.mean.tolist() == [table[0, 0], 0, table[0, 0]]
    assert scaler.transform(table)[0].tolist()[::2] == [0, 0]
    drawn = np.random.default_rng(0).normal(size=(5, 3))
    assert (scaler.inverse(drawn) == scaler.mean.astype(np.float32)).all()
    empty = Standardizer.fit(np.empty((0, 2)))
    assert (empty.mean.tolist(), empty.std.tolist()) == ([0, 0], [0, 0])


def test_a_standardizer_survives_json():
    scaler = Standardizer.fit(X)
    again = Standardizer.from_dict(json.loads(json.dumps(scaler.to_dict())))
    np.testing.assert_array_equal(again.mean, scaler.mean)
    np.testing.assert_array_equal(again.std, scaler.std)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mean": [0.0]}, "expected a dict of mean and std"),
        ({"mean": [0.0], "std": [1.0, 1.0]}, r"shapes \[1\], \[2\] and \[2\]"),
        ({"mean": [0.0], "std": [-1.0]}, "std: expected finite numbers >= 0"),
        ({"mean": [0.0], "std": [1.0], "limit": [0.0]}, "limit: expected positive"),
        ({"mean": [float("nan")], "std": [1.0]}, "mean: expected finite"),
    ],
)
def test_a_damaged_standardizer_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Standardizer.from_dict(values)


def test_standardizer_refuses_other_shapes_and_inf():
    with pytest.raises(ValueError, match=r"expected \[N, 7\], got shape \[300, 6\]"):
        Standardizer.fit(X).transform(X[:, :6])
    with pytest.raises(ValueError, match=r"expected \[N, D\], got shape \[7\]"):
        Standardizer.fit(X[0])
    with pytest.raises(ValueError, match="infinite in row 0, column 1"):
        Standardizer.fit(np.array([[0, np.inf]]))
