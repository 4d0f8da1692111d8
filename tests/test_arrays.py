"""Arrays in HDF5 files and zarr stores: read in pieces, trained on, and filled in."""

import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rvi_fast
from rvi_fast import cli, data
from rvi_fast.data import DataError, StoredArray
from rvi_fast.data.arrays import stored, write_stored, zarr_store
from rvi_fast.training import RunDirectoryInUse, impute_array, infer_array
from rvi_fast.training.arrays import outputs
from rvi_fast.training.arrays.outputs import held
from rvi_fast.training.loop.interrupts import Interrupted
from rvi_fast.training.workers import ProcessDied

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
zarr = pytest.importorskip("zarr", reason="zarr is not installed")

from array_parts import KINDS, D, N, Troubled, hdf5, numbers, zarr_of  # noqa: E402

ROOT = Path(__file__).parent.parent


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
    done = impute_array(
        model, source, out, steps=4, bounds=(-1, 1), unseen=["2"], jobs=1, progress=False
    )
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
    infer_array(
        model, source, f"{tmp_path}/latents.npy", steps=4, unseen=["2"], jobs=1, progress=False
    )
    latents = torch.cat((posterior.mean(), posterior.std()), 1).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "latents.npy"), latents, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["out.npy", "out.h5", "out.zarr"])
def test_what_was_killed_goes_on_where_it_was(tmp_path, pieces, monkeypatch, model, name):
    source, out = hdf5(tmp_path, numbers()), f"{tmp_path}/{name}"
    whole = f"{tmp_path}/whole.npy"
    impute_array(model, source, whole, steps=4, jobs=1, progress=False)
    seen = []
    own = rvi_fast.training.infer

    def counted(*args, **options):
        seen.append(len(args[1]))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return own(*args, **options)

    module = sys.modules["rvi_fast.training.pieces"]
    monkeypatch.setattr(module, "infer", counted)
    with pytest.raises(KeyboardInterrupt):
        impute_array(model, source, out, steps=4, jobs=1, progress=False)
    assert not os.path.exists(out)
    done = impute_array(model, source, out, steps=4, jobs=1, progress=False)
    gaps = np.isnan(numbers()).any(1)
    inferred = sum(gaps[start : start + 7].any() for start in range(0, N, 7))
    # three were done, and the fourth was begun twice
    assert len(seen) == inferred + 1
    np.testing.assert_array_equal(read(out), np.load(whole))
    assert done.filled == np.isnan(numbers()).sum()
    # with other options nothing of it is taken
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        impute_array(model, source, f"{tmp_path}/other.npy", steps=4, jobs=1, progress=False)
    seen[:] = [0] * 10
    impute_array(model, source, f"{tmp_path}/other.npy", steps=3, jobs=1, progress=False)
    assert len(seen) == 10 + inferred


def files_of(place):
    """What lies there, byte for byte."""
    path = Path(str(place).split(":")[0])
    paths = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {p.relative_to(path.parent).parts[1:]: p.read_bytes() for p in paths}


def hidden_in(path):
    return sorted(own.name for own in path.iterdir() if own.name.startswith("."))


@pytest.mark.parametrize(
    ("command", "kind", "name", "numbers_of_jobs"),
    [
        (impute_array, "hdf5", "out.npy", (1, 2, 3)),
        (impute_array, "zarr 2", "out.h5:/a", (1, 2)),
        (impute_array, "zarr 3", "out.zarr", (1, 2)),
        (infer_array, "hdf5", "out.npy", (1, 3)),
    ],
)
def test_any_number_of_processes_writes_the_same_bytes(
    tmp_path, pieces, model, command, kind, name, numbers_of_jobs
):
    source, found = StoredArray(KINDS[kind](tmp_path, numbers())), []
    for jobs in numbers_of_jobs:
        place = tmp_path / f"out-{jobs}"
        place.mkdir()
        done = command(model, source, f"{place}/{name}", steps=4, jobs=jobs, progress=False)
        assert done == (1, 1, N, np.isnan(numbers()).sum() if command is impute_array else 0)
        assert hidden_in(place) == []
        found.append(files_of(f"{place}/{name}"))
    assert found[0]
    assert all(other == found[0] for other in found)


