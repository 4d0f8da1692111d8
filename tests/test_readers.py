import gzip
import hashlib
import io
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from rvi_fast.data import DATASETS, SUFFIXES, DataError, load_data, save_table
from rvi_fast.data.formats import binary
from rvi_fast.data.formats.registry import listed
from rvi_fast.data.sets import published as module

TABLE = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
TABLE[0, 1] = TABLE[7, 4] = np.nan
IMAGES = np.random.default_rng(1).integers(0, 256, (10, 4, 6), np.uint8)
NAMES = ("age", "weight", "höhe", "a,b", "e")


def idx(array):
    return struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape) + array.tobytes()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def csv_text(table, header=""):
    rows = (",".join("" if np.isnan(v) else str(v) for v in row) for row in table)
    return (header + "\n".join(rows) + "\n").encode()


@pytest.fixture
def loaded(tmp_path):
    """Writes bytes to a file of that name and loads it."""

    def load(name, content):
        path = tmp_path / name
        path.unlink(missing_ok=True)  # some file systems wait for the disk where one is rewritten
        path.write_bytes(content)
        return load_data(path)

    return load


def refused(loaded, name, content, *words):
    with pytest.raises(DataError) as caught:
        loaded(name, content)
    for word in (name, *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
@pytest.mark.parametrize("names", [None, NAMES])
def test_a_saved_table_reads_back_bit_for_bit(tmp_path, suffix, names):
    if suffix == ".parquet":
        pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
    path = tmp_path / f"table{suffix}"
    save_table(path, TABLE, names)
    data = load_data(path)
    assert data.train.dtype == np.float32
    assert data.train.flags.writeable
    assert data.train.flags.c_contiguous
    np.testing.assert_array_equal(data.train, TABLE)
    defaults = tuple(f"feature_{d}" for d in range(5)) if suffix == ".parquet" else None
    assert data.features == ((names or defaults) if suffix in (".csv", ".parquet") else None)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("dtype", ["bool", "i1", "i8", "u2", ">i4", "f2", ">f4", "f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_kind_become_float32(loaded, dtype, order):
    array = np.asarray([[0, 1, 1], [1, 0, 1]], dtype, order=order)
    train = loaded("table.npy", npy(array)).train
    assert train.dtype == np.float32
    np.testing.assert_array_equal(train, array.astype(np.float32))


def test_bytes_stay_pixels_and_stacks_of_them_are_images(loaded):
    flat = loaded("flat.npy", npy(IMAGES.reshape(10, 24)))
    assert (flat.train.dtype, flat.image_shape) == (np.uint8, None)
    for name, content in (
        ("a.npy", npy(IMAGES)),
        ("b.npy", npy(np.asfortranarray(IMAGES))),
        ("c.npz", npz(x=IMAGES)),
        ("d.idx3-ubyte", idx(IMAGES)),
        ("e-idx3-ubyte.gz", gzip.compress(idx(IMAGES))),
        ("browser-unpacked-idx3-ubyte.gz", idx(IMAGES)),
    ):
        data = loaded(name, content)
        assert (data.train.dtype, data.image_shape) == (np.uint8, (4, 6))
        np.testing.assert_array_equal(data.train, IMAGES.reshape(10, 24))


def test_an_archive_gives_x_or_its_only_table(loaded):
    assert loaded("a.npz", npz(x=TABLE, other=TABLE[:2])).train.shape == (12, 5)
    assert loaded("b.npz", npz(t=TABLE, label=TABLE[:, 0], ids=np.array(["a"]))).train.shape == (
        12,
        5,
    )
    refused(loaded, "c.npz", npz(one=TABLE, two=TABLE), "one [12, 5], two [12, 5]")
    refused(loaded, "d.npz", npz(label=TABLE[:, 0]), "label [12]")


@pytest.mark.parametrize("missing", ["", "NA", "na", "nan", "NaN", " ", '""'])
def test_each_spelling_of_missing_is_nan(loaded, missing):
    train = loaded("table.csv", f"a,b\n1,{missing}\n{missing},4\n".encode()).train
    np.testing.assert_array_equal(train, [[1, np.nan], [np.nan, 4]])


def test_csv_header_is_optional(loaded):
    plain = loaded("plain.csv", csv_text(TABLE))
    named = loaded("named.csv", b"\xef\xbb\xbf" + csv_text(TABLE, "a, b,c,NA,e\r\n\r\n"))
    assert (plain.features, named.features) == (None, ("a", "b", "c", "NA", "e"))
    np.testing.assert_array_equal(plain.train, TABLE)
    np.testing.assert_array_equal(named.train, TABLE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3,red\n4,blue\n", ("line 3", "column 1 ('b')", "'red'")),
        ("1,2\n3,1_000\n", ("line 2", "column 1", "'1_000'")),
        ("1,2\n3,??\n", ("line 2", "column 1", "'??'")),
        ("1,red\n2,3\n", ("line 1", "column 1", "'red'")),
        ("a,b\n1,2\n3\n", ("line 3", "expected 2 cells, got 1")),
        ("a,b\n1,2\n3,inf\n", ("row 1", "column 1 ('b')", "infinite")),
        ("1,2\n3,-1e300\n", ("row 1", "column 1", "infinite")),
        ("a,b\n", ("empty",)),
        ("", ("empty",)),
        ('a,b\n1,"2\n', ("unexpected end",)),
        ("a\n\xff\n", ("utf-8",)),
    ],
)
def test_csv_faults_are_located(loaded, text, words):
    refused(loaded, "table.csv", text.encode("latin-1"), *words)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 3), np.float32), ("empty",)),
        (np.zeros((3, 0), np.uint8), ("empty",)),
        (np.zeros((3, 0, 2), np.uint8), ("empty",)),
        (np.zeros(3), ("[3]",)),
        (np.float32(3), ("[]",)),
        (np.zeros((2, 2, 2)), ("[2, 2, 2]",)),
        (np.array([["a", "b"]]), ("dtype <U1",)),
        (np.array([[1j]]), ("dtype complex128",)),
        (np.array([[None]]), ("dtype object",)),
        (np.zeros((2, 2), [("a", "f4")]), ("dtype",)),
        (np.array([[1, 2], [3, -np.inf]]), ("row 1, column 1", "infinite")),
        (np.array([[1, 2], [1e39, 3]]), ("row 1, column 0", "infinite as float32")),
    ],
)
def test_arrays_that_are_no_table_are_refused(loaded, array, words):
    refused(loaded, "table.npy", npy(array), *words)
    refused(loaded, "table.npz", npz(x=array), *words)


