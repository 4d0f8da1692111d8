"""The command line: `rvi-fast train | infer | impute | info | demo | reproduce | report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from . import _info, data, models
from ._version import __version__
from .layout import FORMS
from .optim import MODES
from .reference import PIXEL_SCALE
from .training import distributed, export, fit, impute, infer, load
from .training.checkpoints import latest_epoch
from .training.directory import RunDirectory, RunDirectoryInUse, read_run, write_run
from .training.interrupts import Interrupted, raised

_DATA_HELP = (
    "digits (built into scikit-learn), artificial, mnist, fashion-mnist, mosi, or the path of a "
    "table: .npy, .npz, .csv or .parquet with NaN (or an empty cell) for missing; uint8 arrays are "
    "pixels"
)
# options of one model alone
_OPTIONS = {"groups": "rvi", "top": "rvi", "form": "rvi", "mask_input": "vae"}


class _Table(NamedTuple):
    """A table as the model sees it, and the way back."""

    dataset: data.Dataset
    raw: np.ndarray  # [N, D] as read: uint8, or float32 with NaN for missing
    mask: np.ndarray  # bool [N, D], true = shown to the model
    x: np.ndarray  # raw, or standardised on the training run's observed entries

    @property
    def known(self) -> np.ndarray:
        """Entries whose true value the file holds."""
        return ~np.isnan(self.raw) if self.raw.dtype != np.uint8 else np.ones_like(self.mask)

    def part(self, rows: range) -> _Table:
        """Some of its rows."""
        own = slice(rows.start, rows.stop)
        return _Table(self.dataset, self.raw[own], self.mask[own], self.x[own])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with raised():
            return arguments.command(arguments)
    except (ValueError, ImportError, OSError, RunDirectoryInUse, distributed.RankError) as error:
        print(f"rvi-fast: error: {error}", file=sys.stderr)
    except FloatingPointError as error:
        print(f"rvi-fast: training diverged: {error}", file=sys.stderr)
    except Interrupted as error:
        print(f"\nrvi-fast: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("\nrvi-fast: interrupted", file=sys.stderr)
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rvi-fast",
        description="Relay Variational Inference: latent representations and imputations from "
        "incomplete data, without an encoder.",
    )
    parser.add_argument("--version", action="version", version=f"rvi-fast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = _command(
        commands, "train", _train, "train a model on a data set and write it to a run directory"
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
    train.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
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
        commands, "infer", _infer, "find the posteriors of new rows with a trained model"
    )
    _add_run_arguments(new)
    new.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="table of posterior means and standard deviations: .npy, .npz, .csv or .parquet",
    )

    fill = _command(
        commands,
        "impute",
        _impute,
        "fill in missing entries with a trained model; without --data those of the training data",
    )
    _add_run_arguments(fill)
    fill.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="completed table in the units of the data: .npy, .npz, .csv or .parquet",
    )
    fill.add_argument(
        "--draws",
        type=int,
        metavar="S",
        help="write S random completions [S, N, D] instead of one; .npy or .npz",
    )

    file = _command(
        commands, "export", _export, "write the model of a run directory to one safetensors file"
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
        lambda _: _info.main(),
        "print versions, devices, and which "
        "implementation serves which device, after running every op",
    )

    demo = _command(
        commands,
        "demo",
        _demo,
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
        _reproduce,
        "make figures of the paper: a csv of results and a picture of each; started again, it goes on",
    )
    figures.add_argument(
        "figures",
        nargs="+",
        metavar="FIGURE",
        help="fig1 to fig11, interpolation, latent, map, or all",
    )
    figures.add_argument(
        "--scale",
        choices=("quick", "reduced", "paper"),
        default="quick",
        help="quick: digits, minutes; reduced: 10,000 rows, two seeds, an hour or so on "
        "two cores; paper: full data and epochs, days (default: quick)",
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
        _report,
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
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
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


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run-dir",
        required=True,
        type=Path,
        metavar="DIR",
        help="a run directory that `rvi-fast train` wrote",
    )
    _add_data_arguments(parser, required=False)
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="part of a named data set (default: test where there is one)",
    )
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


def _load_table(
    name: str,
    data_dir: Path | None,
    split: str | None,
    subset: int | None,
    missing: float,
    boxes: int | None,
    seed: int,
    standardizer: data.Standardizer | None = None,
) -> tuple[_Table, data.Standardizer | None]:
    dataset = data.load_data(name, data_dir=data_dir)
    if split is None:
        split = "train" if dataset.test is None else "test"
    raw = dataset.train if split == "train" else dataset.test
    if raw is None:
        raise ValueError(f"split: {name} has no test part")
    if subset is not None:
        if not 1 <= subset <= len(raw):
            raise ValueError(f"subset: expected 1 to {len(raw)} rows, got {subset}")
        raw = raw[np.sort(np.random.default_rng(seed).permutation(len(raw))[:subset])]
    mask = data.mcar(raw.shape, missing, seed=seed)
    if boxes is not None:
        if dataset.image_shape is None:
            raise ValueError(f"missing-boxes: expected images, {name} holds none")
        mask &= data.missing_boxes(len(raw), dataset.image_shape, boxes, seed=seed)
    if raw.dtype == np.uint8:
        return _Table(dataset, raw, mask, raw), None
    mask &= ~np.isnan(raw)
    standardizer = standardizer or data.Standardizer.fit(raw, mask)
    if len(standardizer.mean) != raw.shape[1]:
        raise ValueError(
            f"data: expected {len(standardizer.mean)} features as in training, got {raw.shape[1]}"
        )
    return _Table(dataset, raw, mask, standardizer.transform(raw)), standardizer


def _print_scores(table: _Table, reconstruction: np.ndarray) -> None:
    """Elastic errors in the model's units: pixels in [0, 1], other features standardised."""
    rows = [("observed entries", table.mask), ("hidden entries", table.known & ~table.mask)]
    _say("\nelastic error (mean of |error| + error^2, from the posterior mean)")
    for name, scored in rows:
        count = int(scored.sum())
        error = data.elastic(table.x, reconstruction, scored) * count if count else 0.0
        # of the rows of all processes, where there are several
        error, count = distributed.total(torch.tensor([error, count], dtype=torch.float64)).tolist()
        if count:
            _say(f"  {name:<18} {error / count:.4f}")


