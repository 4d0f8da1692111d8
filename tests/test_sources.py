"""Data that are not in memory train as the same data in memory do, and nothing is left behind."""

import threading

import numpy as np
import pytest
import torch
from helpers import Items
from torch.utils.data import Dataset, IterableDataset

from rvi_fast import fit, impute, infer, models
from rvi_fast.training.inputs import feed, sources
from rvi_fast.training.inputs.prepare import prepare

N, D = 53, 5
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
X[torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
PIXELS = (X.nan_to_num() * 40 + 128).to(torch.uint8)
MASK = ~X.isnan()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("rvi_fast")]


def make():
    torch.manual_seed(3)
    return models.rvi(N, D, latent_dim=3, hidden=(4,), groups=(4,))


def run(model, x, **options):
    return fit(model, x, **{"epochs": 3, "batch_size": 8, "lr": 0.02, "progress": False} | options)


def mapped(path, values, mode="r"):
    np.save(path, values)
    return np.load(path, mmap_mode=mode)


class Rows(Dataset):
    """Items of one kind; `__getitems__` where asked for."""

    def __init__(self, x, kind):
        self.x, self.kind, self.read = x, kind, []
        if kind == "getitems":
            self.__getitems__ = lambda rows: self.read.append(len(rows)) or [x[r] for r in rows]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        if self.kind == "getitems":
            raise AssertionError("one by one")
        if self.kind == "numpy":
            return self.x[row].numpy()
        return (row, self.x[row]) if self.kind == "pair" else self.x[row]


def assert_same_run(x, mask, held, held_mask, **options):
    model, expected = make(), make()
    history = run(model, x, mask=mask, **options)
    assert history == run(expected, held, mask=held_mask, **options)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(impute(model, x, mask=mask), impute(expected, held, mask=held_mask))
    new, held_new = (
        infer(model, x, mask=mask, steps=4),
        infer(expected, held, mask=held_mask, steps=4),
    )
    assert torch.equal(new.rows, held_new.rows)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("block_rows", [None, 7])
def test_a_mapped_table_trains_as_in_memory(tmp_path, dtype, block_rows):
    x = mapped(tmp_path / "x.npy", X.numpy().astype(dtype))
    assert sources.is_mapped(x)
    held = torch.from_numpy(x.astype(x.dtype.newbyteorder("=")))
    assert_same_run(x, None, held, None, block_rows=block_rows)


@pytest.mark.parametrize("table", [X.nan_to_num(), PIXELS], ids=["float", "uint8"])
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("mapped_mask", [False, True])
def test_a_mask_may_be_mapped_as_well(tmp_path, table, mode, mapped_mask):
    x = mapped(tmp_path / "x.npy", table.numpy(), mode)
    mask = mapped(tmp_path / "mask.npy", MASK.numpy()) if mapped_mask else MASK
    assert_same_run(x, mask, table, MASK, block_rows=16)
    assert torch.equal(torch.from_numpy(np.array(x)), table)


def test_what_was_written_to_a_private_map_is_not_lost(tmp_path):
    big = torch.zeros(20_000, D)  # more than a page
    x = mapped(tmp_path / "x.npy", big.numpy(), "c")
    x[:] = 1.0
    source = sources.MappedArray(x, None)
    source.release(0, len(x))
    assert (x == 1).all()


@pytest.mark.parametrize("kind", ["getitems", "pair", "plain", "numpy"])
def test_a_data_set_trains_as_in_memory(kind):
    data = Rows(X, kind)
    assert_same_run(data, None, X, None)
    assert kind != "getitems" or max(data.read) >= 8


def test_only_rows_in_one_piece_count_as_mapped(tmp_path):
    x = mapped(tmp_path / "x.npy", X.numpy())
    assert sources.is_mapped(x[3:])
    assert sources.is_mapped(x[::2])
    assert sources.is_mapped(x[:, 1:])
    assert not sources.is_mapped(x[:, ::2])
    assert not sources.is_mapped(x + 0)
    assert not sources.is_mapped(mapped(tmp_path / "f.npy", np.asfortranarray(X.numpy())))
    assert_same_run(x[::-1], None, X.flip(0), None)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("table", [X, PIXELS], ids=["float", "uint8"])
