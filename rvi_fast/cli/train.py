"""`rvi-fast train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import data, models
from ..training import distributed, fit, held_out_error, infer
from ..training.collapse import warn_of_collapse
from .checks import check_device
from .runs import record_run, transform_of
from .tables import Source, load_table, print_scores, say

# options of one model alone
_OPTIONS = {"groups": "rvi", "top": "rvi", "form": "rvi", "mask_input": "vae"}


def train_model(arguments: argparse.Namespace) -> int:
    """Trains a model on a data set and writes it to a run directory."""
    device = check_device(arguments.device)
    if distributed.launched():
        device = str(distributed.init(timeout=arguments.timeout, device=arguments.device))
    if arguments.resume and arguments.transform is None:
        arguments.transform = transform_of(arguments.run_dir)
    source = Source.of(arguments)
    table = load_table(source)
    model, shard = _model_of(arguments, table.raw.shape)
    run_dir: Path = arguments.run_dir
    named = arguments.data in data.DATASETS
    run = {
        "data": arguments.data if named else str(Path(arguments.data).resolve()),
        "header": arguments.header,
        "ignore": arguments.ignore,
        "subset": arguments.subset,
        "missing": arguments.missing,
        "missing_boxes": arguments.missing_boxes,
        "seed": arguments.seed,
        "transform": source.transform,
        "pixels": table.raw.dtype == np.uint8,
        "columns": None if table.source.features is None else list(table.source.features),
        "carried": list(table.source.carried_names),
        "unseen": np.flatnonzero(~table.seen).tolist(),
        "standardizer": table.standardizer.to_dict() if table.standardizer else None,
        "column_transform": table.transform.to_dict() if table.transform else None,
        "digest": table.digest(),
    }
    distributed.first(lambda: record_run(run_dir, run, resume=arguments.resume))
    say(table.describe(f"{arguments.model} on {device}"))
    if shard is not None:
        table = table.part(shard)
    fit(
        model,
        table.x,
        mask=table.mask,
        standardize=False,  # the table is, its standardizer in run.json
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
    print_scores(table, model.reconstruct(posterior=encoded).cpu().numpy())
    if table.standardizer is not None and not named and not distributed.launched():
        # as many steps as a few epochs of a small table, and never more rows than 1,024
        warn_of_collapse(held_out_error(model, table.x, mask=table.mask), arguments.lr)
    say(f"\nwritten to {run_dir}")
    if distributed.launched():
        distributed.leave()
    return 0


def _model_of(
    arguments: argparse.Namespace, shape: tuple[int, int]
) -> tuple[models.LatentModel, range | None]:
    """The model that is asked for, and its rows where it is one process of several."""
    options: dict[str, Any] = {"latent_dim": arguments.latent_dim, "hidden": arguments.hidden}
    for name, owner in _OPTIONS.items():
        value = getattr(arguments, name)
        if value is not None:
            if arguments.model != owner:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: expected with --model {owner} only")
            options[name] = value
    if distributed.launched():
        if arguments.model == "vae":
            raise ValueError("--model: expected rvi or vad under torchrun: a vae owns no rows")
        options["shard"] = distributed.rows_of_rank(shape[0])
    options["generator"] = torch.Generator().manual_seed(arguments.seed)
    model = models.BUILDERS[arguments.model](*shape, **options)
    return model, options.get("shard")
