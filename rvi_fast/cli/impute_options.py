"""Options of `rvi-fast impute`: of a table by itself, and of a trained model in a run directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..data.formats.registry import listed
from .apply import impute_table
from .options import WRITABLE, add_jobs, add_quiet, add_run_arguments, command
from .table.command import impute_file
from .table.sources import ENDINGS

# what says nothing without a trained model, and what says nothing with one
_OF_RUN = (
    *("data", "data_dir", "ignore", "subset", "missing", "missing_boxes", "recipe", "split"),
    *("steps", "lr", "scale_factor", "estimate", "min_value", "max_value", "jobs"),
)
_OF_TABLE = (
    *("delimiter", "decimal", "encoding", "kinds", "missing_values", "separate", "overwrite"),
    *("time_limit", "report"),
)


def add_impute(commands: Any) -> None:
    """Adds the command to a parser."""
    fill = command(
        commands,
        "impute",
        _impute,
        "fill in the empty cells of a table; with --run-dir by a model trained before",
    )
    fill.add_argument(
        "table",
        nargs="?",
        metavar="FILE",
        help=f"the table, read and modelled as it is: {listed(ENDINGS)}",
    )
    fill.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="the completed table, observed cells as they were read; of a table of text byte for "
        f"byte. With --run-dir: {WRITABLE}; of a directory of Parquet files a directory, of an array in "
        "an HDF5 file or a zarr store .npy, .h5, .hdf5 or .zarr",
    )
    fill.add_argument(
        "--draws",
        type=int,
        metavar="S",
        help="S random completions instead of one: rows below each other with a column draw; with "
        "--run-dir [S, N, D] in .npy or .npz",
    )
    add_quiet(fill)
    _add_table_options(fill.add_argument_group("a table by itself"))
    _add_model_options(fill)
    defaults = {name: fill.get_default(name) for name in (*_OF_RUN, *_OF_TABLE)}
    fill.set_defaults(defaults=defaults)


def _impute(arguments: argparse.Namespace) -> int:
    """Of a table by itself, or with a model that was trained before."""
    if arguments.table is None and arguments.run_dir is None:
        raise ValueError("impute: expected a FILE, or --run-dir with a trained model")
    if arguments.table is not None and arguments.run_dir is not None:
        raise ValueError(
            f"--run-dir: expected none beside the table {arguments.table}; a trained model takes its "
            "table from --data"
        )
    alone = arguments.table is not None
    for name in _OF_RUN if alone else _OF_TABLE:
        if getattr(arguments, name) != arguments.defaults[name]:
            where = "with --run-dir alone" if alone else "of a FILE without --run-dir alone"
            raise ValueError(f"--{name.replace('_', '-')}: expected {where}")
    return impute_file(arguments) if alone else impute_table(arguments)


def _add_table_options(group: Any) -> None:
    group.add_argument("--delimiter", metavar="SIGN", help="between cells (default: as found)")
    group.add_argument("--decimal", choices=(".", ","), help="decimal sign (default: as found)")
    group.add_argument("--encoding", metavar="NAME", help="of a text file (default: as found)")
    group.add_argument(
        "--kinds",
        nargs="+",
        default=[],
        metavar="COLUMN=KIND",
        help="by name or number from 0: number, integer, boolean, category, date, date:FORMAT, or text, "
        "which is passed through (default: as found)",
    )
    group.add_argument(
        "--missing-values",
        nargs="+",
        default=[],
        metavar="TOKEN",
        help="further cells that are missing; empty ones, ?, NA, NaN, NULL, None and what else pandas "
        "takes for missing always are",
    )
    group.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="how long the command may take, from reading to writing: training has half of what reading "
        "leaves, and where the rest would not do for all rows the linear model fills them in alone; "
        "prints what was left out. Reading, the linear model and writing are done in any case",
    )
    group.add_argument(
        "--separate", action="store_true", help="a file for each draw: NAME-1.csv, NAME-2.csv, ..."
    )
    group.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="one page that tells what was filled in and how well, in tables and pictures; needs "
        "matplotlib",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace --out and --report where they are there already",
    )


def _add_model_options(fill: argparse.ArgumentParser) -> None:
    add_run_arguments(fill, required=False)
    add_jobs(fill)
    fill.add_argument(
        "--estimate",
        choices=("mean", "mode"),
        help="what is filled in (default: the mean of numbers and counts, the most probable of yes/no "
        "and classes; mode: whole counts too)",
    )
    for bound, extreme in (("min", "smallest"), ("max", "largest")):
        fill.add_argument(
            f"--{bound}-value",
            type=float,
            metavar="NUMBER",
            help=f"{extreme} number to fill in, in the units of the data (default: none)",
        )
