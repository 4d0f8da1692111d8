"""What a training run needs, before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from .. import _checks
from ..files import StrPath
from ..layout import RowLayout
from ..likelihoods.foreign import as_likelihood
from ..likelihoods.named import make
from .inputs import feed
from .loop.fused_step import MAX_WIDTH, launches_on, most_pieces
from .places.order import blocks_resident, default_block_rows, row_bytes
from .settings import Settings

# rows that an evaluation reconstructs at once, and tensors [rows, D] that it has then
_EVALUATED, _EVALUATION_TENSORS = 4096, 5
# tensors [batch, outputs] of a step where the last layer and the likelihood are one op; where they are
# not, the layer's result comes to what the likelihood makes
_FUSED_TENSORS = 2


@dataclass(frozen=True)
class MemoryEstimate:
    """How many bytes `fit` needs, and for what.

    Attributes:
        tables: the rows of the posterior.
        moments: two of their size, or of half of it, and a step count for each row.
        data: x, and its copy in the units of the model, which pixels do without.
        shared: relays, decoder and scale, each with gradient and moments.
        step: what steps and evaluations make, gradients in pieces on a GPU, and the order of an epoch.
        resident: of tables and moments in files, what is in memory at a time; 0 elsewhere. What the
            system keeps of files in memory beyond that it gives up when asked.
        journal: on disk, for a run directory with tables in files.
        device: all that has to be in the memory of the device that trains.
        host: what lies in host memory where a GPU trains with tables there or in files.
        disk: all that lies on the disk.
    """

    tables: int
    moments: int
    data: int
    shared: int
    step: int
    resident: int
    journal: int
    device: int
    disk: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes in memory and on disk; what is in memory and on disk counts once."""
        return self.device + self.host + self.disk - self.resident

    def __str__(self) -> str:
        parts = ("tables", "moments", "data", "shared", "step", "device", "host", "disk")
        return ", ".join(f"{name} {getattr(self, name) / 1e9:.2f} GB" for name in parts)


def estimate_memory(
    num_data: int,
    num_features: int,
    *,
    latent_dim: int = 64,
    groups: Sequence[int] = (25, 50, 100),
    hidden: Sequence[int] = (64, 64),
    likelihood: Any = "gaussian",
    batch_size: int = Settings.batch_size,
    storage: StrPath = "device",
    block_rows: int | None = None,
    dtype: torch.dtype = torch.float32,
    moment_dtype: torch.dtype | None = None,
    data_dtype: torch.dtype = torch.float32,
    data_in_memory: bool = True,
    run_dir: bool = False,
    device: torch.device | str = "cpu",
) -> MemoryEstimate:
    """What `fit` with a model of `models.rvi` needs, in bytes.

    Args:
        num_data: N.
        num_features: D.
        latent_dim, groups, hidden, likelihood, storage: as in `models.rvi`.
        batch_size, block_rows: as in `fit`.
        dtype: of the model.
        moment_dtype: as in `fit`.
        data_dtype: of x.
        data_in_memory: false for memory maps and data sets.
        run_dir: whether `fit` gets one: with tables in files it needs room for a journal.
        device: what trains. On a GPU, tables in host memory or in files take there what the blocks at
            work take.

    Example:
        >>> import rvi_fast
        >>> small = rvi_fast.estimate_memory(60_000, 784)
        >>> large = rvi_fast.estimate_memory(
        ...     5_000_000, 784, storage="tables", data_dtype=torch.uint8, data_in_memory=False
        ... )
        >>> small.disk, large.disk > 18e9, large.device < 2e9
        (0, True, True)
    """
    for name, value in (("num_data", num_data), ("num_features", num_features)):
        _checks.check_positive_int(name, value)
    _checks.check_positive_int("batch_size", batch_size)
    layout = RowLayout.resolve(latent_dim, groups)
    size, in_files = dtype.itemsize, storage not in ("device", "host")
    staged = storage != "device" and torch.device(device).type != "cpu"
    tables = num_data * layout.width * size
    row = row_bytes(layout.width, dtype, _checks.check_moment_dtype(moment_dtype, dtype))
    moments = num_data * row - tables

    # pixels are never copied, numbers are standardised
    copied = data_dtype != torch.uint8
    entry = dtype.itemsize if copied else 0
    data = num_data * num_features * (data_dtype.itemsize + entry) if data_in_memory else 0

    law = as_likelihood(make(likelihood, num_features))
    outputs = law.num_outputs or num_features
    widths = [latent_dim, *hidden, outputs]
    decoder = sum((a + 1) * b for a, b in pairwise(widths))
    learned = sum(parameter.numel() for parameter in law.parameters())
    parameters = layout.num_relays * latent_dim + decoder + learned
    shared = 4 * size * parameters

    if (in_files or staged) and block_rows is None:
        block_rows = default_block_rows(row)
    held = num_data
    if block_rows is not None:
        held = min(num_data, blocks_resident(num_data, block_rows, batch_size) * block_rows)
    resident = row * held if in_files else 0
    ahead = 1 if data_in_memory else feed.AHEAD + 2
    made = 4 * (layout.width + latent_dim + sum(hidden)) * size
    tensors = _FUSED_TENSORS if law.fused else 1 + law.step_tensors
    of_outputs = int(outputs * size * tensors)
    batch = batch_size * (made + num_features * data_dtype.itemsize * ahead + of_outputs)
    evaluation = min(num_data, _EVALUATED) * outputs * size * _EVALUATION_TENSORS
    step = 8 * held + max(batch, evaluation)
    launches = launches_on(torch.device(device))
    if launches is not None and law.fused and max(widths[:-1]) <= MAX_WIDTH:
        # the pieces that six launches leave of the gradient
        last = torch.empty((outputs, widths[-2]), device="meta")
        pieces = most_pieces(launches, batch_size, last, getattr(law, "log_scale", None), None)
        step += pieces * parameters * size

    lying = resident if in_files else tables + moments
    # each slot has its row number too, and each table a buffer for a block
    on_device = data + shared + step + ((row + 8) * held if staged else lying)
    host = lying + row * min(block_rows or 0, num_data) if staged else 0
    on_disk = tables + moments if in_files else 0
    journal = on_disk if run_dir else 0
    return MemoryEstimate(
        tables, moments, data, shared, step, resident, journal, on_device, on_disk + journal, host
    )
