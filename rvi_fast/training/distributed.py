"""Training by several processes, on one machine or many: `torchrun --nproc-per-node=8 train.py`.

    device = distributed.init()
    x = np.load("table.npy", mmap_mode="r")
    model = rvi_fast.models.rvi(*x.shape, shard=distributed.rows_of_rank(len(x)))
    rvi_fast.fit(model, x, run_dir="runs/table", device=device, resume=True)
    distributed.leave()

Every process owns some rows: their posteriors, their moments, their data. Rows are never sent
anywhere. Relays, decoder and scale are the same in all processes, and in each step one sum over all
processes, of one buffer, makes their gradients the same. An epoch's order is that of a single process,
so that W processes do what one does with the same batch size, to rounding: each takes the rows of a
batch that it owns, be they none. Only a decoder that looks at its batch as a whole, or draws random
numbers of its own, sees the difference; and bfloat16 moments are rounded with other random bits. Steps
are not captured in CUDA graphs.

The first process shows progress, writes metrics and calls callbacks. A process that dies or hangs ends
all others within the timeout of `init`; started again with `resume=True` they go on from the last
checkpoint, in whatever number. `infer` and `impute` work on the rows that each process passes them.

In a loop of your own the rows must stay out of what synchronises gradients: wrap the decoder in
`DistributedDataParallel`, or tell it of the rows with `leave_rows`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from .. import _checks
from ..models import LatentModel
from ..posterior import RelayPosterior
from .checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from .fingerprint import Fingerprint, added
from .inputs import Inputs
from .shared_adam import SharedAdam
from .sources import HostInputs, Visit, fingerprint_of

# batches whose rows are shared out at once: to count them on a GPU is to wait for it
_TOGETHER = 64
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_DIGEST = 1 << 256

T = TypeVar("T")


class RankError(RuntimeError):
    """Another process has failed, has died, or has not answered in time."""


def init(*, timeout: float = 60.0, device: torch.device | str | None = None) -> torch.device:
    """Joins the processes that `torchrun` has started, and seeds torch in all of them as in the first.

    Args:
        timeout: seconds that an exchange may take. What one process does while the others wait (a
            callback, a checkpoint of more rows) must not take longer.
        device: "cpu" or "cuda"; CUDA where there is some if not given.

    Returns:
        The device of this process, with CUDA that of its local rank.

    Raises:
        ValueError: `torchrun` has not started this process, or it has joined already.
        RankError: the others did not come in time.
    """
    _checks.check_positive_float("timeout", timeout)
    if not launched():
        missing = [name for name in _TORCHRUN if name not in os.environ]
        raise ValueError(
            f"init: expected to be started by torchrun, which sets {', '.join(missing)}"
        )
    if _joined():
        raise ValueError("init: expected no process group, this process is in one already")
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if kind.type == "cuda" and kind.index is None:
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if kind.type == "cuda":
        torch.cuda.set_device(kind)
    backend = "cpu:gloo,cuda:nccl" if kind.type == "cuda" else "gloo"
    with _exchange():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        seed = [torch.initial_seed()]
        dist.broadcast_object_list(seed, src=0)
    torch.manual_seed(seed[0])
    return kind


def launched() -> bool:
    """Whether `torchrun` has started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def leave() -> None:
    """Waits for the others, and ends what `init` has begun."""
    with _exchange():
        dist.barrier()
    dist.destroy_process_group()


def first(action: Callable[[], T]) -> T:
    """What the first process finds, which alone acts; without a process group it is this one.

    Raises what the action raises, and `RankError` in the others then.
    """
    if not _joined():
        return action()
    answer: list[Any] = [None, None]
    raised: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            answer[0] = action()
        except BaseException as error:
            answer[1], raised = f"{type(error).__name__}: {error}", error
    try:
        with _exchange():
            dist.broadcast_object_list(answer, src=0)
    finally:
        if raised is not None:  # also where nobody is left to be told
            raise raised
    if answer[1] is not None:
        raise RankError(f"the first process has failed: {answer[1]}")
    return answer[0]


def total(values: Tensor) -> Tensor:
    """The sum over all processes, in place; without a process group that of this one."""
    if _joined():
        with _exchange():
            dist.all_reduce(values)
    return values


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rows_of_rank(num_data: int, *, rank: int | None = None, size: int | None = None) -> range:
    """The rows that a process owns: N // W of them, one more in the first N % W processes.

    Args:
        num_data: N.
        rank: the process; this one if not given.
        size: W; those of the process group if not given.

    Example:
        >>> [len(rows_of_rank(10, rank=rank, size=4)) for rank in range(4)]
        [3, 3, 2, 2]
    """
    _checks.check_positive_int("num_data", num_data)
    if (rank is None or size is None) and not _joined():
        raise ValueError("rank, size: expected numbers before init() is called, got None")
    rank = dist.get_rank() if rank is None else rank
    size = dist.get_world_size() if size is None else size
    if num_data < size:
        raise ValueError(f"num_data: expected a row for each of {size} processes, got {num_data}")
    share, more = divmod(num_data, size)
    start = rank * share + min(rank, more)
    return range(start, start + share + (rank < more))


