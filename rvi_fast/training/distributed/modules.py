"""Which modules of a user's own several processes can train as one process does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...models import LatentModel
from ...posteriors.base import as_posterior

# what torch wraps modules in that synchronises or splits their parameters
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def check_modules(model: LatentModel, size: int) -> None:
    """Refuses what several processes cannot train as one does, before anything is trained.

    Args:
        model: the same in all processes.
        size: how many there are.

    Raises:
        ValueError: names the module.
    """
    for name, part in model.named_modules():
        if found := {kind.__name__ for kind in type(part).__mro__} & _WRAPPERS:
            raise ValueError(
                f"{name}: expected a module as it was made, whose gradients fit sums over processes "
                f"itself, got a {found.pop()}"
            )
    normalised = [
        (name, part)
        for name, part in _called(model)
        if isinstance(part, _BatchNorm) and size > 1 and _normalises(model, part)
    ]
    for name, part in normalised:
        raise ValueError(
            f"{name}: expected no batch normalisation where {size} processes train, got "
            f"{type(part).__name__}, which would take means over the rows of a process, and not of the "
            "batch; LayerNorm, GroupNorm and InstanceNorm normalise each row by itself"
        )


def sums_of_buffers(model: LatentModel) -> dict[str, int]:
    """A CRC-32 of each buffer of decoder, likelihood and encoder, by its name."""
    return {
        f"{name}.{inner}" if inner else name: crc32(_bytes_of(buffer))
        for name, part in _called(model)
        for inner, buffer in part.named_buffers(recurse=False)
    }


def check_alike(held: list[dict[str, int]]) -> None:
    """Compares what `sums_of_buffers` gave in each process.

    Raises:
        ValueError: names the first buffer that differs.
    """
    for rank, theirs in enumerate(held):
        for name, value in held[0].items():
            if theirs[name] != value:
                raise ValueError(
                    f"{name}: expected a buffer that is the same in all processes after the same steps, "
                    f"got another one in process {rank} than in process 0: each process calls modules "
                    "with its own rows, and what they remember of these is not exchanged"
                )


def _called(model: LatentModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules, by name, that are called with the rows of a process."""
    parts = ["decoder", "likelihood"]
    if not as_posterior(model.posterior).owns_rows:
        parts.append("posterior")
    return chain.from_iterable(getattr(model, part).named_modules(prefix=part) for part in parts)


def _normalises(model: LatentModel, part: nn.Module) -> bool:
    """Whether a module is in training mode where its model is: one that is frozen need not be."""
    modes = [(own, own.training) for own in model.modules()]
    model.train()
    trains = part.training
    for own, training in modes:
        own.training = training
    return trains


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
