"""Which data a model was trained on: the same numbers in any form match, any other table does not."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import rvi_fast
from rvi_fast import fit, impute, infer, models
from rvi_fast.training import export
from rvi_fast.training.inputs.fingerprint import added, fingerprint, same

N, D = 300, 5
FULL = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.8
X = FULL.masked_fill(~MASK, torch.nan)
PIXELS = (FULL.abs() * 60).to(torch.uint8)


class Rows(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row]


def mapped(path, values):
    np.save(path, values)
    return np.load(path, mmap_mode="r")


def make():
    torch.manual_seed(0)
    return models.rvi(N, D, latent_dim=2, hidden=(), groups=(3,))


def trained(x, **options):
    model = make()
    options = {"epochs": 1, "eval_every": 0, "progress": False} | options
    fit(model, x, **options)
    return model


FORMS = {
    "numpy": lambda p: (X.numpy(), None),
    "float64": lambda p: (X.double(), None),
    "mask": lambda p: (FULL, MASK),
    "mask over inf": lambda p: (FULL.masked_fill(~MASK, torch.inf).numpy(), MASK.numpy()),
    "negative zero and another nan": lambda p: (X.masked_fill(X.isnan(), -torch.nan), None),
    "map": lambda p: (mapped(p, X.numpy()), None),
    "map and mask": lambda p: (mapped(p, FULL.numpy()), MASK),
    "data set": lambda p: (Rows(X), None),
    "big endian": lambda p: (X.numpy().astype(">f4"), None),
    "strided": lambda p: (torch.stack((X, X), 2)[..., 1], None),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_same_numbers_in_any_form_are_the_training_data(form, tmp_path):
    model = trained(X)
    x, mask = form(tmp_path / "x.npy")
    if isinstance(x, Dataset):
        assert same(model.trained_on, fingerprint(x, mask, D))
    else:
        filled, wanted = impute(model, x, mask=mask), impute(model, X)
        assert torch.equal(filled.to(wanted.dtype), wanted)


@pytest.mark.parametrize("mask", [None, MASK])
def test_pixels_under_the_mask_do_not_count_and_a_full_mask_is_none(mask):
    other = PIXELS if mask is None else torch.where(mask, PIXELS, 7)
    first = fingerprint(PIXELS, mask, D)
    assert same(first, fingerprint(other, torch.ones_like(MASK) if mask is None else mask, D))
    assert not same(first, fingerprint(PIXELS, ~MASK, D))
    assert not same(first, fingerprint(PIXELS.float(), mask, D))


def swapped(x):
    x = x.clone()
    x[[3, 250]] = x[[250, 3]]
    return x


OTHERS = {
    "sorted": lambda: X[X[:, 0].argsort()],
    "two rows": lambda: swapped(X),
    "one entry": lambda: X + 1e-6 * ((torch.arange(N) == 9)[:, None] & (torch.arange(D) == 2)),
    "columns": lambda: X.flip(1),
    "one more missing": lambda: X.masked_fill((torch.arange(N) == 5)[:, None], torch.nan),
}


@pytest.mark.parametrize("storage", ["device", "directory"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_rows_are_refused_with_what_to_do(other, storage, tmp_path):
    model = trained(X)
    if storage == "directory":
        fit(make(), X, epochs=1, progress=False, run_dir=tmp_path / "run")
        model = rvi_fast.load(tmp_path / "run")
        export(model, tmp_path / "model.safetensors")
        model = rvi_fast.load(tmp_path / "model.safetensors")
    impute(model, X)
    with pytest.raises(
        ValueError, match=r"x: expected the rows .* in their order.*posterior=infer"
    ):
        impute(model, other())
    assert impute(model, other(), posterior=infer(model, other(), steps=1)).shape == (N, D)
    assert impute(model, other(), posterior=model.posterior).shape == (N, D)


def test_differences_that_vanish_in_single_precision_count():
    """Times of a day in seconds since 1970: float32 knows them to two minutes."""
    x = 1.7e9 + torch.arange(N * D, dtype=torch.float64).reshape(N, D) / 50
    assert len(x.float().unique()) == 1
    assert not same(fingerprint(x, None, D), fingerprint(x.flip(0), None, D))
    assert same(fingerprint(x, None, D), fingerprint(x.float(), None, D))


def test_parts_add_up_and_pieces_do_not_show(monkeypatch):
    whole = fingerprint(X.double(), None, D)
    parts = [
        fingerprint(X[first:stop].double(), None, D, first)
        for first, stop in ((0, 7), (7, 7), (7, 299), (299, N))
        if stop > first
    ]
    assert added(parts) == whole
    monkeypatch.setattr("rvi_fast.training.inputs.fingerprint._CHUNK", 23)
    assert fingerprint(X.double(), None, D) == whole


def test_every_entry_of_a_table_counts():
    whole, values = fingerprint(X, None, D), X.clone()
    for row in range(N):
        for column in range(D):
            before = values[row, column].clone()
            values[row, column] = torch.nextafter(before.nan_to_num(), torch.tensor(9.0))
            assert not same(whole, fingerprint(values, None, D)), (row, column)
            values[row, column] = before


def test_three_changed_rows_of_a_data_set_are_not_resumed(tmp_path):
    trained(Rows(X), run_dir=tmp_path)
    changed = X.clone()
    changed[[11, 120, 290]] += 1
    with pytest.raises(ValueError, match=r"data: expected those of .*, row for row"):
        trained(Rows(changed), run_dir=tmp_path, epochs=2, resume=True)
    trained(Rows(X), run_dir=tmp_path, epochs=2, resume=True)


def test_a_resume_of_a_trained_object_without_a_checkpoint_is_refused(tmp_path):
    model = trained(X)
    with pytest.raises(
        ValueError, match=r"resume: expected a checkpoint in .* that has been trained"
    ):
        fit(model, X, run_dir=tmp_path, resume=True, progress=False)
    fit(model, X, epochs=1, run_dir=tmp_path, progress=False)  # to train it further is no resume


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_column_of_a_wider_table_is_that_column(dtype):
    wide = np.arange(12, dtype=dtype).reshape(4, 3)
    own = fingerprint(wide[:, 1:2], None, 1, 0)
    assert own == fingerprint(wide[:, 1:2].copy(), None, 1, 0)
