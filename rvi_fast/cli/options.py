"""Options that several commands share, and how an option is made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._devices import kinds_of_devices
from ..data import DATASETS, SUFFIXES
from ..data.formats.registry import listed, readable
from ..optim import MODES
from ..training.settings import SCALE_UPDATES, Settings

WRITABLE = listed(SUFFIXES)
_DATA_HELP = (
    f"{', '.join(DATASETS)} (digits and artificial need no file), or the path of a table: "
    f"{listed(readable())}, with NaN (or an empty cell, NA, NULL, ?) for missing; or a directory of "
    "Parquet files, or an array in an HDF5 file or a zarr store (table.h5:/group/x, table.zarr), read "
    "in pieces; uint8 arrays are pixels; columns without any number are carried along as they are"
)
DEVICE_HELP = f"{kinds_of_devices()} (default: cuda where there is one)"


def command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    description = text[0].upper() + text[1:] + "."
    # an option cut short may be another one's beginning tomorrow
    parser = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
    parser.set_defaults(command=function)
    return parser


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--data", required=required, metavar="NAME|PATH", help=_DATA_HELP)
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where data sets lie (default: $RVI_FAST_DATA, then a cache that downloads fill)",
    )
    parser.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line of a text file holds names (default: where it holds text and no "
        "number)",
    )
    parser.add_argument(
        "--ignore",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of a file to carry along as they are, by name or number from 0",
    )
    parser.add_argument("--subset", type=int, metavar="N", help="use N random rows")
    parser.add_argument(
        "--missing",
        type=float,
        default=0.0,
        metavar="RATE",
        help="hide this share of the entries from the model and score them at the end (default: 0)",
    )
    parser.add_argument(
        "--missing-boxes",
        type=int,
        metavar="COUNT",
        help="hide this many boxes of 4x4 pixels from each image, beside --missing",
    )
    add_setting(parser, "seed")
    parser.add_argument(
        "--recipe",
        choices=("table", "figure"),
        default="table" if required else None,
        help="figure: rows, hidden entries and scale as in the runs of `rvi-fast reproduce`; of a "
        "table without a test part a quarter of the rows is one (default: "
        + ("table)" if required else "that of the run)"),
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    """Options of training: where tables of rows lie, and the numbers of a directory of files."""
    parser.add_argument(
        "--storage",
        type=_storage,
        metavar="DIR|host",
        help="where the rows' posteriors and moments lie: a directory, for tables larger than memory, "
        "which stay there and belong to the run; or in host memory beside a GPU; rvi and vad only "
        "(default: in the device's memory)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where the numbers of a directory of Parquet files are kept in one file, 4 bytes each "
        "(default: beside --run-dir, with .cache at the end of its name)",
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """An option of commands that write what is read in pieces."""
    parser.add_argument(
        "--jobs",
        type=int,
        help="of a directory of Parquet files, or an array in an HDF5 file or a zarr store: processes "
        "side by side (default: as many as there are processors)",
    )


def add_setting(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """An option that is an argument of `fit`: type, default and help are those of `Settings`."""
    kind, default, text = Settings.option(name)
    choices = {"optimizer": MODES, "scale_update": SCALE_UPDATES}
    if name in choices:
        options["choices"] = choices[name]
    shown = "that of --lr" if default is None else default if kind is str else f"{default:g}"
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        type=kind,
        default=default,
        help=f"{text} (default: {shown})",
        **options,
    )


def add_run_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--run-dir",
        required=required,
        type=Path,
        metavar="DIR",
        help="a run directory that `rvi-fast train` or fit(run_dir=) wrote",
    )
    add_data_arguments(parser, required=False)
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="part of a named data set (default: test where there is one)",
    )
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument(
        "--steps",
        type=int,
        help="optimisation steps per row; those of a vae start from its encoder (default: 100, and "
        "for a vae as many as it was trained with)",
    )
    parser.add_argument(
        "--lr",
        type=float,
        help="learning rate; 0.03 suits a model without groups (default: 0.01)",
    )
    parser.add_argument(
        "--scale-factor",
        type=_factor,
        default=1.0,
        metavar="NUMBER|held-out",
        help="raise the likelihood's scale for these rows; held-out finds by how much, for imputation "
        "where much is missing (default: 1)",
    )


def _factor(text: str) -> float | str:
    return text if text == "held-out" else float(text)


def share_or_count(text: str) -> float | int:
    return int(text) if text.isdecimal() else float(text)


def _storage(text: str) -> str:
    """The word host, or a directory, which is found from wherever a later command is called."""
    return text if text == "host" else str(Path(text).expanduser().resolve())
