"""What the command line takes: commands, options and their help."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import models
from .._devices import kinds_of_devices
from .._version import __version__
from ..data import DATASETS, SUFFIXES
from ..data.formats.registry import listed, readable
from ..data.transforms import TRANSFORMS
from ..experiments.registry import FIGURES
from ..layout import FORMS
from ..optim import MODES
from . import apply, pages
from .laws import NAMES
from .train import train_model

_WRITABLE = listed(SUFFIXES)
_DATA_HELP = (
    f"{', '.join(DATASETS)} (digits and artificial need no file), or the path of a table: "
    f"{listed(readable())}, with NaN (or an empty cell, NA, NULL, ?) for missing; "
    "uint8 arrays are pixels; columns without any number are carried along as they are"
)
_DEVICE_HELP = f"{kinds_of_devices()} (default: cuda where there is one)"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rvi-fast",
        allow_abbrev=False,
        description="Relay Variational Inference: latent representations and imputations from "
        "incomplete data, without an encoder.",
    )
    parser.add_argument("--version", action="version", version=f"rvi-fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = _command(
        commands,
        "train",
        train_model,
        "train a model on a data set and write it to a run directory",
    )
    _add_data_arguments(train, required=True)
    train.add_argument(
        "--run-dir",
        required=True,
        type=Path,
        metavar="DIR",
        help="where the checkpoints, metrics.jsonl and run.json go; made if needed",
    )
    train.add_argument(
        "--model",
        choices=sorted(models.BUILDERS),
        default="rvi",
        help="rvi: relays shared by all rows; vad: none; vae: an encoder (default: rvi)",
    )
    train.add_argument(
        "--epochs", type=int, default=250, help="passes over the data (default: 250)"
    )
    train.add_argument("--batch-size", type=int, default=256, help="rows per step (default: 256)")
    train.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: 0.001)")
    train.add_argument(
        "--posterior-lr",
        type=float,
        help="learning rate of the posteriors and relays (default: that of --lr)",
    )
    train.add_argument(
        "--kl-weight", type=float, default=1.0, help="factor of the KL divergence (default: 1)"
    )
    train.add_argument(
        "--optimizer",
        choices=MODES,
        default="dense",
        help="what happens to rows "
        "outside the batch: dense equals torch's Adam on all rows, lazy leaves them "
        "alone, row corrects by each row's own visits (default: dense)",
    )
    train.add_argument(
        "--moments",
        choices=("float32", "bfloat16"),
        default="float32",
        help="Adam's moments of the rows: bfloat16, rounded at random, takes a third off what "
        "a row needs; a model without rows has none (default: float32)",
    )
    train.add_argument("--latent-dim", type=int, default=64, help="latent dimensions (default: 64)")
    train.add_argument(
        "--hidden",
        type=int,
        nargs="*",
        default=[64, 64],
        metavar="WIDTH",
        help="widths of the decoder's hidden layers (default: 64 64)",
    )
    train.add_argument(
        "--groups",
        type=int,
        nargs="*",
        metavar="K",
        help="relay vectors in each group, rvi only (default: 25 50 100)",
    )
    train.add_argument(
        "--top",
        type=_share_or_count,
        help="coefficients each group keeps: a share "
        "such as 0.5 or a count such as 10, rvi only (default: 0.5)",
    )
    train.add_argument(
        "--form", choices=FORMS, help="how relay vectors combine, rvi only (default: linear)"
    )
    train.add_argument(
        "--mask-input",
        action="store_true",
        default=None,
        help="the encoder sees which entries are missing, vae only",
    )
    train.add_argument(
        "--transform",
        choices=TRANSFORMS,
        help="what bends the columns of a table before they are standardised: log, quantile (normal "
        "scores of ranks), or auto, which takes either where a column has heavy tails (default: auto "
        "for files, none for named data sets and pixels; with --resume that of the run)",
    )
    train.add_argument(
        "--likelihood",
        nargs="+",
        metavar="[COLUMN=]LAW",
        help=f"what the data are: {', '.join(NAMES)}; LAW for all columns, COLUMN=LAW for one, by name "
        "or number from 0. categorical:K has codes 0 to K - 1, without K the largest code counts "
        "(default: gaussian)",
    )
    train.add_argument(
        "--binarize",
        nargs="?",
        type=float,
        const=0.5,
        metavar="THRESHOLD",
        help="pixels above this share of white become white, the others black, as --likelihood "
        "bernoulli wants them; new images likewise (default: pixels as they are; THRESHOLD: 0.5)",
    )
    train.add_argument("--device", help=_DEVICE_HELP)
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --run-dir from "
        "its last checkpoint; the other options must be as before",
    )

    train.add_argument(
        "--checkpoint-every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time between checkpoints, which follow an epoch; 0: after each (default: 30)",
    )
    train.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="under torchrun: how long processes wait for each other (default: 60)",
    )

    new = _command(
        commands, "infer", apply.infer_rows, "find the posteriors of new rows with a trained model"
    )
    _add_run_arguments(new)
    new.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help=f"table of posterior means and standard deviations: {_WRITABLE}",
    )

    fill = _command(
        commands,
        "impute",
        apply.impute_table,
        "fill in missing entries with a trained model; without --data those of the training data",
    )
    _add_run_arguments(fill)
    fill.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="completed table in the units of the data, observed entries as they were read: "
        f"{_WRITABLE}",
    )
    fill.add_argument(
        "--draws",
        type=int,
        metavar="S",
        help="write S random completions [S, N, D] instead of one; .npy or .npz",
    )

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

    file = _command(
        commands,
        "export",
        apply.export_model,
        "write the model of a run directory to one safetensors file",
    )
    file.add_argument(
        "--run-dir",
        required=True,
        type=Path,
        metavar="DIR",
        help="a run directory, whether one process trained it or many",
    )
    file.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the file, which load() reads"
    )

    _command(
        commands,
        "info",
        pages.info,
        "print versions, devices, and which "
        "implementation serves which device, after running every op",
    )

    demo = _command(
        commands,
        "demo",
        pages.demo,
        "train on handwritten digits with half of the pixels "
        "missing, fill them in, and leave pictures",
    )
    demo.add_argument(
        "--run-dir",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="where results go (default: runs/demo)",
    )
    demo.add_argument("--epochs", type=int, help="passes over the data (default: 300)")

    figures = _command(
        commands,
        "reproduce",
        pages.reproduce,
        "make figures of the paper: a csv of results and a picture of each; started again, it goes on",
    )
    figures.add_argument(
        "figures",
        nargs="+",
        metavar="FIGURE",
        help=f"{', '.join(FIGURES)}, or all",
    )
    figures.add_argument(
        "--scale",
        choices=("quick", "reduced", "paper"),
        default="quick",
        help="quick: digits, minutes; reduced: 10,000 rows, two seeds, an hour or so on "
        "two cores; paper: full data and epochs, days (default: quick)",
    )
    figures.add_argument(
        "--data",
        nargs="+",
        metavar="NAME|PATH",
        help="data sets instead of those of the scale, as for train",
    )
    figures.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where data sets lie, as for train"
    )
    figures.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    figures.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where figures and runs go (default: results)",
    )

    page = _command(
        commands,
        "report",
        pages.report,
        "write one page, HTML and Markdown, with the paper's claims beside the results of "
        "`rvi-fast reproduce`",
    )
    page.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="the --out of `rvi-fast reproduce` (default: results)",
    )
    page.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="the page; FILE.md goes beside it (default: DIR/report.html)",
    )
    for command in (train, new, fill, demo, figures):
        command.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    description = text[0].upper() + text[1:] + "."
    # an option cut short may be another one's beginning tomorrow
    parser = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
    parser.set_defaults(command=function)
    return parser


def _add_data_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
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
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--recipe",
        choices=("table", "figure"),
        default="table" if required else None,
        help="figure: rows, hidden entries and scale as in the runs of `rvi-fast reproduce`; of a "
        "table without a test part a quarter of the rows is one (default: "
        + ("table)" if required else "that of the run)"),
    )


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir",
        required=True,
        type=Path,
        metavar="DIR",
        help="a run directory that `rvi-fast train` or fit(run_dir=) wrote",
    )
    _add_data_arguments(parser, required=False)
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="part of a named data set (default: test where there is one)",
    )
    parser.add_argument("--device", help=_DEVICE_HELP)
    parser.add_argument(
        "--steps", type=int, default=100, help="optimisation steps per row (default: 100)"
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=0.01,
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


def _share_or_count(text: str) -> float | int:
    return int(text) if text.isdecimal() else float(text)
