"""Checkpoints that several processes write together, and that any number of processes reads.

    run_dir/checkpoints/epoch-000012/ manifest.json, rank-00000.safetensors, rank-00001.safetensors, ...

Every process writes the rows it holds; what all of them hold is written once. The manifest says which
rows of each table lie in which file. `torch.distributed.checkpoint` (DCP) plans who writes and who reads
what. Its own storage keeps the plan in a pickle: here it is in the manifest, and the tensors are in
safetensors files, written, named, sealed and verified as those of `checkpoints` are. Nothing is ever
unpickled.

All processes have to see the run directory, and all call these functions together.
"""

from __future__ import annotations

import shutil
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ...files import StrPath
from .checkpoints import (
    SHARDED,
    Checkpoint,
    CheckpointError,
    CheckpointWarning,
    begin_checkpoint,
    check_numbers,
    checkpoints,
    file_of,
    load_one,
    manifest_of,
    path_of,
    publish_checkpoint,
    read_manifest,
    verify_file,
)
from .tensors import DTYPES, header_of, write_tensors

# entries of an optimiser's state that have one for each row
_OF_ROWS = ("exp_avg", "exp_avg_sq", "row_step")
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


class RowShard(NamedTuple):
    """Rows [first, first + len(local)) of a table of `total` rows, as DCP wants to be told of them."""

    local: Tensor
    first: int
    total: int

    def size(self) -> torch.Size:
        """Of the whole table."""
        return torch.Size((self.total, *self.local.shape[1:]))

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        offsets = torch.Size((self.first, *[0] * (self.local.dim() - 1)))
        return [ChunkStorageMetadata(offsets, self.local.shape)]

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        (chunk,) = self.__create_chunk_list__()
        properties = TensorProperties.create_from_tensor(self.local)
        data = TensorWriteData(chunk, properties, self.size())
        index = MetadataIndex(fqn, chunk.offsets)
        return [WriteItem(index, WriteItemType.SHARD, tensor_data=data)]


def is_row_table(name: str) -> bool:
    """Whether a tensor of a checkpoint has one entry for each row: values, moments, steps of rows."""
    kind, _, entry = name.partition(".")[0], *name.rpartition(".")[1:]
    return name == "posterior.rows" or (kind in ("rows", "raw") and entry in _OF_ROWS)


