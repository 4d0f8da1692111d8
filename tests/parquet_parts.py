"""Parquet files with columns of every kind, for the tests of directories of them."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS = ("x0", "x1", "single", "whole", "flag", "price")


def write_part(path, rows, seed, *, group=300):
    """A file with keys, dates and categories beside numbers of every kind, a fifth of them missing."""
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(rows, 2))
    x = latent @ np.array([[1, 2, -1, 0.5, 1, -2], [2, -1, 1, 1, -1, 0.5]])
    x += 0.05 * generator.normal(size=x.shape)
    gone = generator.random(x.shape) < 0.2
    prices = [
        None if m else decimal.Decimal(f"{v:.2f}") for v, m in zip(x[:, 5], gone[:, 5], strict=True)
    ]
    table = pa.table(
        {
            "key": pa.array([f"{seed}-{row}" for row in range(rows)]),
            "x0": pa.array(x[:, 0], mask=gone[:, 0]),
            "x1": pa.array(np.where(gone[:, 1], np.nan, x[:, 1])),
            "when": pa.array([datetime.datetime(2024, 1, 1)] * rows, pa.timestamp("ms")),
            "single": pa.array(x[:, 2].astype(np.float32), mask=gone[:, 2]),
            "whole": pa.array(np.rint(20 * x[:, 3]).astype(np.int16), mask=gone[:, 3]),
            "flag": pa.array(x[:, 4] > 0, mask=gone[:, 4]),
            "price": pa.array(prices, pa.decimal128(9, 2)),
            "place": pa.array(["east", "west"] * (rows // 2)).dictionary_encode(),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, compression="zstd")


def write_directory(path):
    """Four files in two directories, 2,012 rows, and something beside them that is none."""
    for part in range(4):
        write_part(path / f"month={part % 2}" / f"{part}.parquet", 500 + 2 * part, part)
    (path / "_rubbish.parquet").write_bytes(b"no parquet")


def whole(path):
    """All rows in the order of `ParquetDirectory`, and what each file holds."""
    names = sorted(file.relative_to(path) for file in path.glob("**/*.parquet"))
    names = [name for name in names if not name.name.startswith("_")]
    return {name.as_posix(): pq.ParquetFile(path / name).read() for name in names}
