"""Data sets and tables from files, and tables to files.

A file is foreign until proved sound: sizes that a header announces are compared with what the file
can hold before anything is allocated, nothing is ever unpickled, and whatever is wrong with a file
comes out as one error, `DataError`, which names the file and the reason.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import io
import math
import os
import re
import struct
import textwrap
import urllib.request
import zipfile
from array import array as packed_array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from ..files import replacing
from .artificial import artificial

DATASETS = ("digits", "artificial", "mnist", "fashion-mnist", "mosi")

_IDX_NAME = re.compile(r"[.-]idx\d-ubyte(\.gz)?$")
_IDX_SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
# MD5 of the uncompressed files, in the order of _IDX_SHAPES
_IDX_MD5 = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
_MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
}
_MOSI_PARTS = ("text", "audio", "video")

_DEFLATE_RATIO = 1032  # a match of 258 bytes costs at least 2 bits, so 4 * 258 bytes a byte
_MOST_INFLATED = (
    1 << 30
)  # bytes of a compressed IDX file; a larger one is to be unpacked beforehand
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_DOWNLOAD = 64 << 20  # bytes; the largest published file has 26 MB
_MOST_NPY_HEADER = 10_000  # bytes, as numpy's own limit
_READ_CHUNK = 1 << 20  # bytes
_TIMEOUT = 20.0  # seconds without an answer from a mirror


class DataError(ValueError):
    """A data file is missing, malformed or truncated; the message names the file and the reason."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    Args:
        name: what was asked for.
        train: [N, D] uint8 for pixels (0..255 means [0, 1]), else float32 with NaN for missing.
        test: the same for held-out rows, or None.
        train_labels: [N] int64, or None.
        test_labels: [N] int64, or None.
        image_shape: (height, width) where a row is an image, with height * width = D.
        features: D column names, where the file has them.
    """

    name: str
    train: np.ndarray
    test: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    image_shape: tuple[int, int] | None = None
    features: tuple[str, ...] | None = None


def load_data(
    name: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None
) -> Dataset:
    """Loads a data set by name, or a table from a file.

    MNIST and Fashion-MNIST are looked for in `data_dir`, `$RVI_FAST_DATA` and the cache
    (`$RVI_FAST_CACHE`, else `$XDG_CACHE_HOME/rvi_fast`, else `~/.cache/rvi_fast`), then downloaded
    to the cache and checked by MD5. CMU-MOSI is looked for likewise and never downloaded.

    Args:
        name: "digits" (8x8, needs scikit-learn, no file), "artificial" (10,000 + 2,000 rows, made
            by `artificial`), "mnist", "fashion-mnist", "mosi", or the path of a table: .npy; .npz
            (the array `x`, or the only 2-D array); .csv (an empty cell, NA or nan is missing; a
            first line of names, none of them a number, is the header); .parquet; .idx?-ubyte, plain
            or .gz. uint8 arrays are pixels, and [N, H, W] of them images; all other numbers become
            float32.
        data_dir: the first directory to look in for a data set by name.

    Returns:
        A `Dataset`. Files have no test part and no labels.

    Raises:
        DataError: a file is missing, malformed, empty, not numeric, or holds an infinite number.
        ImportError: an optional package is missing; the message says which extra to install.

    >>> load_data("digits").train.shape
    (1797, 64)
    """
    if name == "digits":
        return _load_digits()
    if name == "artificial":
        return Dataset("artificial", artificial(10_000), artificial(2_000, first=10_000))
    if name in _IDX_MD5:
        return _load_published(str(name), data_dir)
    if name == "mosi":
        return _load_mosi(data_dir)
    path = Path(name).expanduser()
    with _blaming(path):
        if not os.path.isfile(path):
            raise ValueError(f"no such file, nor a data set (those are {', '.join(DATASETS)})")
        values, features = _read_file(path)
        table, image_shape = _as_table(values, features)
    return Dataset(str(name), table, image_shape=image_shape, features=features)


def save_table(
    path: str | os.PathLike[str], array: np.ndarray, features: Sequence[str] | None = None
) -> None:
    """Writes an array to a file, whole or not at all.

    Args:
        path: ends in .npy, .npz (stored as `x`), .csv or .parquet; its directory exists.
        array: numbers, [N, D] for .csv and .parquet, any shape for the other two.
        features: D names, the header of .csv (none without them) and the columns of .parquet
            (feature_0, ... without them); the other two formats hold no names.

    Raises:
        ValueError: an unknown suffix, a missing directory, or arguments that do not fit together.
        ImportError: .parquet without the extra `tabular`.
    """
    path, array = Path(path), np.asarray(array)
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz", ".csv", ".parquet"):
        raise ValueError(f"path: expected .npy, .npz, .csv or .parquet, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"path: the directory {path.parent} does not exist")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"array: expected numbers, got dtype {array.dtype}")
    if suffix in (".csv", ".parquet") and array.ndim != 2:
        raise ValueError(f"array: expected [N, D] for {suffix}, got shape {list(array.shape)}")
    if features is not None and (array.ndim != 2 or len(features) != array.shape[1]):
        raise ValueError(f"features: got {len(features)} names for shape {list(array.shape)}")
    if suffix == ".csv" and features is not None and not _is_header(features):
        raise ValueError(f"features: {features!r} would read back as numbers from .csv")
    with replacing(path) as file:
        if suffix == ".npy":
            np.save(file, array, allow_pickle=False)
        elif suffix == ".npz":
            np.savez(file, x=array)
        elif suffix == ".csv":
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(text, lineterminator="\n")
            if features is not None:
                writer.writerow(features)
            # numpy scalars print as the shortest text that reads back as the same number
            writer.writerows(array.astype(np.uint8) if array.dtype == bool else array)
            text.detach()
        else:
            names = features or [f"feature_{column}" for column in range(array.shape[1])]
            frame = _require("pandas", "tabular").DataFrame(array, columns=list(names))
            _require("pyarrow", "tabular")
            frame.to_parquet(file, engine="pyarrow", index=False)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turns whatever a file's content provokes into a `DataError` that names the file."""
    try:
        yield
    except ImportError:
        raise
    # gzip, zip, npy, csv and parquet parsers raise a dozen types on hostile bytes, undocumented
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 600)
        raise DataError(f"{path}: {reason}") from error


