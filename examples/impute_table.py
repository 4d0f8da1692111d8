"""Fills the holes of a file of numbers, and says how far off it expects to be, column by column.

    python examples/impute_table.py mine.csv   # writes mine-filled.csv
    python examples/impute_table.py            # makes diabetes.csv with holes first, and compares

Observed cells are written as they were read, byte for byte; columns of text and dates are carried along.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes

from rvi_fast import data
from rvi_fast.sklearn import RelayImputer


def fill_file(path):
    """Writes the filled table beside the file and returns it, [N, D]."""
    table = data.read_table(path)
    imputer = RelayImputer(random_state=0, keep_empty_features=True)
    filled = imputer.fit_transform(table.values)

    target = path.with_name(f"{path.stem}-filled{path.suffix}")
    data.write_table(target, table.filled(filled, np.isnan(table.values)))
    print(f"wrote {target}, expected error {imputer.held_out_error_:.2f} of that of column means")
    return filled


def with_holes(path, rows):
    """Writes a table of ten measurements of patients, three tenths missing; returns the whole of it."""
    bunch = load_diabetes(scaled=False)
    truth = bunch.data[:rows].round(4)
    text = truth.astype(str)
    text[np.random.default_rng(0).random(truth.shape) < 0.3] = ""
    header = ",".join(bunch.feature_names)
    np.savetxt(path, text, "%s", ",", header=header, comments="")
    return truth, bunch.feature_names, text == ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", type=Path, help="a CSV, TSV or Parquet file")
    parser.add_argument("--small", action="store_true", help="fewer rows, for a quick look")
    options = parser.parse_args()
    if options.table is not None:
        fill_file(options.table)
    else:
        path = Path("diabetes.csv")
        truth, names, holes = with_holes(path, 120 if options.small else 442)
        filled = fill_file(path)
        spread = truth.std(axis=0)
        for column, name in enumerate(names):
            wrong = (filled - truth)[holes[:, column], column]
            print(
                f"{name:4} off by {np.sqrt(np.mean(wrong**2)) / spread[column]:.2f} of its spread"
            )