def _say(text: str) -> None:
    """Prints, in the first process alone where there are several."""
    distributed.first(lambda: print(text, flush=True))


def _train(arguments: argparse.Namespace) -> int:
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if distributed.launched():
        device = distributed.init(timeout=arguments.timeout, device=arguments.device)
    table, standardizer = _load_table(
        arguments.data,
        arguments.data_dir,
        "train",
        arguments.subset,
        arguments.missing,
        arguments.missing_boxes,
        arguments.seed,
    )
    options: dict[str, Any] = {"latent_dim": arguments.latent_dim, "hidden": arguments.hidden}
    for name, owner in _OPTIONS.items():
        value = getattr(arguments, name)
        if value is not None:
            if arguments.model != owner:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: expected with --model {owner} only")
            options[name] = value
    shape = table.raw.shape
    if distributed.launched():
        if arguments.model == "vae":
            raise ValueError("--model: expected rvi or vad under torchrun: a vae owns no rows")
        options["shard"] = distributed.rows_of_rank(shape[0])
    torch.manual_seed(arguments.seed)
    model = models.BUILDERS[arguments.model](*shape, **options)
    run_dir: Path = arguments.run_dir
    named = arguments.data in data.DATASETS
    run = {
        "data": arguments.data if named else str(Path(arguments.data).resolve()),
        "subset": arguments.subset,
        "missing": arguments.missing,
        "missing_boxes": arguments.missing_boxes,
        "seed": arguments.seed,
        "pixels": table.raw.dtype == np.uint8,
        "standardizer": standardizer.to_dict() if standardizer else None,
    }
    distributed.first(lambda: _record_run(run_dir, run, resume=arguments.resume))
    _say(
        f"{table.dataset.name}: {table.raw.shape[0]} rows, {table.raw.shape[1]} features, "
        f"{1 - table.mask.mean():.1%} missing; {arguments.model} on {device}"
    )
    if "shard" in options:
        table = table.part(options["shard"])
    fit(
        model,
        table.x,
        mask=table.mask,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        posterior_lr=arguments.posterior_lr,
        optimizer=arguments.optimizer,
        moment_dtype=torch.bfloat16 if arguments.moments == "bfloat16" else None,
        kl_weight=arguments.kl_weight,
        seed=arguments.seed,
        device=device,
        progress=not arguments.quiet,
        run_dir=run_dir,
        resume=arguments.resume,
        checkpoint_every=arguments.checkpoint_every,
    )
    encoded = infer(model, table.x, mask=table.mask) if model.amortized else None
    _print_scores(table, model.reconstruct(posterior=encoded).cpu().numpy())
    _say(f"\nwritten to {run_dir}")
    if distributed.launched():
        distributed.leave()
    return 0