def _require(module: str, extra: str) -> Any:
    """Imports an optional package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'needs {module}: pip install "rvi-fast[{extra}]"') from error


def _as_table(
    array: np.ndarray, features: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[int, int] | None]:
    """A contiguous [N, D] table, uint8 or float32 without inf, and the image shape, if any."""
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers, got dtype {array.dtype}")
    if array.ndim != 2 and not (array.ndim == 3 and array.dtype == np.uint8):
        raise ValueError(f"expected [N, D], or uint8 [N, H, W], got shape {list(array.shape)}")
    if array.size == 0:
        raise ValueError(f"an empty table, shape {list(array.shape)}")
    image_shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else None
    array = array.reshape(len(array), -1)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array), image_shape
    with np.errstate(over="ignore"):
        table = array.astype(np.float32, order="C", copy=False)
    infinite = np.isinf(table)
    if infinite.any():
        row, column = divmod(int(infinite.argmax()), table.shape[1])
        raise ValueError(f"row {row}, column {_column(column, features)}: infinite as float32")
    return table, image_shape


def _column(column: int, features: Sequence[str] | None) -> str:
    return f"{column} ({features[column]!r})" if features else str(column)


def _read_file(path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    suffix = path.suffix.lower()
    if _IDX_NAME.search(path.name):
        return _read_idx(path), None
    if suffix == ".npy":
        with path.open("rb") as file:
            return _read_npy(file, path.stat().st_size), None
    if suffix == ".npz":
        (array,) = _read_npz(path).values()
        return array, None
    if suffix == ".csv":
        return _read_csv(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    raise ValueError("expected .npy, .npz, .csv, .parquet, .idx?-ubyte or .idx?-ubyte.gz")


def _read_bytes(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ValueError("truncated within its header")
    return data


def _read_values(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, most_bytes: int
) -> np.ndarray:
    """What follows a header, to the end: no byte less and none more than the header announces."""
    count = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or count > most_bytes:
        raise ValueError(f"announces shape {list(shape)}, more than the file can hold")
    buffer = np.empty(count, np.uint8)
    filled = 0
    while filled < count:
        data = file.read(min(_READ_CHUNK, count - filled))
        if not data:
            raise ValueError(f"truncated: expected {count} bytes of values, got {filled}")
        buffer[filled : filled + len(data)] = np.frombuffer(data, np.uint8)
        filled += len(data)
    # the read that meets the end is also what makes gzip and zip compare their checksums
    if file.read(1):
        raise ValueError(f"longer than the {count} bytes of values it announces")
    return buffer.view(dtype).reshape(shape)


def _read_idx(path: Path, expected: tuple[int, ...] | None = None) -> np.ndarray:
    with path.open("rb") as file:
        return _parse_idx(file, path.stat().st_size, expected)


def _parse_idx(file: IO[bytes], size: int, expected: tuple[int, ...] | None = None) -> np.ndarray:
    # IDX starts with 00 00 and gzip with 1f 8b: no need to trust the file's name
    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if compressed:
        most = max(_MOST_INFLATED, size)
        file, size = gzip.GzipFile(fileobj=file), min(size * _DEFLATE_RATIO, most)  # type: ignore[assignment]
    magic = _read_bytes(file, 4)
    if magic[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of unsigned bytes: it starts with {magic.hex(' ')}")
    shape = struct.unpack(f">{magic[3]}I", _read_bytes(file, 4 * magic[3]))
    if expected is not None and shape != expected:
        raise ValueError(f"expected shape {list(expected)}, got {list(shape)}")
    return _read_values(file, shape, np.dtype(np.uint8), size)


def _read_npy(file: IO[bytes], most_bytes: int) -> np.ndarray:
    shape, fortran_order, dtype = _read_npy_header(file)
    if dtype.kind not in "biuf":  # objects would have to be unpickled
        raise ValueError(f"expected numbers, got dtype {dtype}")
    if fortran_order:
        return _read_values(file, shape[::-1], dtype, most_bytes).T
    return _read_values(file, shape, dtype, most_bytes)


def _read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(io.BytesIO(_read_bytes(file, npy_format.MAGIC_LEN)))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version} is not supported")
    announced = _read_bytes(file, 2 if version == (1, 0) else 4)
    length = int.from_bytes(announced, "little")
    if length > _MOST_NPY_HEADER:
        raise ValueError(f"an npy header of {length} bytes")
    header = io.BytesIO(announced + _read_bytes(file, length))
    if version == (1, 0):
        return npy_format.read_array_header_1_0(header)
    return npy_format.read_array_header_2_0(header)


def _read_npz(path: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The named arrays of an archive; without names, the array `x`, or the only 2-D array."""
    most_bytes = path.stat().st_size * _DEFLATE_RATIO
    with zipfile.ZipFile(path) as archive:
        members = {
            member.filename.removesuffix(".npy"): member
            for member in archive.infolist()
            if member.filename.endswith(".npy")
        }
        if any(m.compress_type not in _ZIP_METHODS for m in members.values()):
            raise ValueError("compressed by another method than deflate")
        if not names:
            names = ("x",) if "x" in members else _only_table(archive, members)
        arrays = {}
        for name in names:
            if name not in members:
                raise ValueError(f"no array called {name}, only {', '.join(members)}")
            with archive.open(members[name]) as file:
                arrays[name] = _read_npy(file, min(members[name].file_size, most_bytes))
        return arrays


