"""`rvi-fast train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import data, models
from ..data.pixels import is_pixels
from ..scaler import Scaler
from ..training import distributed, fit, held_out_error, infer
from ..training.collapse import warn_of_collapse
from .checks import check_device
from .laws import check_laws
from .runs import record_run, run_to_resume
from .tables import Features, Source, Table, load_table, print_scores, say

# options of some models alone
_OPTIONS = {
    "groups": ("rvi",),
    "top": ("rvi",),
    "form": ("rvi",),
    "decoder": ("rvi", "vad"),
    "image_shape": ("rvi", "vad"),
    "initial_log_std": ("rvi", "vad"),
    "mask_input": ("vae",),
}


def train_model(arguments: argparse.Namespace) -> int:
    """Trains a model on a data set and writes it to a run directory."""
    device = check_device(arguments.device)
    if distributed.launched():
        device = str(distributed.init(timeout=arguments.timeout, device=arguments.device))
    stored = run_to_resume(arguments.run_dir) if arguments.resume else None
    if stored is not None and arguments.transform is None:
        arguments.transform = stored["transform"]
    source = Source.of(arguments)
    scaled = stored is not None and stored.get("standardizer") is not None
    table = load_table(source, Features.of_training(stored), learn=not scaled)
    model, shard = _model_of(arguments, table)
    run_dir: Path = arguments.run_dir
    named = arguments.data in data.DATASETS
    run = _described(arguments, source, table, named)
    distributed.first(lambda: record_run(run_dir, run, resume=arguments.resume))
    say(table.describe(f"{arguments.model} on {device}"))
    if shard is not None:
        table = table.part(shard)
    # a run that goes on takes the scale of its checkpoint
    if stored is None and table.learned is not None and table.learned.scale is not None:
        model.scaler = Scaler(table.learned.scale, table.learned.transform)
    fit(
        model,
        table.x,
        mask=table.mask,
        standardize=table.units is None,  # the tables of 0.1 and 0.2 are, outside the model
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        posterior_lr=arguments.posterior_lr,
        optimizer=arguments.optimizer,
        moment_dtype=torch.bfloat16 if arguments.moments == "bfloat16" else None,
        kl_weight=arguments.kl_weight,
        decoder_weight_decay=arguments.decoder_weight_decay,
        scale_update=arguments.scale_update,
        scale_annealing=arguments.scale_annealing,
        seed=arguments.seed,
        device=device,
        progress=not arguments.quiet,
        run_dir=run_dir,
        resume=arguments.resume,
        checkpoint_every=arguments.checkpoint_every,
    )
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


def _model_of(
    arguments: argparse.Namespace, table: Table
) -> tuple[models.LatentModel, range | None]:
    """The model that is asked for, and its rows where it is one process of several."""
    options: dict[str, Any] = {"latent_dim": arguments.latent_dim, "hidden": arguments.hidden}
    for name, owners in _OPTIONS.items():
        value = getattr(arguments, name)
        if value is not None:
            if arguments.model not in owners:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: expected with --model {' or '.join(owners)} only")
            options[name] = value
    options["initial_scale"] = arguments.initial_scale
    if distributed.launched():
        if arguments.model == "vae":
            raise ValueError("--model: expected rvi or vad under torchrun: a vae owns no rows")
        options["shard"] = distributed.rows_of_rank(len(table.raw))
    options["likelihood"] = table.likelihood
    options["generator"] = torch.Generator().manual_seed(arguments.seed)
    model = models.BUILDERS[arguments.model](*table.raw.shape, **options)
    check_laws(model, table.raw, table.mask, table.labels)
    return model, options.get("shard")


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
        "digest": table.digest(),
    }
