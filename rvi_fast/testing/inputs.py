"""What is tested and what it is given: implementations, tables, tensors of odd strides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops, reference
from ..layout import RowLayout
from ..posteriors.relay import RelayPosterior


@dataclass(frozen=True)
class Implementation:
    """A namespace with the ops' functions, and the device whose tensors it is given."""

    name: str
    namespace: Any
    device: str = "cpu"


def installed() -> tuple[Implementation, ...]:
    """The reference, and what serves each device of this machine."""
    found = [Implementation("reference", reference)]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        namespace = ops.implementation(device)
        name = namespace.__name__.rpartition(".")[2]
        found.append(Implementation(name, namespace, device))
    return tuple(dict.fromkeys(found))


def strided(tensor: Tensor) -> Tensor:
    """The same values, no two neighbours in memory."""
    return torch.stack((tensor, tensor), dim=-1)[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values, the last dimension with the widest stride."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.clone()


def expanded(tensor: Tensor) -> Tensor:
    """The first entry of the first dimension for all of them, with stride 0."""
    return tensor[:1].expand_as(tensor)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within it `torch.empty` is filled with NaN (integers: the largest), so that gaps show."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def make_tables(
    layout: RowLayout, num_data: int, dtype: torch.dtype = torch.float64, *, ties: bool = False
) -> tuple[Tensor, Tensor]:
    """Random rows [N, W] and relays [K, T]; with `ties` coefficients are in {0, -0, +-1/2, +-1}."""
    generator = torch.Generator().manual_seed(num_data)
    rows = torch.randn(num_data, layout.width, generator=generator, dtype=dtype)
    if ties:
        coefficients = rows[:, : layout.deviation_offset]
        coefficients.copy_((2 * coefficients).round().clamp(-2, 2) / 2)
    used = torch.zeros(layout.width, dtype=torch.bool)
    for columns in (*layout.group_slices, layout.deviation_slice, layout.log_std_slice):
        used[columns] = True
    relays = torch.randn(layout.num_relays, layout.latent_dim, generator=generator, dtype=dtype)
    return torch.where(used, rows, 0.0), relays


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Random gradients of the outputs: a sum would hide what cancels."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs
    ]


def training_step(
    posterior: RelayPosterior,
    optimizer: torch.optim.Optimizer,
    step: int,
    index: Tensor | None = None,
) -> None:
    """A step with random gradients of z and kl; by default a batch where one row stands twice."""
    if index is None:
        index = torch.tensor([step, 3 * step, step]) % posterior.num_data
    sample = posterior(index, seed=step)
    optimizer.zero_grad()
    torch.autograd.backward(sample, cotangents(sample))
    optimizer.step()
