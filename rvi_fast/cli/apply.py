"""`rvi-fast infer | impute | export`: what a trained model is for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import _checks, data, models
from ..training import export, impute, infer, load
from .checks import check_bounds, check_device, check_out
from .directories import impute_directory, infer_directory, of_directory
from .laws import check_laws
from .runs import digest_of, find_run
from .tables import Features, Source, Table, load_table, print_scores

_ARRAYS = (".npy", ".npz")


def _open_run(
    arguments: argparse.Namespace, suffixes: tuple[str, ...], *, training_data: bool
) -> tuple[models.LatentModel, Table]:
    """The model and the table of a command, everything checked that can be before any work."""
    device = check_device(arguments.device)
    if arguments.steps is not None:
        _checks.check_count("--steps", arguments.steps)
    if arguments.lr is not None:
        _checks.check_positive_float("--lr", arguments.lr)
    run = find_run(arguments.run_dir)
    inputs = [path for path in (arguments.data, (run or {}).get("data")) if path is not None]
    check_out(arguments.out, inputs, suffixes)
    if run is None and arguments.data is None:
        raise ValueError(
            f"--data: expected a table: {arguments.run_dir} comes from fit(run_dir=), and only "
            "`rvi-fast train` writes down what a run was trained on"
        )
    model = load(arguments.run_dir, device=device)
    if arguments.steps is not None and not model.amortized:
        _checks.check_positive_int("--steps", arguments.steps)
    features = Features.of_run(run, model.num_features)
    if training_data and run is not None:
        table = load_table(Source.of_run(run, arguments.data_dir), features)
        if digest_of(run, model.num_data) not in (None, table.digest()):
            raise ValueError(
                f"--data: {run['data']} is not as it was in training, and its rows have no posteriors; "
                "name it with --data to find them anew"
            )
    else:
        source = Source.of(arguments, arguments.split) if arguments.data else None
        if source is None:
            own = Source.of_run(run or {}, arguments.data_dir)
            source = replace(Source.of(arguments, arguments.split), name=own.name)
        if run is not None and arguments.recipe is None:
            source = replace(source, recipe=run.get("recipe", "table"))
        if run is not None:
            source = replace(source, binarize=run.get("binarize"))
        table = load_table(source, features)
    check_laws(model, table.raw, table.mask, table.labels)
    print(table.describe(f"{arguments.run_dir} on {device}", model.scaler))
    if run is None:
        print("  no run.json: the data are passed as they are, as they were to fit")
    return model, table


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
    if of_directory(arguments):
        return infer_directory(arguments)
    model, table = _open_run(arguments, data.SUFFIXES, training_data=False)
    posterior = _posterior(arguments, model, table)
    with torch.no_grad():
        latents = torch.cat((posterior.mean(), posterior.std()), dim=1).cpu().numpy()
    parts = [f"{part}_{t}" for part in ("mean", "std") for t in range(posterior.latent_dim)]
    data.save_table(arguments.out, latents, parts)
    print_scores(table, model, posterior)
    print(f"\nposterior means and standard deviations of {len(latents)} rows: {arguments.out}")
    return 0


def impute_table(arguments: argparse.Namespace) -> int:
    """Writes a table with its missing entries filled in."""
    if of_directory(arguments):
        return impute_directory(arguments)
    bounds = check_bounds(arguments)
    if arguments.draws is not None:
        _checks.check_positive_int("--draws", arguments.draws)
        if arguments.estimate is not None:
            raise ValueError(f"--estimate: expected none beside --draws, got {arguments.estimate}")
    own = arguments.data is None and arguments.split is None
    suffixes = data.SUFFIXES if arguments.draws is None else _ARRAYS
    model, table = _open_run(arguments, suffixes, training_data=own)
    if arguments.out.suffix.lower() in _ARRAYS:
        data.one_array(table.source.columns())  # refuses numbers that an array cannot hold
    known = own and not model.amortized and arguments.scale_factor == 1
    posterior = None if known else _posterior(arguments, model, table)
    filled = impute(
        model,
        table.x,
        mask=table.mask,
        posterior=posterior,
        num_draws=arguments.draws,
        estimate=arguments.estimate,
        seed=arguments.seed,
    )
    values = table.in_units(filled.cpu().numpy())
    values = table.in_file_order(np.clip(values, *bounds))
    gaps = table.in_file_order(table.gaps)
    # observed entries as they were read, not by way of the model's units and back
    if arguments.draws is None:
        data.write_table(arguments.out, table.source.filled(values, gaps))
        print_scores(table, model, posterior)
    else:
        read = np.broadcast_to(data.one_array(table.source.columns()), values.shape)
        completed = data.fill(read, values, np.broadcast_to(gaps, values.shape))
        data.save_table(arguments.out, completed)
    count = int(gaps.sum())
    print(f"\n{count} missing entries of {len(table.raw)} rows filled in: {arguments.out}")
    return 0


def export_model(arguments: argparse.Namespace) -> int:
    """Writes the model of a run directory to one file."""
    check_out(arguments.out, ())
    export(load(arguments.run_dir, rows=arguments.rows), arguments.out, rows=arguments.rows)
    print(f"written to {arguments.out}")
    return 0