def test_parquet_keeps_column_names(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    frame = pandas.DataFrame(
        {
            "float": [1.5, None, 3.0],
            "nullable": pandas.array([1, None, 3], "Int64"),
            "bool": [True, None, False],
            "never": [None, None, None],
        },
        index=[7, 8, 9],
    )
    frame.to_parquet(path)
    data = load_data(path)
    nan = np.nan
    np.testing.assert_array_equal(
        data.train, [[1.5, 1, 1, nan], [nan, nan, nan, nan], [3, 3, 0, nan]]
    )
    assert data.features == ("float", "nullable", "bool", "never")
    for column in (["x", None, "y"], pandas.to_datetime(["2020-01-01"] * 3)):
        frame.assign(odd=column).to_parquet(path)
        with pytest.raises(DataError, match=r"table.parquet: row 0, column 4 \('odd'\)"):
            load_data(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"table\.parquet"):
        load_data(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.idx3-ubyte", idx(IMAGES)),
        ("b.idx3-ubyte.gz", gzip.compress(idx(IMAGES))),
        ("c.npy", npy(TABLE)),
        ("d.npz", npz(x=TABLE)),
    ],
)
def test_every_truncation_and_a_longer_file_name_the_file(loaded, name, content):
    for length in range(len(content)):
        refused(loaded, name, content[:length])
    if name != "d.npz":  # an archive may carry a trailing comment
        refused(loaded, name, content + b"\1\2")