def test_a_fingerprint_does_not_depend_on_where_the_table_is(tmp_path, monkeypatch, table, mask):
    x = mapped(tmp_path / "x.npy", table.numpy())
    monkeypatch.setattr(sources, "_CHUNK", 7)
    expected = prepare(make(), table, mask).fingerprint()
    assert prepare(make(), x, mask).fingerprint() == expected


def test_a_fingerprint_of_a_data_set_reads_some_rows():
    prints = {
        prepare(make(), Rows(x, "plain")).fingerprint() for x in (X, X * 2, X[:52], X.double())
    }
    assert len(prints) == 4


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_wrong_entry_of_a_map_is_named_before_anything_is_trained(tmp_path, monkeypatch, value):
    monkeypatch.setattr(sources, "_CHUNK", 10)
    table = X.nan_to_num()
    table[17, 2] = value
    x, mask = mapped(tmp_path / "x.npy", table.numpy()), torch.ones(N, D, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"got {value} at row 17, column 2, where the mask says"):
        run(make(), x, mask=mask)
    mask[17, 2] = False
    run(make(), x, mask=mask, epochs=1)


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (lambda row: 1 / (row != 31) and X[row], ZeroDivisionError, "division by zero"),
        (lambda row: X[row, :4], ValueError, r"x\[\d+\]: expected shape \[5\], got \[4\]"),
        (lambda row: X[row].long(), TypeError, "floating point or uint8, item .* torch.int64"),
        (lambda row: (row + 1, X[row]), ValueError, r"expected item .* to be x \[5\], \(x,\)"),
        (lambda row: (row, X[row], 0), ValueError, r"expected item .* to be x \[5\], \(x,\)"),
        (lambda row: X[row] / (row != 31), ValueError, "got -?inf at row 31, column"),
        (lambda row: X[row].to([torch.float32, torch.float64][row % 2]), TypeError, "one dtype"),
    ],
)
def test_what_goes_wrong_in_reading_is_raised_in_the_step(item, error, words):
    with pytest.raises(error, match=words):
        run(make(), Items(N, item))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


def test_a_data_set_takes_no_mask_and_has_the_rows_of_the_model():
    with pytest.raises(ValueError, match="mask: expected None beside a Dataset"):
        run(make(), Rows(X, "plain"), mask=MASK)
    with pytest.raises(ValueError, match="x: expected 53 rows, one per datapoint, got 52"):
        run(make(), Rows(X[:52], "plain"))
    with pytest.raises(TypeError, match="map-style Dataset"):
        run(make(), Stream())


@pytest.mark.parametrize("stops_at", [0, 3])
def test_the_reader_ends_with_the_run_also_after_an_exception(stops_at):
    model, calls = make(), []

    def stop(*_):
        calls.append(1 / (len(calls) != stops_at))

    model.decoder.register_forward_hook(stop)
    with pytest.raises(ZeroDivisionError):
        run(model, Rows(X, "plain"))


def test_no_more_than_a_few_batches_are_read_ahead():
    data, model, ahead = Rows(X, "getitems"), make(), []

    def look(*_):
        # the first call was for the fingerprint
        ahead.append(len(data.read) - 1 - len(ahead))

    model.decoder.register_forward_hook(look)
    run(model, data, batch_size=2, epochs=1, eval_every=0, standardize=False)
    assert max(ahead) <= feed.AHEAD + 2


def test_a_run_on_a_map_goes_on_with_the_table_in_memory(tmp_path):
    x, expected = mapped(tmp_path / "x.npy", X.numpy()), make()
    history = run(expected, X, epochs=4)
    run(make(), x, epochs=2, run_dir=tmp_path / "run")
    model = make()
    assert run(model, X, epochs=4, run_dir=tmp_path / "run", resume=True) == history
    assert torch.equal(model.posterior.rows, expected.posterior.rows)
