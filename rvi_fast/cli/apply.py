"""`rvi-fast infer | impute | export`: what a trained model is for."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from .. import data, models
from ..reference import PIXEL_SCALE
from ..training import export, impute, infer, load
from .runs import read_run
from .tables import Table, load_table, print_scores


def _open_run(
    arguments: argparse.Namespace, *, training_data: bool
) -> tuple[models.LatentModel, Table, data.Standardizer | None]:
    run = read_run(arguments.run_dir)
    model = load(arguments.run_dir)
    stored = run["standardizer"]
    standardizer = data.Standardizer.from_dict(stored) if stored else None
    if training_data:
        source = (run["data"], arguments.data_dir, "train", run["subset"], run["missing"])
        table, _ = load_table(*source, run.get("missing_boxes"), run["seed"], standardizer)
    else:
        name = arguments.data or run["data"]
        source = (name, arguments.data_dir, arguments.split, arguments.subset, arguments.missing)
        table, _ = load_table(*source, arguments.missing_boxes, arguments.seed, standardizer)
    if (table.raw.dtype == np.uint8) != run["pixels"]:
        kinds = ("pixels (uint8)", "a table of numbers")
        expected, got = kinds if run["pixels"] else kinds[::-1]
        raise ValueError(f"--data: expected {expected} as in training, got {got}")
    return model, table, standardizer


def _posterior(arguments: argparse.Namespace, model: models.LatentModel, table: Table) -> Any:
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


def infer_rows(arguments: argparse.Namespace) -> int:
    """Writes the posteriors of new rows to a table."""
    model, table, _ = _open_run(arguments, training_data=False)
    posterior = _posterior(arguments, model, table)
    with torch.no_grad():
        latents = torch.cat((posterior.mean(), posterior.std()), dim=1).numpy()
    parts = [f"{part}_{t}" for part in ("mean", "std") for t in range(posterior.latent_dim)]
    data.save_table(arguments.out, latents, parts)
    print_scores(table, model.reconstruct(posterior=posterior).numpy())
    print(f"\nposterior means and standard deviations of {len(latents)} rows: {arguments.out}")
    return 0


def impute_table(arguments: argparse.Namespace) -> int:
    """Writes a table with its missing entries filled in."""
    own = arguments.data is None and arguments.split is None
    model, table, standardizer = _open_run(arguments, training_data=own)
    known = own and not model.amortized and arguments.scale_factor == 1
    posterior = None if known else _posterior(arguments, model, table)
    filled = impute(
        model,
        table.x,
        mask=table.mask,
        posterior=posterior,
        num_draws=arguments.draws,
        seed=arguments.seed,
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
        print_scores(table, model.reconstruct(posterior=posterior).numpy())
    count = int((~table.mask).sum())
    print(f"\n{count} missing entries of {len(table.raw)} rows filled in: {arguments.out}")
    return 0


def export_model(arguments: argparse.Namespace) -> int:
    """Writes the model of a run directory to one file."""
    export(load(arguments.run_dir), arguments.out)
    print(f"written to {arguments.out}")
    return 0