def leave_rows(module: nn.Module) -> None:
    """Tells `DistributedDataParallel(module)` to leave out the rows of every posterior in the module.

    To be called before it is wrapped. Relays, decoder and scale are synchronised as ever.
    """
    rows = [
        f"{name}.rows" if name else "rows"
        for name, part in module.named_modules()
        if isinstance(part, RelayPosterior)
    ]
    ignore = nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(module, rows)


def ranks_of(model: LatentModel) -> Alone | Ranks:
    """Who trains a model: this process, or all of the process group where it holds a shard."""
    if not getattr(model.posterior, "sharded", False):
        return Alone(model.num_data)
    posterior = model.posterior
    if not _joined():
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
    # the first row of this process
    first_row = 0

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

    def attach(self, shared: torch.optim.Optimizer) -> None:
        """From now on the gradients of what is shared are summed before each step."""

    def visits(self, visits: Iterator[Visit]) -> Iterator[Visit]:
        """The batches, of each the rows of this process."""
        return visits

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values

    def any(self, value: bool) -> bool:
        """Whether it is so in one of the processes at least."""
        return value

    def first(self, action: Callable[[], T]) -> T:
        """What the first process finds, which alone acts."""
        return action()

    def save(self, run_dir: Path, epoch: int, tensors: Any, metadata: Mapping[str, Any]) -> Path:
        """Writes a checkpoint."""
        return save_checkpoint(run_dir, epoch, tensors, metadata)

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
            ValueError: arguments differ, or the shards do not make up a table.
        """
        order = _order_mark(self.num_data, next(model.posterior.parameters()).device)
        own = {"num_data": self.num_data, "x": kind, **settings, "order of rows": order}
        own["shapes of parameters"] = _shapes(model)
        held = self.gather((own, self.rows))
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
        with torch.no_grad(), _exchange():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name != "posterior.rows" and tensor.numel():
                    shared = tensor.detach().contiguous()
                    dist.broadcast(shared, src=0)
                    tensor.copy_(shared)

    def attach(self, shared: torch.optim.Optimizer) -> None:
        if not isinstance(shared, SharedAdam):
            raise ValueError(
                "model: expected relays, decoder and scale all float32 or all float64 where several "
                "processes share them"
            )
        shared.reduce = self._reduce

    def _reduce(self, gradients: Tensor) -> None:
        total(gradients)

    def visits(self, visits: Iterator[Visit]) -> Iterator[Visit]:
        while group := list(islice(visits, _TOGETHER)):
            rows = torch.cat([visit.rows for visit in group])
            own = (rows >= self.rows.start) & (rows < self.rows.stop)
            sizes = [len(visit.rows) for visit in group]
            counts = torch.stack([part.sum() for part in own.split(sizes)]).tolist()
            parts = (rows[own] - self.rows.start).split(counts)
            for visit, part in zip(group, parts, strict=True):
                yield Visit(part, visit.window)

    def sum(self, values: Tensor) -> Tensor:
        return total(values)

    def any(self, value: bool) -> bool:
        return bool(total(torch.tensor([float(value)])))

    def first(self, action: Callable[[], T]) -> T:
        return first(action)

    def save(self, run_dir: Path, epoch: int, tensors: Any, metadata: Mapping[str, Any]) -> Path:
        from .sharded_checkpoints import save_sharded

        with _exchange():
            return save_sharded(
                run_dir, epoch, tensors, metadata, rows=self.rows, table_size=self.num_data
            )

    def load(self, run_dir: Path, device: torch.device) -> Checkpoint:
        from .sharded_checkpoints import load_sharded

        with _exchange():
            return load_sharded(run_dir, rows=self.rows, table_size=self.num_data, device=device)

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with _exchange():
            dist.all_gather_object(values, value)
        return values


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


@contextmanager
def _exchange() -> Iterator[None]:
    """What the other processes have to answer in time."""
    try:
        yield
    except (RankError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        rank = dist.get_rank() if dist.is_initialized() else os.environ.get("RANK")
        raise RankError(
            f"process {rank} has lost another one, which has died or has not answered in time; start "
            f"all of them again with resume=True (--resume) to go on from the last checkpoint: {error}"
        ) from error
