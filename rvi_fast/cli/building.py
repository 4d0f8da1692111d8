"""The model that a command line asks for, and its training."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from .. import models
from ..posteriors.tables import rows_in
from ..training import distributed, fit

# options of some models alone
_OPTIONS = {
    "groups": ("rvi",),
    "top": ("rvi",),
    "form": ("rvi",),
    "decoder": ("rvi", "vad"),
    "image_shape": ("rvi", "vad"),
    "initial_log_std": ("rvi", "vad"),
    "storage": ("rvi", "vad"),
    "mask_input": ("vae",),
    "refine_steps": ("vae",),
    "refine_lr": ("vae",),
}


def fit_model(
    arguments: argparse.Namespace, model: models.LatentModel, x: Any, device: str, **options: Any
) -> None:
    """Trains a model as the command line says.

    Args:
        options: further arguments of `fit`.
    """
    fit(
        model,
        x,
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
        run_dir=arguments.run_dir,
        resume=arguments.resume,
        checkpoint_every=arguments.checkpoint_every,
        checkpoint_async=arguments.checkpoint_async,
        **options,
    )


def own_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is asked for of some models alone.

    Raises:
        ValueError: it is not of this model.
    """
    asked = {n: getattr(arguments, n) for n in _OPTIONS if getattr(arguments, n) is not None}
    for name in asked:
        if arguments.model not in _OPTIONS[name]:
            owners, option = " or ".join(_OPTIONS[name]), name.replace("_", "-")
            raise ValueError(f"--{option}: expected with --model {owners} only")
    return asked


def build_model(
    arguments: argparse.Namespace,
    shape: tuple[int, int],
    likelihood: Any,
    before: int | None = None,
) -> tuple[models.LatentModel, range | None]:
    """The model that is asked for, and its rows where it is one process of several.

    Args:
        shape: N and D of the whole table.
        likelihood: the laws of its columns as the builders take them.
        before: rows that the run to go on with had, if fewer: its tables in files get the others.
    """
    options: dict[str, Any] = {"latent_dim": arguments.latent_dim, "hidden": arguments.hidden}
    options |= own_options(arguments)
    options["initial_scale"] = arguments.initial_scale
    if distributed.launched():
        options["shard"] = distributed.rows_of_rank(shape[0])
    options["likelihood"] = likelihood
    options["generator"] = torch.Generator().manual_seed(arguments.seed)
    num_data, storage = shape[0], options.get("storage", "host")
    if before is not None and "shard" not in options and storage != "host":
        # if not, they have grown before something ended the program
        num_data = before if rows_in(storage) == before else num_data
    model = models.BUILDERS[arguments.model](num_data, shape[1], **options)
    if num_data < shape[0]:
        model.posterior.extend(shape[0] - num_data)
    return model, options.get("shard")