def save_sharded(
    run_dir: StrPath,
    epoch: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
    *,
    rows: range,
    table_size: int,
    keep: int = 2,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """As `save_checkpoint`, by all processes together.

    Args:
        run_dir, epoch, metadata, keep: as in `save_checkpoint`, the same in all processes.
        tensors: as there; row tables hold the rows of this process.
        rows: which these are.
        table_size: rows of all processes.
        group: of all processes, by which they do it; the default group if not given.

    Raises:
        ValueError, TypeError, OSError: what went wrong in any of the processes, in all of them.
    """
    check_numbers(epoch, keep)
    state = {
        f"{stem}/{name}": RowShard(tensor, rows.start, table_size) if is_row_table(name) else tensor
        for stem, named in tensors.items()
        for name, tensor in named.items()
    }
    writer = _Writer(run_dir, epoch, metadata, keep)
    try:
        dcp.save(state, storage_writer=writer, planner=_SavePlanner(), process_group=group)
    except dcp.CheckpointException as error:
        if writer.coordinates and writer.writing is not None:
            shutil.rmtree(writer.writing, ignore_errors=True)
        raise _cause(error) from error
    return path_of(run_dir, epoch)


def load_sharded(
    run_dir: StrPath, *, rows: range, table_size: int, device: torch.device
) -> Checkpoint:
    """As `load_checkpoint`, by all processes together; row tables come with rows `rows` alone.

    It does not matter how many processes wrote the checkpoint. Each verifies a share of the files.

    Raises:
        CheckpointError: there is no checkpoint, or none that is whole, or it has more rows. Where it has
            fewer than `table_size`, those of `rows` come that it has.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    (found,) = _broadcast([checkpoints(run_dir)])
    bad: list[CheckpointError] = []
    for epoch, path in found:
        if errors := _damage(path, epoch, rank, size):
            bad += errors
            continue
        for reason in bad if rank == 0 else ():
            message = f"passed over a damaged checkpoint: {reason}; loaded {path} instead"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
        return _load(path, epoch, rows, table_size, device)
    found = f"only damaged checkpoints: {'; '.join(map(str, bad))}" if bad else "no checkpoint"
    raise CheckpointError(Path(run_dir) / "checkpoints", f"holds {found}")


def _damage(path: Path, epoch: int, rank: int, size: int) -> list[CheckpointError]:
    """What is wrong with a checkpoint, as all processes together see it."""
    own: CheckpointError | None = None
    try:
        manifest = read_manifest(path, epoch)
        for stem in sorted(manifest["files"])[rank::size]:
            verify_file(path, manifest, stem)
    except CheckpointError as error:
        own = error
    everyone: list[CheckpointError | None] = [None] * size
    dist.all_gather_object(everyone, own)
    return list({str(error): error for error in everyone if error is not None}.values())


def _load(path: Path, epoch: int, rows: range, table_size: int, device: torch.device) -> Checkpoint:
    manifest = read_manifest(path, epoch)
    if manifest["format"] != SHARDED:
        return _part_of(load_one(path, epoch, torch.device("cpu")), rows, table_size, device)
    state: dict[str, Any] = {}
    for name, entry in manifest["tensors"].items():
        shape, inner = entry["shape"], name.split("/", 1)[1]
        if is_row_table(inner):
            total = shape[0]
            _check_rows(path, inner, total, table_size)
            own = range(min(rows.start, total), min(rows.stop, total))
            shape = [len(own), *shape[1:]]
        tensor = torch.empty(shape, dtype=_BY_NAME[entry["dtype"]], device=device)
        state[name] = RowShard(tensor, own.start, total) if is_row_table(inner) else tensor
    try:
        dcp.load(state, storage_reader=_Reader(path, manifest), planner=_LoadPlanner())
    except dcp.CheckpointException as error:
        raise CheckpointError(path, f"cannot be read: {_cause(error)}") from error
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        stem, inner = name.split("/", 1)
        tensor = value.local if isinstance(value, RowShard) else value
        tensors.setdefault(stem, {})[inner] = tensor
    return Checkpoint(path, epoch, tensors, manifest["metadata"])


def _part_of(whole: Checkpoint, rows: range, table_size: int, device: torch.device) -> Checkpoint:
    """The rows of this process from a checkpoint of a single one."""
    tensors: dict[str, dict[str, Tensor]] = {stem: {} for stem in whole.tensors}
    for stem, named in whole.tensors.items():
        for name, tensor in named.items():
            if is_row_table(name):
                _check_rows(whole.path, name, len(tensor), table_size)
                tensor = tensor[rows.start : rows.stop]
            tensors[stem][name] = tensor.to(device)
    return Checkpoint(whole.path, whole.epoch, tensors, whole.metadata)


def _check_rows(path: Path, name: str, found: int, table_size: int) -> None:
    if found > table_size:
        reason = f"does not fit the model: {name} has {found} rows, expected at most {table_size}"
        raise CheckpointError(path, reason)


def _cause(error: Any) -> BaseException:
    """What the first process that failed raised."""
    return next(iter(error.failures.values()))[0]


def _broadcast(values: list[Any]) -> list[Any]:
    dist.broadcast_object_list(values, src=0)
    return values


class _SavePlanner(dcp.DefaultSavePlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        value = self.state_dict[index.fqn]
        return value.local if isinstance(value, RowShard) else value


class _LoadPlanner(dcp.DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        # that of the base class knows tensors of its own kinds alone
        self.state_dict, self.metadata = state_dict, metadata
        self.is_coordinator = is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        value = self.state_dict[index.fqn]
        return value.local if isinstance(value, RowShard) else value


class _Writer(dcp.StorageWriter):
    """Each process one file; the coordinator begins the checkpoint and gives it its name."""

    def __init__(
        self, run_dir: StrPath, epoch: int, metadata: Mapping[str, Any], keep: int
    ) -> None:
        self.run_dir, self.keep = run_dir, keep
        self.manifest = manifest_of(epoch, metadata, sharded=True)
        self.writing: Path | None = None
        self.coordinates = False

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer writes once."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.coordinates = is_coordinator

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.writing = begin_checkpoint(self.run_dir, self.manifest["epoch"])
        return [
            replace(plan, storage_data=(str(self.writing), f"rank-{rank:05d}"))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        writing, stem = plan.storage_data
        named = {item.index.fqn: _tensor(planner.resolve_data(item)) for item in plan.items}
        entry = write_tensors(file_of(Path(writing), stem), header_of(stem, named), named)
        future: Future[list[WriteResult]] = Future()
        future.set_result(
            [
                WriteResult(item.index, named[item.index.fqn].nbytes, (stem, entry))
                for item in plan.items
            ]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        assert self.writing is not None
        stems: dict[MetadataIndex, str] = {}
        for result in (result for part in results for result in part):
            stem, entry = result.storage_data
            stems[MetadataIndex(result.index.fqn, result.index.offset)] = stem
            self.manifest["files"][stem] = entry
        for name, table in metadata.state_dict_metadata.items():
            assert isinstance(table, TensorStorageMetadata)
            parts = [
                [
                    # a number without dimensions counts as one row
                    *(chunk.offsets[:1] or [0]),
                    *(chunk.sizes[:1] or [1]),
                    stems[MetadataIndex(name, chunk.offsets)],
                ]
                for chunk in table.chunks
            ]
            self.manifest["tensors"][name] = {
                "dtype": DTYPES[table.properties.dtype],
                "shape": list(table.size),
                "parts": sorted(parts),
            }
        publish_checkpoint(self.run_dir, self.writing, self.manifest, self.keep)


class _Reader(dcp.StorageReader):
    """Reads what the plan asks for from the maps of the files."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.entries = path, manifest["tensors"]

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a reader reads once."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tables: dict[str, Any] = {}
        for name, entry in self.entries.items():
            shape = torch.Size(entry["shape"])
            chunks = [
                ChunkStorageMetadata(
                    torch.Size((first, *[0] * (len(shape) - 1)) if shape else ()),
                    torch.Size((count, *shape[1:]) if shape else ()),
                )
                for first, count, _ in entry["parts"]
            ]
            properties = TensorProperties(dtype=_BY_NAME[entry["dtype"]])
            tables[name] = TensorStorageMetadata(properties, shape, chunks)
        return Metadata(tables)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        items = defaultdict(list)
        for item in plan.items:
            first = item.storage_index.offset[0] if item.storage_index.offset else 0
            parts = self.entries[item.storage_index.fqn]["parts"]
            # an empty part begins where the next one does
            stem = next(stem for start, count, stem in parts if start == first and count)
            items[stem].append(item)
        for stem, wanted in items.items():
            tensors = load_file(file_of(self.path, stem))
            for item in wanted:
                piece = tensors[item.storage_index.fqn]
                for dim, (start, length) in enumerate(
                    zip(item.storage_offsets, item.lengths, strict=True)
                ):
                    piece = piece.narrow(dim, start, length)
                planner.resolve_tensor(item).copy_(piece)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach()