def zipped(content, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("x.npy", content)
    return file.getvalue()


HUGE = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)
HUGE_NPY = npy(TABLE).replace(b"(12, 5), }" + b" " * 20, b"(%d, 5), }" % 10**18 + b" " * 4)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.idx3-ubyte", HUGE, "announces shape"),
        ("b.idx3-ubyte.gz", gzip.compress(HUGE, mtime=0), "announces shape"),
        ("c.npy", HUGE_NPY, "announces shape [1000000000000000000, 5]"),
        ("d.npz", zipped(HUGE_NPY), "announces shape [1000000000000000000, 5]"),
        ("e.npy", npy(TABLE).replace(b"(12, 5), }", b"(-12, 5),}"), "announces shape [-12, 5]"),
        ("f.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff", "header of 4294967295 bytes"),
        ("g.idx255-ubyte", b"\0\0\x08\xff" + b"\xff" * 1020, "expected .npy"),
        ("h.idx3-ubyte", b"\0\0\x08\xff" + b"\xff" * 1020, "announces shape"),
    ],
)
def test_announced_sizes_are_never_allocated(loaded, name, content, reason, monkeypatch):
    allocated = []
    monkeypatch.setattr(binary.np, "empty", lambda *arguments: allocated.append(arguments))
    refused(loaded, name, content, reason)
    assert allocated == []


@pytest.mark.parametrize("kind", [0x00, 0x09, 0x0B, 0x0C, 0x0D, 0x0E])
def test_an_idx_file_of_anything_but_bytes_is_refused(tmp_path, kind):
    content = bytearray(idx(IMAGES))
    content[2] = kind
    path = tmp_path / "a.idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"not an IDX file of unsigned bytes: .* 00 {kind:02x} 03"):
        load_data(path)


def test_strange_archives_are_refused(loaded):
    content = zipped(npy(TABLE))
    at = content.index(b"PK\1\2") + 24  # the uncompressed size, in the central directory
    refused(loaded, "a.npz", content[:at] + struct.pack("<I", 200) + content[at + 4 :])
    refused(loaded, "b.npz", zipped(npy(TABLE), zipfile.ZIP_BZIP2), "deflate")
    refused(loaded, "c.npz", zipped(b"x"), "truncated")
    refused(loaded, "d.npz", npy(TABLE), "not a zip file")


def test_nothing_is_unpickled(loaded):
    class Trap:
        def __reduce__(self):
            return os.abort, ()

    array = np.array([[Trap()]], object)
    refused(loaded, "a.npy", npy(array), "dtype object")
    refused(loaded, "b.npz", npz(x=array), "dtype object")