def _open_run(
    arguments: argparse.Namespace, *, training_data: bool
) -> tuple[models.LatentModel, _Table, data.Standardizer | None]:
    run = _read_run(arguments.run_dir)
    model = load(arguments.run_dir)
    stored = run["standardizer"]
    standardizer = data.Standardizer.from_dict(stored) if stored else None
    if training_data:
        source = (run["data"], arguments.data_dir, "train", run["subset"], run["missing"])
        table, _ = _load_table(*source, run.get("missing_boxes"), run["seed"], standardizer)
    else:
        name = arguments.data or run["data"]
        source = (name, arguments.data_dir, arguments.split, arguments.subset, arguments.missing)
        table, _ = _load_table(*source, arguments.missing_boxes, arguments.seed, standardizer)
    if (table.raw.dtype == np.uint8) != run["pixels"]:
        kinds = ("pixels (uint8)", "a table of numbers")
        expected, got = kinds if run["pixels"] else kinds[::-1]
        raise ValueError(f"--data: expected {expected} as in training, got {got}")
    return model, table, standardizer


def _posterior(arguments: argparse.Namespace, model: models.LatentModel, table: _Table) -> Any:
    return infer(
        model,
        table.x,
        mask=table.mask,
        steps=arguments.steps,
        lr=arguments.lr,
        seed=arguments.seed,
        scale_factor=arguments.scale_factor,
        progress=not arguments.quiet,
    )


def _infer(arguments: argparse.Namespace) -> int:
    model, table, _ = _open_run(arguments, training_data=False)
    posterior = _posterior(arguments, model, table)
    with torch.no_grad():
        latents = torch.cat((posterior.mean(), posterior.std()), dim=1).numpy()
    parts = [f"{part}_{t}" for part in ("mean", "std") for t in range(posterior.latent_dim)]
    data.save_table(arguments.out, latents, parts)
    _print_scores(table, model.reconstruct(posterior=posterior).numpy())
    print(f"\nposterior means and standard deviations of {len(latents)} rows: {arguments.out}")
    return 0


def _impute(arguments: argparse.Namespace) -> int:
    own = arguments.data is None and arguments.split is None
    model, table, standardizer = _open_run(arguments, training_data=own)
    known = own and not model.amortized and arguments.scale_factor == 1
    posterior = None if known else _posterior(arguments, model, table)
    torch.manual_seed(arguments.seed)
    filled = impute(
        model, table.x, mask=table.mask, posterior=posterior, num_draws=arguments.draws
    ).numpy()
    if standardizer is None:
        completed = np.clip(np.rint(filled / PIXEL_SCALE), 0, 255).astype(np.uint8)
    else:
        flat = standardizer.inverse(filled.reshape(-1, filled.shape[-1]))
        completed = flat.reshape(filled.shape)
    # observed entries as they were read, not by way of the model's units and back
    completed = np.where(table.mask, table.raw, completed)
    features = table.dataset.features if arguments.draws is None else None
    data.save_table(arguments.out, completed, features)
    if arguments.draws is None:
        _print_scores(table, model.reconstruct(posterior=posterior).numpy())
    count = int((~table.mask).sum())
    print(f"\n{count} missing entries of {len(table.raw)} rows filled in: {arguments.out}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    export(load(arguments.run_dir), arguments.out)
    print(f"written to {arguments.out}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from .experiments import demo

    epochs = demo.EPOCHS if arguments.epochs is None else arguments.epochs
    scores = demo.run(arguments.run_dir, epochs=epochs, progress=not arguments.quiet)
    print(f"\nelastic error over the missing {demo.MISSING:.0%} of the pixels (lower is better)")
    for name, score in scores.items():
        print(f"  {name:<12} {score:.4f}")
    print(f"\nwritten to {arguments.run_dir}:")
    for path in sorted(arguments.run_dir.iterdir()):
        if not path.name.startswith("."):
            print(f"  {path.name}")
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from .experiments import registry, sweep

    try:
        written = registry.reproduce(
            arguments.figures,
            arguments.out,
            scale=arguments.scale,
            data_dir=arguments.data_dir,
            jobs=arguments.jobs,
            progress=not arguments.quiet,
        )
    except sweep.SweepError as error:
        print(f"rvi-fast: error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from .experiments.report import report

    for path in report(arguments.results, arguments.out):
        print(path)
    return 0


def _record_run(run_dir: Path, run: dict[str, Any], *, resume: bool) -> None:
    """Writes run.json; where the directory holds a run, compares instead."""
    if latest_epoch(run_dir) is not None:
        if not resume:
            raise ValueError(
                f"--run-dir: {run_dir} already holds a run; add --resume to go on with it, or name "
                "another directory"
            )
        stored = _read_run(run_dir)
        for name, value in run.items():
            if stored.get(name) != value:
                raise ValueError(
                    f"--{name}: expected {stored.get(name)!r} as in {run_dir}, got {value!r}"
                )
        return
    with RunDirectory(run_dir):
        write_run(run_dir, run)


def _read_run(run_dir: Path) -> dict[str, Any]:
    try:
        return read_run(run_dir)
    except FileNotFoundError as error:
        missing = error.filename
        raise ValueError(f"--run-dir: {missing} not found; `rvi-fast train` writes it") from None


if __name__ == "__main__":
    sys.exit(main())
