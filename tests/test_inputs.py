"""What is no table of numbers is refused at the door, by name, row and column."""

import numpy as np
import pytest
import torch

from rvi_fast import fit, impute, infer, models
from rvi_fast.training.inputs import prepare as inputs
from rvi_fast.training.inputs.prepare import prepare

N, D = 20, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.6
PIXELS = (X * 40 + 128).to(torch.uint8)
DOORS = {
    "prepare": prepare,
    "fit": lambda model, x, mask=None: fit(model, x, mask=mask, epochs=1, progress=False),
    "infer": lambda model, x, mask=None: infer(model, x, mask=mask, steps=1),
    "impute": lambda model, x, mask=None: impute(model, x, mask=mask),
}


@pytest.fixture
def model():
    return models.rvi(N, D, latent_dim=2, hidden=(), groups=(3,))


def with_entry(row, column, value):
    x = X.clone()
    x[row, column] = value
    return x


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_infinity_is_named_with_row_and_column_and_nothing_is_trained(model, door, value):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"x: expected finite .* got {value} at row 17, column 2"):
        door(model, with_entry(17, 2, value))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("chunk", [1, 7, 8192])
def test_the_first_wrong_entry_that_the_mask_says_is_observed_is_named(
    model, monkeypatch, value, chunk
):
    monkeypatch.setattr(inputs, "_CHUNK", chunk)
    x = with_entry(13, 1, value)
    x[5] = value  # hidden
    mask = torch.ones(N, D, dtype=torch.bool)
    mask[5] = False
    with pytest.raises(ValueError, match=f"got {value} at row 13, column 1, where the mask says"):
        prepare(model, x, mask)
    mask[13, 1] = False
    held = prepare(model, x, mask).x
    assert torch.equal(held.isnan(), ~mask)
    assert torch.equal(held[mask], x[mask])


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 1e39), (torch.float16, -1e5)])
def test_a_number_that_the_model_cannot_hold_does_not_become_infinite(model, dtype, large):
    x = X.double()
    x[17, 2] = large
    with pytest.raises(ValueError, match=r"x: .* row 17, column 2"):
        prepare(model.to(dtype), x)
    assert not prepare(model, x, x != large).x.isinf().any()


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (X.tolist(), TypeError, "x: expected a tensor or a numpy array, got list"),
        (None, TypeError, "x: expected a tensor or a numpy array, got NoneType"),
        (X.numpy().astype(object), TypeError, "x: expected floating point.*got object"),
        (X.numpy().astype(str), TypeError, "x: expected floating point.*got <U"),
        (X.numpy().astype(np.int64), TypeError, "x: expected floating point.*got int64"),
        (X.numpy().astype(np.uint16), TypeError, "x: expected floating point.*uint16"),
        (X.numpy().astype(np.complex64), TypeError, "x: expected floating point.*got complex64"),
        (
            X.numpy().astype(np.longdouble),
            TypeError,
            "x: expected floating point.*got (long|float)",
        ),
        (MASK, TypeError, "x: expected floating point or uint8, got torch.bool"),
        (X.to(torch.int32), TypeError, "x: expected floating point or uint8, got torch.int32"),
        (X.to_sparse(), TypeError, "x: .*sparse"),
        (X[0], ValueError, r"x: expected shape \[N, 3\].*got \[3\]"),
        (X[None], ValueError, r"x: expected shape \[N, 3\].*got \[1, 20, 3\]"),
        (X[:, :2], ValueError, r"x: expected shape \[N, 3\].*got \[20, 2\]"),
        (X[:0], ValueError, r"x: expected shape \[N, 3\] with N >= 1, got \[0, 3\]"),
        (torch.tensor(1.0), ValueError, r"x: expected shape \[N, 3\].*got \[\]"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(model, x, error, words):
    with pytest.raises(error, match=words):
        prepare(model, x)


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (MASK.tolist(), TypeError, "mask: expected a tensor or a numpy array, got list"),
        (MASK.to(torch.uint8), TypeError, "mask: expected dtype bool .*got torch.uint8"),
        (MASK.numpy().astype(np.float32), TypeError, "mask: expected dtype bool .*float32"),
        (MASK.numpy().astype(np.int64), TypeError, "mask: expected .*bool.*int64"),
        (MASK.numpy().astype(object), TypeError, "mask: expected .*bool.*object"),
        (MASK[:19], ValueError, r"mask: expected shape \[20, 3\], got \[19, 3\]"),
        (MASK[0], ValueError, r"mask: expected shape \[20, 3\], got \[3\]"),
    ],
)
@pytest.mark.parametrize("x", [X, PIXELS], ids=["float", "uint8"])
def test_what_is_no_mask_of_the_table_is_refused(model, x, mask, error, words):
    with pytest.raises(error, match=words):
        prepare(model, x, mask)


def test_another_number_of_rows_than_the_model_has_is_refused(model):
    with pytest.raises(ValueError, match="x: expected 20 rows, one per datapoint, got 19"):
        DOORS["fit"](model, X[:19])


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("x", [X, PIXELS, X * float("nan")], ids=["float", "uint8", "nan"])
def test_rows_and_columns_without_an_observed_entry_work(model, door, x):
    mask = MASK & ~x.isnan()
    mask[[0, 7]] = False
    mask[:, 1] = False
    result = door(model, x, mask)
    if isinstance(result, dict):
        assert np.isfinite(result["loss"]).all()
    if isinstance(result, torch.Tensor):
        assert result.isfinite().all()


def test_uint8_stays_uint8_and_floats_take_the_dtype_of_the_model(model):
    held = prepare(model, PIXELS, MASK.numpy())
    assert torch.equal(held.x, PIXELS)
    assert torch.equal(held.mask, MASK)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(prepare(model, X.to(dtype)).x, X.to(dtype).float())
    assert prepare(model.double(), X).x.dtype == torch.float64


def test_nan_beside_the_masked_entries_of_a_masked_array_is_missing_too(model):
    row, column = MASK.nonzero()[3].tolist()
    x = with_entry(row, column, torch.nan)
    held = prepare(model, np.ma.masked_array(x.numpy(), ~MASK.numpy()))
    assert torch.equal(held.x.isnan(), ~MASK | x.isnan())
    assert torch.equal(held.x[~held.x.isnan()], x[~held.x.isnan()])


def test_a_fingerprint_tells_any_entry_any_mask_and_the_dtype_apart(model):
    other_mask = MASK.clone()
    other_mask[N - 1, D - 1] ^= True
    tables = [(X,), (with_entry(19, 2, 0.0),), (with_entry(0, 0, float("nan")),), (PIXELS,)]
    tables += [(X, MASK), (X, other_mask), (PIXELS, MASK), (PIXELS, other_mask)]
    prints = [prepare(model, *table).fingerprint() for table in tables]
    assert len(set(prints)) == len(prints)
    assert prepare(model, X.numpy().astype(">f8")[::-1][::-1]).fingerprint() == prints[0]
    assert prepare(model, torch.where(MASK, X, torch.nan)).fingerprint() == prints[4]


def test_a_fingerprint_reads_every_row_of_a_long_table(model):
    x = torch.zeros(5000, D)
    before = prepare(model, x).fingerprint()
    for row in (1, 2501, 4999):
        assert prepare(model, x.index_fill(0, torch.tensor([row]), 1.0)).fingerprint() != before
