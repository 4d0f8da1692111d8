"""A model and its optimisers as a checkpoint has them."""

from __future__ import annotations

import torch

from ...models import LatentModel
from ..distributed.launch import RankError
from ..places.base import Place
from ..runs.checkpoints import Checkpoint, CheckpointError
from ..runs.state import unflatten
from ..runs.structure import difference, structure_of


def restore(
    checkpoint: Checkpoint, model: LatentModel, place: Place, shared: torch.optim.Optimizer
) -> None:
    """Takes a model and its optimisers back to a checkpoint.

    Raises:
        CheckpointError: it is that of another model.
    """
    own, held = place.held(), checkpoint.tensors["model"]
    wrong = sorted(own.keys() ^ held.keys()) or [
        name
        for name, tensor in own.items()
        if tensor.shape != held[name].shape
        or (name.endswith("_extra_state") and not torch.equal(tensor.cpu(), held[name].cpu()))
    ]
    if wrong:  # before anything of the model is changed
        raise CheckpointError(checkpoint.path, f"does not fit the model: {', '.join(wrong)}")
    # older checkpoints do not say what the model is made of
    structure = checkpoint.metadata.get("structure")
    other = None if structure is None else difference(structure, structure_of(model))
    if other is not None:
        raise CheckpointError(checkpoint.path, f"does not fit the model: {other}")

    def others() -> None:
        state = unflatten("shared", checkpoint.tensors["optimizer"])
        groups = shared.state_dict()["param_groups"]
        shared.load_state_dict({"state": state, "param_groups": groups})
        model.load_state_dict(held, strict=not place.left_out)

    try:
        place.restore(checkpoint, others)
    except (CheckpointError, RankError):
        raise
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(checkpoint.path, f"does not fit the model: {error}") from error
