"""What the processes of a training run do together, and what one does that trains alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ...models import LatentModel
from ...optim.shared_adam import SharedAdam
from ...posteriors.base import as_posterior
from ...posteriors.tables import MappedTables
from ..inputs.feed import HostInputs, Visit
from ..inputs.fingerprint import Fingerprint, added
from ..inputs.prepare import Inputs
from ..inputs.sources import fingerprint_of
from ..runs.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from .launch import (
    another_group,
    done_in_time,
    exchange,
    first,
    gathered,
    joined,
    total,
)
from .modules import check_alike, check_modules, sums_of_buffers
from .sums import sums_over

# batches whose rows are shared out at once: to count them on a GPU is to wait for it
_TOGETHER = 64
# rows: what kernels work on at a time, and more
_ROOM = 32
_DIGEST = 1 << 256

T = TypeVar("T")


def ranks_of(model: LatentModel) -> Alone | Ranks:
    """Who trains a model: this process, or all of the process group where it holds a shard."""
    posterior = as_posterior(model.posterior)
    if not posterior.sharded:
        return Alone(posterior.num_data)
    if not joined():
        raise ValueError(
            f"model: expected all {posterior.table_size} rows in a process of its own, got a shard of "
            f"{posterior.num_data}; call training.distributed.init() first"
        )
    end = posterior.first_row + posterior.num_data
    return Ranks(range(posterior.first_row, end), posterior.table_size)


class Alone:
    """What `Ranks` does, where one process does all."""

    leads = True
    alone = True
    # what sets the random streams of a process apart, beside the seed
    counters: tuple[int, ...] = ()
    # the first row of this process, its number, and how many there are
    first_row, rank, size = 0, 0, 1
    # the fingerprint of so many first rows of the data of all processes
    of_first: Callable[[int], Fingerprint]

    def __init__(self, num_data: int) -> None:
        self.num_data = num_data

    def own(self, x: Any, mask: Any) -> tuple[Any, Any]:
        """x and mask of the rows of this process."""
        return x, mask

    def fingerprint(self, inputs: Inputs | HostInputs) -> str:
        """That of the data of all processes, as 0.1.0 wrote it."""
        return inputs.fingerprint()

    def added(self, own: Fingerprint) -> Fingerprint:
        """That of the data of all processes."""
        return own

    def begin(self, model: LatentModel, kind: str, settings: Mapping[str, Any]) -> None:
        """To be called before anything else is exchanged."""

    def gather(self, value: T) -> list[T]:
        """The values of all processes."""
        return [value]

    def check_buffers(self, model: LatentModel) -> None:
        """Raises where what modules of the model remember differs from process to process."""

    def attach(self, shared: torch.optim.Optimizer) -> Callable[[], None]:
        """From now on the gradients of what is shared are summed before each step; what ends that."""
        return _nothing

    def visits(self, visits: Iterator[Visit]) -> Iterator[Visit]:
        """The batches, of each the rows of this process."""
        return visits

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values

    def any(self, value: bool) -> bool:
        """Whether it is so in one of the processes at least."""
        return value

    @property
    def suffix(self) -> str:
        """What sets apart entries of a checkpoint that each process has of its own."""
        return "".join(f".{counter}" for counter in self.counters)

    def first(self, action: Callable[[], T]) -> T:
        """What the first process finds, which alone acts."""
        return action()

    def save(self, run_dir: Path, epoch: int, tensors: Any, metadata: Mapping[str, Any]) -> Path:
        """Writes a checkpoint."""
        return save_checkpoint(run_dir, epoch, tensors, metadata)

    def aside(self) -> Self:
        """The same processes for another thread: `save` there and whatever is exchanged here mix."""
        return self

    def leave(self) -> None:
        """Ends what `aside` has begun."""

    def load(self, run_dir: Path, device: torch.device) -> Checkpoint:
        """The newest checkpoint, row tables with the rows of this process."""
        return load_checkpoint(run_dir, device=device)


class Ranks(Alone):
    """The processes of the default group, among which the rows of a table are spread.

    Args:
        rows: those of this process.
        num_data: N, all rows.
    """

    alone = False
    # what checkpoints are written by; None is the default group
    group: dist.ProcessGroup | None = None

    def __init__(self, rows: range, num_data: int) -> None:
        super().__init__(num_data)
        self.rows, self.first_row = rows, rows.start
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.leads = self.rank == 0
        self.counters = (self.rank,) if self.rank else ()

    def own(self, x: Any, mask: Any) -> tuple[Any, Any]:
        return self._own(x), None if mask is None else self._own(mask)

    def _own(self, table: Any) -> Any:
        # whoever passes its own rows alone has cut them already; what is no table is refused later
        if isinstance(table, Dataset):
            whole = hasattr(table, "__len__") and len(table) == self.num_data
            return Subset(table, self.rows) if whole else table
        whole = tuple(getattr(table, "shape", ()))[:1] == (self.num_data,)
        return table[self.rows.start : self.rows.stop] if whole else table

    def fingerprint(self, inputs: Inputs | HostInputs) -> str:
        digest = sum(self.gather(inputs.digest(self.rows.start, self.num_data))) % _DIGEST
        return fingerprint_of(inputs.kind, self.num_data, digest)

    def added(self, own: Fingerprint) -> Fingerprint:
        return added(self.gather(own))

    def begin(self, model: LatentModel, kind: str, settings: Mapping[str, Any]) -> None:
        """Makes sure that all were called alike, and gives all what the first shares.

        Raises:
            ValueError: arguments differ, the shards do not make up a table, or `check_modules` refuses a
                part of the model.
        """
        order = _order_mark(self.num_data, next(model.posterior.parameters()).device)
        own = {"num_data": self.num_data, "x": kind, **settings, "order of rows": order}
        own["shapes of parameters"] = _shapes(model)
        tables = getattr(model.posterior, "tables", None)
        own["storage"] = str(tables.directory.parent) if isinstance(tables, MappedTables) else ""
        held = self.gather((own, self.rows))
        self._ends = torch.tensor([rows.stop for _, rows in held], device="cpu")
        end = 0
        for rank, (theirs, rows) in enumerate(held):
            for name, value in held[0][0].items():
                if theirs[name] != value:
                    raise ValueError(
                        f"{name}: expected {value!r} in all processes, got {theirs[name]!r} in {rank}"
                    )
            if rows.start != end:
                raise ValueError(
                    f"shard: expected rows from {end} on in process {rank}, got {rows}"
                )
            end = rows.stop
        if end != self.num_data:
            raise ValueError(f"shard: expected rows up to {self.num_data}, the last ends at {end}")
        check_modules(model, self.size)
        with torch.no_grad(), exchange():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name != "posterior.rows" and tensor.numel():
                    shared = tensor.detach().contiguous()
                    dist.broadcast(shared, src=0)
                    tensor.copy_(shared)

    def attach(self, shared: torch.optim.Optimizer) -> Callable[[], None]:
        if not isinstance(shared, SharedAdam):
            raise ValueError(
                "model: expected relays or encoder, decoder and scale all float32 or all float64 on one "
                "device where several processes share them"
            )
        sums = sums_over(shared.values)
        shared.reduce = sums.begin
        return sums.close

    def visits(self, visits: Iterator[Visit]) -> Iterator[Visit]:
        while group := list(islice(visits, _TOGETHER)):
            rows = torch.cat([visit.rows for visit in group])
            done_in_time(rows.device)  # it is waited for below
            size = len(group[0].rows)  # the last one may be smaller
            batch = torch.arange(len(rows), device=rows.device, dtype=torch.int32) // size
            owner = torch.bucketize(rows, self._ends.to(rows.device), right=True, out_int32=True)
            shares = torch.bincount(owner + self.size * batch, minlength=self.size * len(group))
            counts = shares.view(len(group), self.size).tolist()
            parts = (rows[owner == self.rank] - self.rows.start).split(
                [count[self.rank] for count in counts]
            )
            for visit, part, count in zip(group, parts, counts, strict=True):
                yield Visit(part, visit.window, min(size, room_for(max(count), size / self.size)))

    def sum(self, values: Tensor) -> Tensor:
        done_in_time(values.device)
        # by way of the host, where a process that is lost is noticed
        return values.copy_(total(values.cpu())) if values.is_cuda else total(values)

    def any(self, value: bool) -> bool:
        return bool(total(torch.tensor([float(value)], device="cpu")))

    def first(self, action: Callable[[], T]) -> T:
        return first(action)

    def save(self, run_dir: Path, epoch: int, tensors: Any, metadata: Mapping[str, Any]) -> Path:
        from ..runs.sharded import save_sharded

        with exchange():
            return save_sharded(
                run_dir,
                epoch,
                tensors,
                metadata,
                rows=self.rows,
                table_size=self.num_data,
                group=self.group,
            )

    def aside(self) -> Self:
        others = copy.copy(self)
        others.group = another_group()
        return others

    def leave(self) -> None:
        if self.group is not None and joined():
            dist.destroy_process_group(self.group)
        self.group = None

    def load(self, run_dir: Path, device: torch.device) -> Checkpoint:
        from ..runs.sharded import load_sharded

        with exchange():
            return load_sharded(run_dir, rows=self.rows, table_size=self.num_data, device=device)

    def check_buffers(self, model: LatentModel) -> None:
        if own := sums_of_buffers(model):
            check_alike(self.gather(own))

    def gather(self, value: T) -> list[T]:
        return gathered(value)


def _nothing() -> None:
    pass


def room_for(share: int, mean: float) -> int:
    """Rows that steps have room for where the largest share of a batch has `share`.

    Few sizes, of which each has a CUDA graph of its own: multiples of a 16th of the mean share, and of
    32. All processes find the same one.
    """
    unit = max(_ROOM, math.ceil(mean / (16 * _ROOM)) * _ROOM)
    return max(1, -(-share // unit)) * unit


def _order_mark(num_data: int, device: torch.device) -> int:
    """Tells apart devices that draw different orders from one seed, as GPUs of two kinds may."""
    generator = torch.Generator(device).manual_seed(0)
    order = torch.randperm(num_data, generator=generator, device=device)
    return int((order * (torch.arange(num_data, device=device) % 8191 + 1)).sum())


def _shapes(model: LatentModel) -> dict[str, list[int]]:
    return {
        name: list(tensor.shape)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if name != "posterior.rows"
    }
