"""What the command line takes: commands, options and their help."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import models
from .._devices import kinds_of_devices
from .._version import __version__
from ..data.transforms import TRANSFORMS
from ..experiments.registry import FIGURES
from ..layout import FORMS
from . import apply, pages
from .impute_options import add_impute
from .laws import NAMES
from .options import (
    DEVICE_HELP,
    WRITABLE,
    add_data_arguments,
    add_jobs,
    add_places,
    add_quiet,
    add_run_arguments,
    add_setting,
    command,
    share_or_count,
)
from .train import train_model


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rvi-fast",
        allow_abbrev=False,
        description="Relay Variational Inference: latent representations and imputations from "
        "incomplete data, without an encoder.",
    )
    parser.add_argument("--version", action="version", version=f"rvi-fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    model = (_add_train, _add_infer, add_impute, _add_export)
    for add in (*model, _add_info, _add_demo, _add_reproduce, _add_report):
        add(commands)
    return parser


def _add_train(commands: Any) -> None:
    train = command(
        commands,
        "train",
        train_model,
        "train a model on a data set and write it to a run directory",
    )
    add_data_arguments(train, required=True)
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
    for name in (
        *("epochs", "batch_size", "lr", "posterior_lr", "kl_weight", "decoder_weight_decay"),
        *("scale_update", "optimizer"),
    ):
        add_setting(train, name)
    train.add_argument(
        "--scale-annealing",
        type=float,
        nargs=2,
        metavar=("FACTOR", "SHARE"),
        help="begin as if the likelihood's scale were FACTOR times as large, which falls to 1 over "
        "SHARE of the epochs (default: it does not)",
    )
    train.add_argument(
        "--moments",
        choices=("float32", "bfloat16"),
        default="float32",
        help="Adam's moments of the rows: bfloat16, rounded at random, takes a third off what "
        "a row needs; a model without rows has none (default: float32)",
    )
    _add_model_arguments(train)
    _add_column_arguments(train)
    train.add_argument("--device", help=DEVICE_HELP)
    _add_run_arguments(train)
    add_places(train)
    add_quiet(train)


def _add_run_arguments(train: argparse.ArgumentParser) -> None:
    """How a run goes on after a kill, and what it leaves for that."""
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --run-dir from its last checkpoint; the other options must be as "
        "before, the table may have more rows after those of then",
    )

    add_setting(train, "checkpoint_every", metavar="SECONDS")
    train.add_argument(
        "--checkpoint-async",
        action="store_true",
        help="write checkpoints while training goes on, from a copy in memory",
    )
    train.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="under torchrun: how long processes wait for each other (default: 60)",
    )


def _add_column_arguments(train: argparse.ArgumentParser) -> None:
    """What the columns of a table are, and what is done to them before a model sees them."""
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


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--latent-dim", type=int, default=64, help="latent dimensions (default: 64)"
    )
    parser.add_argument(
        "--hidden",
        type=int,
        nargs="*",
        metavar="WIDTH",
        help="widths of the decoder's hidden layers (default: 64 64), or channels of a convolutional "
        "one, from the smallest image on (default: 32 16)",
    )
    parser.add_argument(
        "--decoder",
        choices=["dense", "conv"],
        help="what makes images of latents: dense layers, or transposed convolutions (default: dense)",
    )
    parser.add_argument(
        "--image-shape",
        type=int,
        nargs="+",
        metavar="SIDE",
        help="height and width, or channels, height and width of the images of --decoder conv "
        "(default: square)",
    )
    parser.add_argument(
        "--initial-scale",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="where the scale of the likelihood starts, in standard deviations of the data "
        "or, of pixels, in shares of white (default: 1)",
    )
    parser.add_argument(
        "--initial-log-std",
        type=float,
        metavar="NUMBER",
        help="where the log standard deviations of rows start; rvi and vad only (default: -2)",
    )
    parser.add_argument(
        "--groups",
        type=int,
        nargs="*",
        metavar="K",
        help="relay vectors in each group, rvi only (default: 25 50 100)",
    )
    parser.add_argument(
        "--top",
        type=share_or_count,
        help="coefficients each group keeps: a share "
        "such as 0.5 or a count such as 10, rvi only (default: 0.5)",
    )
    parser.add_argument(
        "--form", choices=FORMS, help="how relay vectors combine, rvi only (default: linear)"
    )
    _add_encoder_arguments(parser)


def _add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mask-input",
        action="store_true",
        default=None,
        help="the encoder sees which entries are missing, vae only",
    )
    parser.add_argument(
        "--refine-steps",
        type=int,
        metavar="K",
        help="each batch's posteriors go K steps on from what the encoder gives, vae only (default: 0)",
    )
    parser.add_argument(
        "--refine-lr",
        type=float,
        metavar="RATE",
        help="learning rate of those steps (default: 0.01)",
    )


def _add_infer(commands: Any) -> None:
    new = command(
        commands, "infer", apply.infer_rows, "find the posteriors of new rows with a trained model"
    )
    add_run_arguments(new)
    new.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help=f"table of posterior means and standard deviations: {WRITABLE}; of a directory of Parquet "
        "files a directory, of an array in an HDF5 file or a zarr store .npy, .h5, .hdf5 or .zarr",
    )
    add_jobs(new)
    add_quiet(new)


def _add_export(commands: Any) -> None:
    file = command(
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
    file.add_argument(
        "--no-rows",
        dest="rows",
        action="store_false",
        help="leave out the rows of the training data: kilobytes, which serve new rows alone",
    )


def _add_info(commands: Any) -> None:
    command(
        commands,
        "info",
        pages.info,
        "print versions, devices, and which "
        "implementation serves which device, after running every op",
    )


def _add_demo(commands: Any) -> None:
    demo = command(
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
    add_quiet(demo)


def _add_reproduce(commands: Any) -> None:
    figures = command(
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
    figures.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs side by side: processes on the CPU, one process on any other device (default: 1)",
    )
    figures.add_argument("--device", help=f"{kinds_of_devices()}: where to train (default: cpu)")
    figures.add_argument(
        "--keep",
        action="store_true",
        help="runs whose numbers DIR/FIGURE.csv holds count as done, though DIR/runs lacks them",
    )
    figures.add_argument(
        "--redraw",
        action="store_true",
        help="draw the curves anew from the tables DIR/FIGURE.csv that are there; nothing is run",
    )
    figures.add_argument(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where figures and runs go (default: results)",
    )
    add_quiet(figures)


def _add_report(commands: Any) -> None:
    page = command(
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