def mutated(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        # half the time within the header, where it hurts
        at = rng.randrange(min(len(content), rng.choice((100, len(content))))) if content else 0
        kind = rng.randrange(7)
        if kind == 0:
            content[at : at + 1] = bytes((rng.randrange(256),))
        elif kind == 1:
            del content[at : at + rng.choice((1, 4, 64))]
        elif kind == 2:
            content[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 3:
            content[at : at + 4] = rng.choice((b"\0" * 4, b"\xff" * 4, b"9999", b"-1e9", b'",\r('))
        elif kind == 4:
            content[at : at + 1] = bytes((content[at] ^ 1 << rng.randrange(8),)) if content else b""
        elif kind == 5:  # a size of four bytes, off by a little or by a lot, either byte order
            order, size = rng.choice(("little", "big")), len(content[at : at + 4])
            value = int.from_bytes(content[at : at + 4], order)
            value += rng.choice((-1, 1, 255, 1 << 8 * max(size, 1) - 1))
            content[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)
        else:
            del content[at:]
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.idx3-ubyte", idx(IMAGES)),
        ("b.idx3-ubyte.gz", gzip.compress(idx(IMAGES))),
        ("c.npy", npy(TABLE)),
        ("d.npz", npz(x=TABLE, y=TABLE[:, 0])),
        ("e.csv", csv_text(TABLE, "a,b,c,d,e\n")),
    ],
)
@pytest.mark.filterwarnings("ignore")  # numpy and ast comment on strange headers
def test_mutated_files_load_or_are_refused(loaded, name, content):
    rng = random.Random(name)
    original = loaded(name, content).train
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(2000):
        try:
            table = loaded(name, mutated(content, rng)).train
        except DataError as error:
            file, _, reason = str(error).partition(": ")
            assert file.endswith(name)
            assert reason
            outcomes["refused"] += 1
        else:
            assert table.ndim == 2
            assert not np.isinf(table).any()
            if name.endswith(("gz", "npz")):  # these formats carry checksums
                np.testing.assert_array_equal(table, original)
            outcomes["loaded"] += 1
    assert outcomes["refused"] > 200


@pytest.mark.parametrize("name", ["minst", "absent.npy", "directory.npy", "nul\0byte.csv"])
def test_what_is_not_there_is_named(tmp_path, name):
    (tmp_path / "directory.npy").mkdir()
    with pytest.raises(DataError, match="no such file") as caught:
        load_data(tmp_path / name)
    assert all(word in str(caught.value) for word in (name, *DATASETS))


def test_unknown_formats_are_refused(loaded):
    refused(loaded, "table.pickle", b"cos\nabort\n(tR.", "expected .npy")