def test_bytes_are_those_of_one_thread_however_many_there_are(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(9000, 8)) @ generator.normal(size=(8, 50))
    x[generator.random(x.shape) < 0.2] = np.nan
    own = rvi_fast.models.rvi(*x.shape, latent_dim=8, hidden=(64,), groups=(25, 50))
    rvi_fast.fit(own, x.astype(np.float32), epochs=1, progress=False)
    source, before = hdf5(tmp_path, x), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = tmp_path / f"{threads}.npy"
            impute_array(own, source, out, steps=8, jobs=1, progress=False)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "1.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()


def test_what_decides_about_bits_in_this_process_does_so_in_the_others(tmp_path, pieces, model):
    source = hdf5(tmp_path, numbers())
    with torch.autocast("cpu", torch.bfloat16):
        for jobs in (1, 2):
            out = tmp_path / f"{jobs}.npy"
            impute_array(model, source, out, steps=4, jobs=jobs, progress=False)
    assert (tmp_path / "1.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()


def begins(rows=N, size=7):
    return list(range(0, rows, size))


@pytest.mark.parametrize("name", ["out.npy", "out.zarr"])
def test_a_process_that_is_killed_leaves_the_others_alone_and_its_rows_are_done_again(
    tmp_path, pieces, model, name
):
    whole, out = tmp_path / "whole" / name, tmp_path / name
    whole.parent.mkdir()
    impute_array(model, hdf5(tmp_path, numbers()), whole, steps=4, jobs=1, progress=False)
    source = Troubled(tmp_path / "table.h5", tmp_path / "first", 14, "killed")
    with pytest.raises(ProcessDied, match="rows 14 to 20: the process died, exit code -9") as died:
        impute_array(model, source, out, steps=4, jobs=2, progress=False)
    assert died.value.__notes__[-1].startswith("1 of 8 pieces failed (rows 14 to 20); what is done")
    assert not out.exists()
    assert source.been_read() == begins()
    half = np.load(tmp_path / f".{name}.filling.npy", mmap_mode="r")
    assert (half[14:17] == -7).all()
    # gone on with by another number of processes
    again = Troubled(tmp_path / "table.h5", tmp_path / "again")
    impute_array(model, again, out, steps=4, jobs=3, progress=False)
    assert again.been_read() == [14]
    assert files_of(out) == files_of(whole)
    assert hidden_in(tmp_path) == []


SCRIPT = """
import sys
from array_parts import Troubled
import rvi_fast
from rvi_fast.data.arrays import stored

if __name__ == "__main__":
    stored._ROWS = 7
    source = Troubled("table.h5", "notes", 28, "parent_killed")
    model = rvi_fast.load("run", rows=False)
    rvi_fast.training.impute_array(model, source, "out.npy", steps=4, jobs=2, progress=False)
"""


def test_the_command_line_says_whose_process_has_died(tmp_path, monkeypatch, capsys):
    def died(*arguments, **options):
        raise ProcessDied("rows 14 to 20: the process died, exit code -9")

    monkeypatch.setattr(cli.directories, "impute_array", died)
    own = rvi_fast.models.rvi(N, D, latent_dim=2, hidden=(8,), groups=(4,))
    rvi_fast.fit(own, numbers(), epochs=1, run_dir=tmp_path / "run", progress=False)
    words = ("--run-dir", tmp_path / "run", "--data", hdf5(tmp_path, numbers()), "--quiet")
    words = ("impute", *words, "--out", tmp_path / "out.npy", "--jobs", 2)
    assert cli.main([str(word) for word in words]) == 2
    said = "rows 14 to 20: the process died, exit code -9; started again, the command goes on"
    assert capsys.readouterr().err == f"rvi-fast: error: {said}\n"


def test_all_processes_killed_go_on_where_they_were(tmp_path, pieces, monkeypatch):
    own = rvi_fast.models.rvi(N, D, latent_dim=2, hidden=(8,), groups=(4,))
    rvi_fast.fit(own, numbers(), epochs=2, run_dir=tmp_path / "run", progress=False)
    hdf5(tmp_path, numbers())
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "script.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    monkeypatch.chdir(tmp_path)
    before = Troubled("table.h5", "notes")
    # nobody goes on without the process that began
    deadline = time.monotonic() + 60
    while any(map(alive, before.readers())):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not Path("out.npy").exists()
    lines = [json.loads(line) for line in Path(".out.npy.filling.jsonl").read_text().splitlines()]
    done = sorted(line["first"] for line in lines[1:])
    assert set(done) < set(before.been_read())
    assert 28 not in done
    again = Troubled("table.h5", "again")
    small = rvi_fast.load("run", rows=False)
    impute_array(small, again, "out.npy", steps=4, jobs=1, progress=False)
    assert again.been_read() == [first for first in begins() if first not in done]
    impute_array(small, "table.h5", "whole.npy", steps=4, jobs=1, progress=False)
    assert Path("out.npy").read_bytes() == Path("whole.npy").read_bytes()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # one whose parent has gone may wait for somebody to take note of its end
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_names_the_rows_and_what_is_done_is_kept(tmp_path, pieces, model, jobs):
    x = numbers()
    x[31, 2] = np.inf
    source, out = hdf5(tmp_path, x), tmp_path / "out.npy"
    with pytest.raises(DataError, match=r"/x: row 31, column 2: infinite as float32") as failed:
        impute_array(model, source, out, jobs=jobs, steps=4, progress=False)
    note = failed.value.__notes__[-1]
    assert note.startswith("1 of 8 pieces failed (rows 28 to 34); what is done of")
    assert not out.exists()
    # nothing of that is taken for rows that have changed
    hdf5(tmp_path, numbers())
    again = Troubled(source, tmp_path / "again")
    impute_array(model, again, out, jobs=1, steps=4, progress=False)
    assert again.been_read() == begins()


def test_a_full_disk_ends_the_call_and_with_room_it_goes_on(tmp_path, pieces, model):
    out, place = tmp_path / "out.npy", hdf5(tmp_path, numbers())
    source = Troubled(place, tmp_path / "notes", 42, "out_of_disk")
    with pytest.raises(OSError, match=r"No space left .*\.out\.npy\.filling\.npy") as failed:
        impute_array(model, source, out, jobs=2, steps=4, progress=False)
    assert "(rows 42 to 48)" in failed.value.__notes__[-1]
    (tmp_path / "notes" / "over").touch()
    before = source.been_read()
    impute_array(model, source, out, jobs=2, steps=4, progress=False)
    after = source.been_read()
    assert len(before) < len(after) < 2 * len(begins())
    impute_array(model, place, tmp_path / "whole.npy", jobs=1, steps=4, progress=False)
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_ctrl_c_ends_all_processes_and_the_call_goes_on_where_it_was(tmp_path, pieces, model):
    out, place = tmp_path / "out.npy", hdf5(tmp_path, numbers())
    source = Troubled(place, tmp_path / "notes", 28, "interrupted")
    with pytest.raises(Interrupted, match=r"out\.npy: started again, it goes on") as stopped:
        impute_array(model, source, out, jobs=2, steps=4, progress=False)
    assert stopped.value.signum == signal.SIGINT
    assert not multiprocessing.active_children()
    again = Troubled(place, tmp_path / "again")
    impute_array(model, again, out, jobs=2, steps=4, progress=False)
    read = set(again.been_read())
    assert 28 in read
    # of what came before, a slow process may have had one piece still in its hands
    assert not {0, 7, 14, 21} <= read


def test_an_array_that_changes_while_it_is_read_is_refused(tmp_path, pieces, model):
    place = hdf5(tmp_path, numbers())
    for jobs in (1, 2):
        source = Troubled(place, tmp_path / f"notes-{jobs}", 28, "changed")
        with pytest.raises(DataError, match=r"table\.h5: /x has changed while it was read"):
            impute_array(model, source, tmp_path / "out.npy", steps=4, jobs=jobs, progress=False)
        os.utime(place)
    assert not (tmp_path / "out.npy").exists()
    older = StoredArray(place)
    place.unlink()
    hdf5(tmp_path, numbers()[:, :3])
    with pytest.raises(DataError, match="/x has changed since it was opened first"):
        impute_array(model, older, tmp_path / "out.npy", steps=4, jobs=1, progress=False)


def test_one_process_writes_an_array_and_others_are_refused(tmp_path, pieces, model, monkeypatch):
    source, out = hdf5(tmp_path, numbers()), tmp_path / "out.npy"
    with held(out), pytest.raises(RunDirectoryInUse, match=r"out\.npy is being written by another"):
        impute_array(model, source, out, steps=4, jobs=2, progress=False)
    assert hidden_in(tmp_path) == []
    # the one that was waited for has removed its lock, which then keeps nobody out
    path, own, gone = tmp_path / ".out.npy.filling.lock", outputs.lock, []

    def late(file):
        own(file)
        if not gone:
            gone.append(path.unlink())

    monkeypatch.setattr(outputs, "lock", late)
    with held(out):
        assert path.exists()
        with pytest.raises(RunDirectoryInUse), held(out):
            pass
    assert not path.exists()


def test_rows_are_listed_once_they_are_on_disk(tmp_path, pieces, model, monkeypatch):
    source, events = hdf5(tmp_path, numbers()), []
    sync, write, line = os.fsync, outputs.RowFile.write, outputs.append_line

    def synced(descriptor):
        sync(descriptor)
        path = tmp_path / ".out.npy.filling.npy"
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            events.append("synced")

    def written(self, file, first, rows):
        write(self, file, first, rows)
        events.append("written")

    def listed(path, record):
        events.append("listed")
        line(path, record)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(outputs.RowFile, "write", written)
    monkeypatch.setattr(outputs, "append_line", listed)
    impute_array(model, source, tmp_path / "out.npy", steps=4, jobs=1, progress=False)
    assert events == ["synced", *["written", "synced", "listed"] * len(begins())]


def test_a_link_in_the_place_of_rows_is_not_written_through(tmp_path, pieces, model):
    source, out = Troubled(hdf5(tmp_path, numbers()), tmp_path / "n", 28, "changed"), "out.npy"
    with pytest.raises(DataError):
        impute_array(model, source, tmp_path / out, steps=4, jobs=1, progress=False)
    rows, other = tmp_path / ".out.npy.filling.npy", tmp_path / "other.npy"
    rows.rename(other)
    content = other.read_bytes()
    rows.symlink_to(other)
    os.utime(tmp_path / "table.h5", (1, 1))
    lines = (tmp_path / ".out.npy.filling.jsonl").read_text().splitlines(keepends=True)
    job = json.loads(lines[0]) | {"x": StoredArray(tmp_path / "table.h5").fingerprint()}
    (tmp_path / ".out.npy.filling.jsonl").write_text(json.dumps(job) + "\n" + "".join(lines[1:]))
    with pytest.raises(OSError, match=r"no link: .*\.out\.npy\.filling\.npy"):
        impute_array(model, source, tmp_path / out, steps=4, jobs=1, progress=False)
    assert other.read_bytes() == content


class Unportable(torch.nn.Module):
    """A decoder that other processes cannot be given."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.text = decoder, lambda: None

    def forward(self, z):
        return self.decoder(z)


def test_processes_that_cannot_be_are_refused_before_any_work(tmp_path, pieces, model):
    source, out = hdf5(tmp_path, numbers()), tmp_path / "out.npy"
    for jobs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="jobs: expected an integer >= 1, got"):
            infer_array(model, source, out, jobs=jobs, progress=False)
    other = copy.copy(model)
    other.__dict__["_modules"] = {**model._modules, "decoder": Unportable(model.decoder)}
    with pytest.raises(TypeError, match=r"model: expected what other processes .*jobs=1 does all"):
        infer_array(other, source, out, steps=4, jobs=2, progress=False)
    assert hidden_in(tmp_path) == []
    infer_array(other, source, out, steps=4, jobs=1, progress=False)
    infer_array(model, source, tmp_path / "same.npy", steps=4, jobs=1, progress=False)
    np.testing.assert_allclose(np.load(out), np.load(tmp_path / "same.npy"), rtol=1e-4, atol=1e-5)
    assert hidden_in(tmp_path) == []


def test_a_script_without_a_guard_is_told_so_at_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    own = rvi_fast.models.rvi(N, D, latent_dim=2, hidden=(8,), groups=(4,))
    rvi_fast.fit(own, numbers(), epochs=1, run_dir=tmp_path / "run", progress=False)
    hdf5(tmp_path, numbers())
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "script.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "needs `if __name__ == '__main__':` around what it does" in ended.stderr
    assert "1 of 8 pieces failed" in ended.stderr


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
def test_the_command_line_takes_an_array_where_it_takes_a_directory(
    tmp_path, capsys, monkeypatch, kind
):
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
    run("infer", *run_dir, "--data", place, "--out", tmp_path / "z.npy", "--jobs", 1, "--quiet")
    assert np.load(tmp_path / "z.npy").shape == (N, 4)
    monkeypatch.setattr(stored, "_ROWS", 7)
    again = ("infer", *run_dir, "--data", place, "--out", tmp_path / "y.npy", "--quiet")
    written = []
    for jobs in (1, 2):
        run(*again, "--jobs", jobs)
        written.append((tmp_path / "y.npy").read_bytes())
    assert written[0] == written[1]
    assert "jobs: expected an integer >= 1, got 0" in run(*again, "--jobs", 0, status=2)
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
