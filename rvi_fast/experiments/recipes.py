"""The models of the figures by name: how each is built, trained, and asked about new rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What sets a model of the figures apart from the others.

    Args:
        label: what it is called in pictures and tables.
        builder: in `models.BUILDERS`.
        options: arguments of the builder.
        kl_weight: of `fit`.
        infer_lr: learning rate of the posteriors of new rows.
        scale_factor: of `infer`.
    """

    label: str
    builder: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    kl_weight: float = 1.0
    infer_lr: float = 0.01
    scale_factor: float = 1.0


RECIPES = {
    "rvi": Recipe("RVI", "rvi"),
    # rows without relays need larger steps; an encoder takes none
    "vad": Recipe("VAD", "vad", infer_lr=0.03),
    "vae": Recipe("VAE", "vae"),
    # Zadeh et al. 2019, "Variational Auto-Decoder": squared error without a KL divergence, and
    # posteriors of log variance -14. A scale of 1 is then a factor of the loss, which Adam does not
    # see. `infer` has a KL divergence: under so small a scale it does not count
    "vad-authors": Recipe(
        "VAD of its authors",
        "vad",
        MappingProxyType(
            {
                "likelihood": {"law": "gaussian", "scale": "fixed"},
                "initial_log_std": -7.0,
                "learn_std": False,
            }
        ),
        kl_weight=0.0,
        infer_lr=0.03,
        scale_factor=1e-3,
    ),
}
