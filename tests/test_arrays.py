"""Arrays in HDF5 files and zarr stores: read in pieces, trained on, and filled in."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rvi_fast
from rvi_fast import cli, data
from rvi_fast.data import DataError, StoredArray
from rvi_fast.data.arrays import stored, write_stored, zarr_store
from rvi_fast.training import impute_array, infer_array

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
zarr = pytest.importorskip("zarr", reason="zarr is not installed")

N, D = 50, 4


def numbers(rows=N, dtype=np.float32):
    generator = np.random.default_rng(0)
    z = generator.normal(size=(rows, 1))
    x = (z * [1.0, -2.0, 0.5, 3.0] + 0.1 * generator.normal(size=(rows, D))).astype(dtype)
    x[generator.random(x.shape) < 0.2] = np.nan
    return x


def hdf5(path, array, name="x", **options):
    with h5py.File(path / "table.h5", "w") as file:
        file.create_dataset(name, data=array, **options)
    return path / "table.h5"


def zarr_of(version):
    def write(path, array, name=None, chunks=(16, 3)):
        place = path / f"table{version}.zarr"
        options = {"shape": array.shape, "chunks": chunks, "dtype": array.dtype}
        if name is None:
            held = zarr.create_array(str(place), zarr_format=version, **options)
        else:
            group = zarr.open_group(str(place), mode="a", zarr_format=version)
            held = group.create_array(name, **options)
        held[...] = array
        return place

    return write


KINDS = {"hdf5": hdf5, "zarr 2": zarr_of(2), "zarr 3": zarr_of(3)}


@pytest.fixture
def pieces(monkeypatch):
    monkeypatch.setattr(stored, "_ROWS", 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8])
def test_the_map_holds_the_numbers_of_the_array(tmp_path, pieces, kind, dtype):
    x = (
        np.nan_to_num(numbers(), nan=7).astype(dtype)
        if dtype in (np.int16, np.uint8)
        else numbers()
    )
    table = StoredArray(KINDS[kind](tmp_path, x.astype(dtype)))
    assert (table.num_rows, table.features, table.dtype) == (N, ("0", "1", "2", "3"), dtype)
    got = table.mapped(tmp_path / "cache")
    assert isinstance(got, np.memmap)
    assert got.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(got, x.astype(dtype).astype(got.dtype))
    np.testing.assert_array_equal(table.mapped(tmp_path / "cache", rows=range(9, 31)), got[9:31])
    sizes = [len(block) for _, block in table.chunks()]
    assert max(sizes) <= 16
    assert sum(sizes) == N


def test_images_are_rows_and_columns_are_left_out(tmp_path):
    images = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
    table = StoredArray(hdf5(tmp_path, images, chunks=(2, 3, 2)), ignore=[1, "4"])
    assert table.features == ("0", "2", "3", "5")
    assert table.carried == (("1", "left out"), ("4", "left out"))
    wanted = images.reshape(5, 6)[:, [0, 2, 3, 5]]
    np.testing.assert_array_equal(table.mapped(tmp_path / "cache"), wanted)
    for ignore in (["6"], ["a"], range(6)):
        with pytest.raises(ValueError, match="ignore: expected"):
            StoredArray(tmp_path / "table.h5", ignore=ignore)


@pytest.mark.parametrize("kind", KINDS)
def test_one_table_of_several_is_named(tmp_path, kind):
    x = numbers()
    for name, array in {"group/x": x, "y": x[:9], "words": np.arange(3)}.items():
        if kind == "hdf5":
            with h5py.File(tmp_path / "table.h5", "a") as file:
                file[name] = array
            place = tmp_path / "table.h5"
        else:
            place = KINDS[kind](tmp_path, array, name, chunks=(8,) * array.ndim)
    for name in ("group/x", "/group/x", "group/x/"):
        assert StoredArray(f"{place}:{name}").name == "/group/x"
    assert StoredArray(f"{place}:y").num_rows == 9
    with pytest.raises(DataError, match=r"/group/x \[50, 4\] float32, .*/y \[9, 4\]|/y .*/group/x"):
        StoredArray(place)
    with pytest.raises(DataError, match=r"array that is there, got /z; it has /"):
        StoredArray(f"{place}:z")
    with pytest.raises(DataError, match=r"expected numbers \[N, D\].* got /words \[3\]"):
        StoredArray(f"{place}:words")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected a file \.h5, \.hdf5 or \.zarr"):
        StoredArray(tmp_path / "table.csv")
    for name in ("none.h5", "none.zarr"):
        with pytest.raises(DataError, match="no such file"):
            StoredArray(tmp_path / name)
    (tmp_path / "noise.h5").write_bytes(os.urandom(5000))
    with pytest.raises(DataError, match=r"noise\.h5"):
        StoredArray(tmp_path / "noise.h5")
    (tmp_path / "noise.zarr").mkdir()
    (tmp_path / "noise.zarr" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match=r"noise\.zarr"):
        StoredArray(tmp_path / "noise.zarr")
    x = numbers()
    x[31, 2] = np.inf
    table = StoredArray(hdf5(tmp_path, x))
    with pytest.raises(DataError, match=r"table\.h5: /x: row 31, column 2: infinite as float32"):
        table.mapped(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_nothing_is_unpickled_and_no_other_file_is_read(tmp_path):
    place = KINDS["zarr 2"](tmp_path, numbers())
    described = json.loads((place / ".zarray").read_text())
    described["compressor"] = {"id": "pickle", "protocol": 5}
    (place / ".zarray").write_text(json.dumps(described))
    with pytest.raises(DataError, match="pickle"):
        StoredArray(place)
    codecs = [{"name": "numcodecs.pickle", "configuration": {}}]
    described = SimpleNamespace(to_dict=lambda: {"codecs": codecs, "attributes": {}})
    said = zarr_store.refused(SimpleNamespace(metadata=described))
    assert said == "is pickled, and nothing is unpickled"
    noted = SimpleNamespace(to_dict=lambda: {"codecs": [], "attributes": {"note": "pickle"}})
    assert zarr_store.refused(SimpleNamespace(metadata=noted)) is None
    hdf5(tmp_path, numbers())
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["link"] = h5py.ExternalLink("table.h5", "x")
        layout = h5py.VirtualLayout((N, D), "f4")
        layout[:] = h5py.VirtualSource("table.h5", "x", (N, D))
        file.create_virtual_dataset("virtual", layout)
    with pytest.raises(DataError, match="/virtual lies in another file"):
        StoredArray(tmp_path / "links.h5")
    with pytest.raises(DataError, match="that is there, got /link"):
        StoredArray(f"{tmp_path / 'links.h5'}:link")


@pytest.mark.parametrize(("module", "extra"), [("h5py", "hdf5"), ("zarr", "zarr")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, extra):
    place = (hdf5 if module == "h5py" else zarr_of(3))(tmp_path, numbers())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "rvi-fast\[{extra}\]"'):
        StoredArray(place)


def test_extras_are_imported_only_when_needed():
    code = "import sys, rvi_fast.cli; print({'h5py', 'zarr'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_is_converted_once_and_again_when_it_has_changed(
    tmp_path, pieces, monkeypatch, kind
):
    cache, place = tmp_path / "cache", KINDS[kind](tmp_path, numbers())
    count = []

    def ends(self, first, block):
        count.append(first)
        if len(count) == 3:
            raise KeyboardInterrupt
        return block

    with monkeypatch.context() as patched:
        patched.setattr(StoredArray, "numbers", ends)
        with pytest.raises(KeyboardInterrupt):
            StoredArray(place).mapped(cache)
    assert not list(cache.iterdir())
    first = StoredArray(place).mapped(cache)
    with monkeypatch.context() as patched:
        patched.setattr(StoredArray, "chunks", None)
        again = StoredArray(place).mapped(cache)
    np.testing.assert_array_equal(first, again)
    if kind == "hdf5":
        with h5py.File(place, "a") as file:
            file["x"][3, 1] = 9.0
    else:
        zarr.open(str(place), mode="a")[3, 1] = 9.0
    os.utime(place if kind == "hdf5" else next(p for p in place.rglob("*0") if p.is_file()), (1, 1))
    assert StoredArray(place).mapped(cache)[3, 1] == 9.0


@pytest.fixture(scope="module")
def model():
    own = rvi_fast.models.rvi(N, D, latent_dim=2, hidden=(8,), groups=(4,))
    rvi_fast.fit(own, numbers(), epochs=5, progress=False)
    return own


OUTS = ("out.npy", "out.h5", "out.h5:/a/b", "out.zarr", "out.zarr:a/b")


def read(place):
    return np.load(place) if str(place).endswith("npy") else StoredArray(place)._opened()[:]


@pytest.mark.parametrize("name", OUTS)
def test_gaps_are_filled_in_and_observed_entries_keep_their_bits(tmp_path, pieces, model, name):
    wide = np.concatenate((numbers(dtype=np.float64), np.full((N, 1), 0.1)), axis=1)
    source = StoredArray(hdf5(tmp_path, wide), ignore=[4])
    out = f"{tmp_path}/{name}"
    done = impute_array(model, source, out, steps=4, bounds=(-1, 1), unseen=["2"], progress=False)
    got, x = read(out), wide[:, :4]
    gaps = np.isnan(x)
    assert done == (1, 1, N, int(gaps[:, [0, 1, 3]].sum()))
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got[:, :4][~gaps], x[~gaps])
    np.testing.assert_array_equal(got[:, 4], wide[:, 4])
    assert np.isnan(got[gaps[:, 2], 2]).all()
    shown = x.copy()
    shown[:, 2] = np.nan
    posterior = rvi_fast.infer(model, shown, steps=4, shared_noise=True)
    wanted = rvi_fast.impute(model, shown, posterior=posterior).numpy().clip(-1, 1)
    np.testing.assert_allclose(
        got[:, 0][gaps[:, 0]], wanted[:, 0][gaps[:, 0]], rtol=1e-5, atol=1e-6
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    infer_array(model, source, f"{tmp_path}/latents.npy", steps=4, unseen=["2"], progress=False)
    latents = torch.cat((posterior.mean(), posterior.std()), 1).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "latents.npy"), latents, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["out.npy", "out.h5", "out.zarr"])
def test_what_was_killed_goes_on_where_it_was(tmp_path, pieces, monkeypatch, model, name):
    source, out = hdf5(tmp_path, numbers()), f"{tmp_path}/{name}"
    whole = f"{tmp_path}/whole.npy"
    impute_array(model, source, whole, steps=4, progress=False)
    seen = []
    own = rvi_fast.training.infer

    def counted(*args, **options):
        seen.append(len(args[1]))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return own(*args, **options)

    module = sys.modules["rvi_fast.training.arrays"]
    monkeypatch.setattr(module, "infer", counted)
    with pytest.raises(KeyboardInterrupt):
        impute_array(model, source, out, steps=4, progress=False)
    assert not os.path.exists(out)
    done = impute_array(model, source, out, steps=4, progress=False)
    gaps = np.isnan(numbers()).any(1)
    inferred = sum(gaps[start : start + 7].any() for start in range(0, N, 7))
    # three were done, and the fourth was begun twice
    assert len(seen) == inferred + 1
    np.testing.assert_array_equal(read(out), np.load(whole))
    assert done.filled == np.isnan(numbers()).sum()
    # with other options nothing of it is taken
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        impute_array(model, source, f"{tmp_path}/other.npy", steps=4, progress=False)
    seen[:] = [0] * 10
    impute_array(model, source, f"{tmp_path}/other.npy", steps=3, progress=False)
    assert len(seen) == 10 + inferred


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, model):
    source = hdf5(tmp_path, numbers())
    (tmp_path / "there.zarr").mkdir()
    for out, said in {
        "out.csv": r"expected \.npy, \.h5, \.hdf5 or \.zarr",
        "none/out.h5": "does not exist",
        "table.h5": "another file than the data",
        "there.zarr": "not there yet",
    }.items():
        with pytest.raises(ValueError, match=f"out: .*{said}"):
            impute_array(model, source, tmp_path / out, progress=False)
    with pytest.raises(ValueError, match="expected 4 columns, as the model has features, got 3"):
        impute_array(model, StoredArray(source, ignore=[0]), tmp_path / "o.npy", progress=False)
    for options in ({"unseen": ["9"]}, {"bounds": (1, 0)}, {"steps": -1}, {"estimate": "x"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
            impute_array(model, source, tmp_path / "o.npy", progress=False, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.h5", "there.zarr"]


SMALL = ("--latent-dim", 2, "--hidden", 8, "--groups", 4, "--quiet")


@pytest.mark.parametrize("kind", ["hdf5", "zarr 3"])
def test_the_command_line_takes_an_array_where_it_takes_a_directory(tmp_path, capsys, kind):
    def run(*words, status=0):
        assert cli.main([str(word) for word in words]) == status
        said = capsys.readouterr()
        return said.err if status else said.out

    name = "group/x" if kind == "hdf5" else None
    place = KINDS[kind](tmp_path, numbers(2 * N)[:N], **({"name": name} if name else {}))
    place = f"{place}:{name}" if name else place
    run_dir = ("--run-dir", tmp_path / "run")
    said = run("train", "--data", place, *run_dir, "--epochs", 2, *SMALL)
    assert "50 rows, 4 features" in said
    out = tmp_path / ("out.h5" if kind == "hdf5" else "out.zarr")
    said = run("impute", *run_dir, "--out", out, "--quiet")
    assert f"of {N} rows filled in" in said
    assert np.isfinite(read(out)).all()
    run("infer", *run_dir, "--data", place, "--out", tmp_path / "z.npy", "--quiet")
    assert np.load(tmp_path / "z.npy").shape == (N, 4)
    # the same columns from a text file
    data.save_table(tmp_path / "new.csv", numbers()[:9], ["a", "b", "c", "d"])
    run("impute", *run_dir, "--data", tmp_path / "new.csv", "--out", tmp_path / "n.csv", "--quiet")
    # the array gets rows
    if kind == "hdf5":
        os.unlink(tmp_path / "table.h5")
        hdf5(tmp_path, numbers(2 * N), name)
    else:
        array = zarr.open(str(place), mode="a")
        array.resize((2 * N, D))
        array[:] = numbers(2 * N)
    said = run("train", "--data", place, *run_dir, "--epochs", 3, "--resume", *SMALL)
    assert f"{N} rows added to the {N}" in said
    assert rvi_fast.load(tmp_path / "run").num_data == 2 * N
    error = run("train", "--data", place, *run_dir, "--resume", "--missing", 0.1, *SMALL, status=2)
    assert "--missing: expected none with a directory or an array" in error
    if kind == "hdf5":
        with h5py.File(tmp_path / "table.h5", "a") as file:
            file["y"] = numbers()
        more = ("--run-dir", tmp_path / "other", *SMALL)
        assert "/group/x" in run("train", "--data", tmp_path / "table.h5", *more, status=2)


def test_an_array_that_was_written_is_read(tmp_path):
    x = numbers()
    for name in OUTS[1:]:
        write_stored(tmp_path / name, x.shape, x.dtype, iter([x[:20], x[20:]]))
        np.testing.assert_array_equal(read(tmp_path / name), x)
        if name.endswith(".zarr"):
            with pytest.raises(DataError, match="not there yet"):
                write_stored(tmp_path / name, x.shape, x.dtype, iter([x]))
            os.rename(tmp_path / name, tmp_path / "away")


def test_a_zarr_store_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, sync, rename, named = set(), os.fsync, os.rename, []

    def fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def renamed(source, target):
        if str(target).endswith("out.zarr"):
            for folder, _, names in os.walk(source):
                held = [folder, *(os.path.join(folder, name) for name in names)]
                named.extend(path for path in held if os.stat(path).st_ino not in synced)
            assert any(path.endswith("zarr.json") for path in os.listdir(source))
            named.append("whole")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    write_stored(tmp_path / "out.zarr", (N, D), np.dtype(np.float32), [numbers()])
    assert named == ["whole"]