def _only_table(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> tuple[str]:
    shapes = {}
    for name, member in members.items():
        with archive.open(member) as file:
            shapes[name] = _read_npy_header(file)[0]
    tables = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(tables) != 1:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"expected an array x or one 2-D array, found {found or 'no array'}")
    return (tables[0],)


def _read_csv(path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    values = packed_array("f")
    features = None
    width = 0
    with path.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        for row in rows:
            if not row:  # a blank line
                continue
            if not width:
                width = len(row)
                if _is_header(row):
                    features = tuple(cell.strip() for cell in row)
                    continue
            if len(row) != width:
                raise ValueError(f"line {rows.line_num}: expected {width} cells, got {len(row)}")
            try:
                values.extend(map(_number, row))
            except ValueError:
                column = len(values) % width  # the cells before it are in already
                raise ValueError(
                    f"line {rows.line_num}, column {_column(column, features)}:"
                    f" {row[column][:40]!r} is not a number"
                ) from None
    if not values:
        raise ValueError("an empty table: no row of numbers")
    return np.array(values, np.float32).reshape(-1, width), features


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        if cell.strip().upper() in ("", "NA"):
            return math.nan
        raise
    if "_" in cell:  # 12_3 is an identifier, though Python reads 123
        raise ValueError(cell)
    return value


def _is_header(row: Sequence[str]) -> bool:
    """Some text and no number. Text beside numbers is a row with a fault, to be reported."""
    text = False
    for cell in row:
        try:
            if not math.isnan(_number(cell)):
                return False
        except ValueError:
            text = True
    return text


def _read_parquet(path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    pandas = _require("pandas", "tabular")
    _require("pyarrow", "tabular")
    frame = pandas.read_parquet(path, engine="pyarrow")
    features = tuple(map(str, frame.columns))
    table = np.empty(frame.shape, np.float32)
    for column, (_, series) in enumerate(frame.items()):
        if series.dtype == object:  # how booleans with gaps arrive
            series = series.convert_dtypes()
        present = series.notna().to_numpy()
        if present.any() and not pandas.api.types.is_numeric_dtype(series.dtype):
            row = int(present.argmax())
            raise ValueError(
                f"row {row}, column {_column(column, features)}:"
                f" {str(series.iloc[row])[:40]!r} is not a number"
            )
        table[:, column] = np.nan
        with np.errstate(over="ignore"):
            table[present, column] = series[present].to_numpy(np.float64)
    return table, features


def _load_digits() -> Dataset:
    digits = _require("sklearn.datasets", "sklearn").load_digits()
    pixels = np.rint(digits.data * (255 / 16)).astype(np.uint8)  # grey levels 0..16
    labels = digits.target.astype(np.int64)
    return Dataset("digits", pixels, train_labels=labels, image_shape=(8, 8))


def _load_published(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    arrays = []
    for file, shape in _IDX_SHAPES.items():
        tried = _candidates(name, (f"{file}.gz", file), data_dir)
        path = next(filter(os.path.isfile, tried), None) or _download(name, file, tried)
        with _blaming(path):
            array = _read_idx(path, shape)
            # both sets use the same file names, so a directory of one passes for the other
            owners = [owner for owner, sums in _IDX_MD5.items() if _idx_md5(array) in sums]
            if owners and name not in owners:
                raise ValueError(f"belongs to {owners[0]}, not to {name}")
        arrays.append(array)
    train, train_labels, test, test_labels = arrays
    return Dataset(
        name,
        train.reshape(len(train), -1),
        test.reshape(len(test), -1),
        train_labels.astype(np.int64),
        test_labels.astype(np.int64),
        image_shape=(28, 28),
    )


def _load_mosi(data_dir: str | os.PathLike[str] | None) -> Dataset:
    tried = _candidates("mosi", ("mosi_utterance.npz",), data_dir)
    path = next(filter(os.path.isfile, tried), None)
    if path is None:
        raise DataError(_not_found("mosi", "mosi_utterance.npz (it cannot be downloaded)", tried))
    with _blaming(path):
        arrays = _read_npz(path, (*_MOSI_PARTS, "label", "split"))
        parts = [arrays[part] for part in _MOSI_PARTS]
        features = tuple(
            f"{part}_{column}" for part in _MOSI_PARTS for column in range(arrays[part].shape[1])
        )
        table, _ = _as_table(np.concatenate(parts, axis=1), features)
        label, split = arrays["label"].astype(np.int64), arrays["split"]
        if not label.shape == split.shape == (len(table),):
            raise ValueError(f"label and split: expected one entry for each of {len(table)} rows")
        train, test = split == 0, split == 2
        if not train.any() or not test.any():
            raise ValueError("split: expected rows marked 0 (train) and 2 (test)")
    return Dataset("mosi", table[train], table[test], label[train], label[test], features=features)


def _cache_dir() -> Path:
    if chosen := os.environ.get("RVI_FAST_CACHE"):
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "rvi_fast"


def _candidates(
    name: str, files: Sequence[str], data_dir: str | os.PathLike[str] | None
) -> list[Path]:
    roots = [Path(root) for root in (data_dir, os.environ.get("RVI_FAST_DATA")) if root]
    places = [place for root in (*roots, _cache_dir()) for place in (root / name, root)]
    return [place / file for place in places for file in files]


def _not_found(name: str, file: str, tried: Sequence[object]) -> str:
    lines = "".join(f"\n  tried {entry}" for entry in tried)
    return (
        f"{name}: cannot get {file}{lines}\n"
        f"Put the file into DIR/{name}/ and pass --data-dir DIR (data_dir=DIR in Python),"
        " or set RVI_FAST_DATA=DIR."
    )


def _download(name: str, file: str, tried: Sequence[Path]) -> Path:
    """Fetches one published file into the cache, where it appears only if its MD5 is right."""
    expected = _IDX_MD5[name][list(_IDX_SHAPES).index(file)]
    attempts: list[object] = list(tried)
    for mirror in _MIRRORS[name]:
        url = f"{mirror}{file}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                data = response.read(_MOST_DOWNLOAD)
            md5 = _idx_md5(_parse_idx(io.BytesIO(data), len(data)))
            if md5 != expected:
                raise ValueError(f"the content's MD5 is {md5}, expected {expected}")
        except Exception as error:  # as in _blaming: what arrives may be anything
            attempts.append(f"{url}: {str(error) or type(error).__name__}")
            continue
        path = _cache_dir() / name / f"{file}.gz"
        with _blaming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as cached:
                cached.write(data)
        return path
    raise DataError(_not_found(name, file, attempts))


def _idx_md5(array: np.ndarray) -> str:
    """MD5 of the uncompressed IDX file that holds these bytes."""
    header = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape)
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
