"""`rvi-fast train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from .. import data
from ..data.pixels import is_pixels
from ..scaler import Scaler
from ..training import distributed, held_out_error, infer
from ..training.collapse import warn_of_collapse
from .building import build_model, fit_model, own_options
from .checks import check_device
from .directories import is_directory, train_directory
from .laws import check_laws
from .runs import check_run, record_run, run_to_resume
from .tables import Features, Source, Table, load_table, print_scores, say, say_added


def train_model(arguments: argparse.Namespace) -> int:
    """Trains a model on a data set and writes it to a run directory."""
    device = check_device(arguments.device)
    own_options(arguments)
    if distributed.launched():
        device = str(distributed.init(timeout=arguments.timeout, device=arguments.device))
    stored = run_to_resume(arguments.run_dir) if arguments.resume else None
    if stored is not None and arguments.transform is None:
        arguments.transform = stored["transform"]
    if is_directory(arguments.data):
        return train_directory(arguments, device)
    source = Source.of(arguments)
    scaled = stored is not None and stored.get("standardizer") is not None
    table = load_table(source, Features.of_training(stored), learn=not scaled)
    run_dir: Path = arguments.run_dir
    named = arguments.data in data.DATASETS
    run = _described(arguments, source, table, named)
    before = distributed.first(
        lambda: check_run(run_dir, run, resume=arguments.resume, digest=table.digest)
    )
    model, shard = build_model(arguments, table.raw.shape, table.likelihood, before)
    check_laws(model, table.raw, table.mask, table.labels)
    if stored is None or before is not None:
        distributed.first(lambda: record_run(run_dir, run))
    say(table.describe(f"{arguments.model} on {device}"))
    say_added(run_dir, before, len(table.raw))
    if shard is not None:
        table = table.part(shard)
    # a run that goes on takes the scale of its checkpoint
    if stored is None and table.learned is not None and table.learned.scale is not None:
        model.scaler = Scaler(table.learned.scale, table.learned.transform)
    # the tables of 0.1 and 0.2 are standardised outside the model
    fit_model(arguments, model, table.x, device, mask=table.mask, standardize=table.units is None)
    encoded = infer(model, table.x, mask=table.mask) if model.amortized else None
    print_scores(table, model, encoded)
    if not is_pixels(table.raw) and not named and not distributed.launched():
        # as many steps as a few epochs of a small table, and never more rows than 1,024
        steps = arguments.epochs * -(-len(table.x) // arguments.batch_size)
        warn_of_collapse(held_out_error(model, table.x, mask=table.mask), arguments.lr, steps)
    say(f"\nwritten to {run_dir}")
    if distributed.launched():
        distributed.leave()
    return 0


def _described(
    arguments: argparse.Namespace, source: Source, table: Table, named: bool
) -> dict[str, Any]:
    """What run.json says of a run: where its table comes from, and what was done to it."""
    return {
        "data": arguments.data if named else str(Path(arguments.data).resolve()),
        "header": arguments.header,
        "ignore": arguments.ignore,
        "subset": arguments.subset,
        "missing": arguments.missing,
        "missing_boxes": arguments.missing_boxes,
        "seed": arguments.seed,
        "recipe": arguments.recipe,
        "transform": source.transform,
        "binarize": arguments.binarize,
        "likelihood": table.likelihood,
        "pixels": is_pixels(table.raw),
        "columns": None if table.source.features is None else list(table.source.features),
        "carried": list(table.source.carried_names),
        "unseen": np.flatnonzero(~table.seen).tolist(),
        "rows": len(table.raw),
        "digest": table.digest(),
    }