@pytest.mark.parametrize(
    ("name", "array", "features", "words"),
    [
        ("a.pt", TABLE, None, f"expected {listed(SUFFIXES)}"),
        ("absent/a.npy", TABLE, None, "absent does not exist"),
        ("a.csv", TABLE[0], None, r"\[N, D\]"),
        ("a.csv", TABLE, ["a"], "1 names"),
        ("a.csv", TABLE, list("12345"), "read back as numbers"),
        ("a.npy", np.array([[None]]), None, "dtype object"),
    ],
)
def test_save_table_refuses(tmp_path, name, array, features, words):
    with pytest.raises(ValueError, match=words):
        save_table(tmp_path / name, array, features)
    assert os.listdir(tmp_path) == []


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.npy"
    save_table(path, TABLE)

    def full_disk(file, array, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_table(path, TABLE + 1)
    monkeypatch.undo()
    np.testing.assert_array_equal(load_data(path).train, TABLE)
    assert os.listdir(tmp_path) == ["table.npy"]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A miniature of the two published sets: file contents by set and name; an empty cache."""
    rng = np.random.default_rng(2)
    shapes = {
        name: (6 if name.startswith("train") else 4, *shape[1:])
        for name, shape in module._IDX_SHAPES.items()
    }
    files = {
        owner: {name: idx(rng.integers(0, 10, s, np.uint8)) for name, s in shapes.items()}
        for owner in ("mnist", "fashion-mnist")
    }
    sums = {
        owner: tuple(hashlib.md5(content).hexdigest() for content in contents.values())
        for owner, contents in files.items()
    }
    monkeypatch.setattr(module, "_IDX_SHAPES", shapes)
    monkeypatch.setattr(module, "_IDX_MD5", sums)
    monkeypatch.setattr(module, "_MIRRORS", {"mnist": (), "fashion-mnist": ()})
    monkeypatch.delenv("RVI_FAST_DATA", raising=False)
    monkeypatch.setenv("RVI_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return files


@pytest.fixture
def mirror():
    """A server on this machine: its address, and the content it serves by path."""
    contents = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = contents.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", contents
    server.shutdown()
    thread.join()
    server.server_close()


def write_files(directory, contents, pack=gzip.compress):
    directory.mkdir(parents=True)
    for name, content in contents.items():
        (directory / (f"{name}.gz" if pack is gzip.compress else name)).write_bytes(pack(content))


@pytest.mark.parametrize("folder", ["mnist", ""])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
@pytest.mark.parametrize("root", ["data_dir", "RVI_FAST_DATA", "RVI_FAST_CACHE"])
def test_local_files_are_found(published, tmp_path, monkeypatch, folder, pack, root):
    write_files(tmp_path / "files" / folder, published["mnist"], pack)
    if root != "data_dir":
        monkeypatch.setenv(root, str(tmp_path / "files"))
    data = load_data("mnist", data_dir=tmp_path / "files" if root == "data_dir" else None)
    files = published["mnist"]
    assert data.train.tobytes() == files["train-images-idx3-ubyte"][16:]
    assert data.test.tobytes() == files["t10k-images-idx3-ubyte"][16:]
    assert data.train_labels.tolist() == list(files["train-labels-idx1-ubyte"][8:])
    assert data.test_labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])
    assert data.train_labels.dtype == np.int64
    assert data.image_shape == (28, 28)


def test_the_other_set_under_the_same_file_names_is_refused(published, tmp_path):
    write_files(tmp_path / "files", published["mnist"])
    with pytest.raises(DataError, match=r"ubyte\.gz: belongs to mnist, not to fashion-mnist"):
        load_data("fashion-mnist", data_dir=tmp_path / "files")


def test_a_file_of_another_size_is_refused(published, tmp_path):
    published["mnist"]["t10k-labels-idx1-ubyte"] = idx(np.zeros(5, np.uint8))
    write_files(tmp_path / "files", published["mnist"])
    with pytest.raises(DataError, match=r"t10k-labels.*expected shape \[4\], got \[5\]"):
        load_data("mnist", data_dir=tmp_path / "files")


def test_downloads_are_cached(published, mirror, tmp_path, monkeypatch):
    address, served = mirror
    monkeypatch.setattr(module, "_MIRRORS", {"mnist": (f"{address}gone/", address)})
    for name, content in published["mnist"].items():
        served[f"/{name}.gz"] = gzip.compress(content)
    first = load_data("mnist")
    cached = sorted(os.listdir(tmp_path / "cache" / "mnist"))
    assert cached == sorted(f"{name}.gz" for name in published["mnist"])
    served.clear()
    np.testing.assert_array_equal(load_data("mnist").train, first.train)


@pytest.mark.parametrize("fault", ["content", "truncated", "page", "huge"])
def test_a_bad_download_leaves_no_file(published, mirror, tmp_path, monkeypatch, fault):
    address, served = mirror
    monkeypatch.setattr(module, "_MIRRORS", {"mnist": (address,)})
    name, content = next(iter(published["mnist"].items()))
    served[f"/{name}.gz"], reason = {
        "content": (gzip.compress(content[:-1] + b"\xff"), "MD5"),
        "truncated": (gzip.compress(content)[:-9], "ended before"),
        "page": (b"<html>please log in</html>", "not an IDX file"),
        "huge": (gzip.compress(HUGE), "more than the file can hold"),
    }[fault]
    with pytest.raises(DataError, match=reason) as caught:
        load_data("mnist")
    assert f"{address}{name}.gz" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_offline_names_every_place_tried_and_the_way_out(published, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    monkeypatch.setattr(module, "_MIRRORS", {"mnist": (address,)})
    monkeypatch.setenv("RVI_FAST_DATA", str(tmp_path / "from_env"))
    with pytest.raises(DataError) as caught:
        load_data("mnist", data_dir=tmp_path / "chosen")
    message = str(caught.value)
    for root in ("chosen", "from_env", "cache"):
        for folder in (tmp_path / root / "mnist", tmp_path / root):
            for file in ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"):
                assert f"{folder / file}\n" in message
    assert address in message
    assert "--data-dir" in message
    assert "RVI_FAST_DATA=" in message


def mosi(**changes):
    rows = 9
    arrays = {
        "text": np.ones((rows, 2), np.float32),
        "audio": np.full((rows, 3), 2, np.float32),
        "video": np.full((rows, 1), 3, np.float32),
        "label": np.arange(rows, dtype=np.int8) % 2,
        "split": np.array([0, 0, 0, 0, 1, 1, 2, 2, 2], np.int8),
    }
    return npz(**{name: a for name, a in (arrays | changes).items() if a is not None})


def test_mosi_joins_its_parts_and_splits_by_fold(tmp_path):
    (tmp_path / "mosi_utterance.npz").write_bytes(mosi())
    data = load_data("mosi", data_dir=tmp_path)
    assert data.train.tolist() == [[1, 1, 2, 2, 2, 3]] * 4
    assert data.test.shape == (3, 6)
    assert data.train_labels.tolist() == [0, 1, 0, 1]
    assert data.test_labels.tolist() == [0, 1, 0]
    assert data.features == ("text_0", "text_1", "audio_0", "audio_1", "audio_2", "video_0")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video": None}, "no array called video"),
        ({"audio": np.ones((8, 3))}, "mosi_utterance.npz"),
        ({"label": np.zeros(8)}, "label and split"),
        ({"split": np.zeros(9)}, "marked 0"),
        ({"text": np.full((9, 2), np.inf)}, "row 0, column 0 .'text_0'."),
    ],
)
def test_a_strange_mosi_is_refused(tmp_path, changes, words):
    (tmp_path / "mosi_utterance.npz").write_bytes(mosi(**changes))
    with pytest.raises(DataError, match=words):
        load_data("mosi", data_dir=tmp_path)


def test_mosi_says_that_it_cannot_be_downloaded(published, tmp_path):
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        load_data("mosi", data_dir=tmp_path)
    assert str(tmp_path / "mosi" / "mosi_utterance.npz") in str(caught.value)


def test_digits_need_no_file():
    pytest.importorskip("sklearn")
    data = load_data("digits")
    assert (data.train.shape, data.train.dtype, data.image_shape) == ((1797, 64), np.uint8, (8, 8))
    assert set(np.unique(data.train)) == {round(level * 255 / 16) for level in range(17)}
    assert data.test is None
    assert data.train_labels.shape == (1797,)


def test_extras_are_imported_only_when_needed():
    code = "import sys, rvi_fast.data; print({'pandas', 'pyarrow', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("module", ["pandas", "pyarrow"])
def test_a_missing_extra_is_named(loaded, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "rvi-fast\[tabular\]"'):
        loaded("table.parquet", b"")
    with pytest.raises(ImportError, match=r'pip install "rvi-fast\[tabular\]"'):
        save_table(tmp_path / "saved.parquet", TABLE)
    assert os.listdir(tmp_path) == ["table.parquet"]


real = pytest.mark.skipif("RVI_FAST_DATA" not in os.environ, reason="RVI_FAST_DATA is not set")


@real
@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion-mnist", 0.2860)])
def test_published_images_are_read_whole(name, mean):
    data = load_data(name)
    assert (data.train.shape, data.test.shape) == ((60_000, 784), (10_000, 784))
    assert data.train.mean() / 255 == pytest.approx(mean, abs=1e-4)
    assert np.bincount(data.test_labels).sum() == 10_000
    for array, md5 in zip((data.train, data.test), module._IDX_MD5[name][::2], strict=True):
        assert hashlib.md5(idx(array.reshape(-1, 28, 28))).hexdigest() == md5


@real
def test_mosi_folds_are_the_standard_ones():
    data = load_data("mosi")
    assert (data.train.shape, data.test.shape) == ((1284, 273), (686, 273))
    assert set(data.train_labels) == {0, 1}
    assert not np.isnan(data.train).any()
