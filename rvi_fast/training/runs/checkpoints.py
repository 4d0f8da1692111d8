"""Checkpoints: what a killed process goes on from.

    run_dir/checkpoints/epoch-000012/ manifest.json, model.safetensors, optimizer.safetensors, ...

A checkpoint gets its name by a rename, after its last byte is on disk, so whatever carries such a
name was written in full. Damage that comes later is found by SHA-256: the manifest holds that of
every file and, in its first line, that of the rest of itself. Names with a leading dot are
unfinished or being deleted, and the next save removes them. Nothing is ever unpickled.

Savers must not run side by side in one run directory: hold a `RunDirectory`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rvi_fast._version import __version__

from ...files import (
    CheckpointError,
    CheckpointWarning,
    StrPath,
    durable,
    read_bytes,
    sealed,
    sync_directory,
    unsealed,
)
from .tensors import DTYPES, STEM, WIDTHS, header_of, load_tensors, write_tensors

# of a manifest: one process wrote the checkpoint, or each of several its part
_FORMAT, SHARDED = 1, 2
_NAME = re.compile(r"epoch-([0-9]{6}|[1-9][0-9]{6,})(\.replaced)?")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: where it lay, its epoch, tensors by file stem and name, and metadata."""

    path: Path
    epoch: int
    tensors: dict[str, dict[str, Tensor]]
    metadata: dict[str, Any]


def save_checkpoint(
    run_dir: StrPath,
    epoch: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Writes `run_dir/checkpoints/epoch-<epoch>`: all of it or, after an error or a kill, nothing.

    Args:
        run_dir: created if it is not there.
        epoch: not negative. A checkpoint of the same epoch is replaced, and stays loadable until
            the new one is in place.
        tensors: file stem ("model", "optimizer", "random") to named tensors, dense, on any device,
            of any shape and strides, of any dtype that safetensors knows.
        metadata: what the json module can write; non-finite floats survive, tuples become lists.
        keep: how many checkpoints remain, this one and those of earlier epochs counted. Later
            epochs are left alone.

    Returns:
        The directory of the checkpoint.

    Raises:
        ValueError, TypeError: for arguments that cannot be saved; nothing was written then.
        OSError: as the system raised it, with the path named; earlier checkpoints are as they were.
    """
    check_numbers(epoch, keep)
    headers = {stem: header_of(stem, named) for stem, named in tensors.items()}
    manifest = manifest_of(epoch, metadata)
    writing = begin_checkpoint(run_dir, epoch)
    try:
        for stem, header in headers.items():
            path = file_of(writing, stem)
            manifest["files"][stem] = write_tensors(path, header, tensors[stem])
        return publish_checkpoint(run_dir, writing, manifest, keep)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise


def check_numbers(epoch: int, keep: int) -> None:
    for argument, value, least in (("epoch", epoch, 0), ("keep", keep, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{argument} must be an int of at least {least}, got {value!r}")


def manifest_of(
    epoch: int, metadata: Mapping[str, Any], *, sharded: bool = False
) -> dict[str, Any]:
    """A manifest whose files are still to come."""
    manifest: dict[str, Any] = {"format": SHARDED if sharded else _FORMAT}
    manifest |= {"rvi_fast": __version__, "epoch": epoch, "metadata": dict(metadata), "files": {}}
    if sharded:
        manifest["tensors"] = {}
    json.dumps(manifest)  # a TypeError is due before anything is written
    return manifest


def begin_checkpoint(run_dir: StrPath, epoch: int) -> Path:
    """The directory in which a checkpoint is written until `publish_checkpoint` names it."""
    folder, final = _folder(run_dir), path_of(run_dir, epoch)
    writing = folder / f".writing-{final.name}"
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    writing.mkdir()
    return writing


def publish_checkpoint(
    run_dir: StrPath, writing: Path, manifest: Mapping[str, Any], keep: int
) -> Path:
    """Seals what is written, gives it its name and removes what is no longer kept."""
    folder, final = writing.parent, path_of(run_dir, manifest["epoch"])
    with durable(writing / "manifest.json") as file:
        file.write(sealed(manifest))
    sync_directory(writing)
    if final.exists():
        # no system renames over a full directory; this name too is loaded, should we die here
        os.rename(final, final.with_suffix(".replaced"))
    os.rename(writing, final)
    sync_directory(folder)
    sync_directory(folder.parent)
    _remove_leftovers(folder)
    for old in [path for other, path in checkpoints(run_dir) if other <= manifest["epoch"]][keep:]:
        remove_directory(old)
    return final


def load_checkpoint(run_dir: StrPath, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Reads the newest checkpoint that is whole, with a `CheckpointWarning` for each passed over.

    CPU tensors are views of private, writable maps of the files: writing to them leaves the files
    alone, and removing the checkpoint leaves them alone.

    Raises:
        CheckpointError: there is no checkpoint, or none that is whole; names every bad file.
    """
    device = torch.device(device)
    bad: list[CheckpointError] = []
    for epoch, path in checkpoints(run_dir):
        try:
            checkpoint = load_one(path, epoch, device)
        except CheckpointError as error:
            bad.append(error)
            continue
        for reason in bad:
            message = f"passed over a damaged checkpoint: {reason}; loaded {path} instead"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
        return checkpoint
    found = f"only damaged checkpoints: {'; '.join(map(str, bad))}" if bad else "no checkpoint"
    raise CheckpointError(_folder(run_dir), f"holds {found}")


def latest_epoch(run_dir: StrPath) -> int | None:
    """The epoch of the newest checkpoint, or None. Reads names only: it may turn out damaged."""
    return next((epoch for epoch, _ in checkpoints(run_dir)), None)


def _folder(run_dir: StrPath) -> Path:
    return Path(run_dir) / "checkpoints"


def path_of(run_dir: StrPath, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies."""
    return _folder(run_dir) / f"epoch-{epoch:06d}"


def file_of(checkpoint: Path, stem: str) -> Path:
    return checkpoint / f"{stem}.safetensors"


def checkpoints(run_dir: StrPath) -> list[tuple[int, Path]]:
    """Epoch and directory of every checkpoint, newest first, by names only."""
    folder = _folder(run_dir)
    names = os.listdir(folder) if folder.exists() else []
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    matches.sort(key=lambda match: (int(match[1]), match[2] is None), reverse=True)
    return [(int(match[1]), folder / match[0]) for match in matches]


def load_one(path: Path, epoch: int, device: torch.device) -> Checkpoint:
    """Reads one checkpoint, or says in a `CheckpointError` which file is bad and why."""
    manifest = read_manifest(path, epoch)
    # all are checked before the first is loaded: no memory is spent on a half good checkpoint
    for stem in manifest["files"]:
        verify_file(path, manifest, stem)
    tensors = {}
    for stem in manifest["files"]:
        with reading(file_of(path, stem)):
            tensors[stem] = load_tensors(file_of(path, stem), device)
    if manifest["format"] == SHARDED:
        tensors = _joined(path / "manifest.json", manifest["tensors"], tensors)
    return Checkpoint(path, epoch, tensors, manifest["metadata"])


def read_manifest(path: Path, epoch: int) -> dict[str, Any]:
    """The manifest of a checkpoint, whose files have not been looked at."""
    source = path / "manifest.json"
    with reading(source):
        content = read_bytes(source)
        try:
            manifest = unsealed(content)
        except ValueError as error:
            raise CheckpointError(source, f"is damaged: it {error}") from error
    if manifest.get("format") not in (_FORMAT, SHARDED):
        reason = f"has format {manifest.get('format')!r}, this version reads {_FORMAT}"
        raise CheckpointError(source, f"{reason} and {SHARDED}")
    match manifest:
        case {"epoch": int(said), "metadata": dict(), "files": dict(files)}:
            if said != epoch:
                raise CheckpointError(source, f"is of epoch {said}, its directory of {epoch}")
        case _:
            raise CheckpointError(source, "is not the manifest of a checkpoint")
    for stem in files:
        if not STEM.fullmatch(stem):
            raise CheckpointError(source, f"names a file outside its directory: {stem!r}")
    if manifest["format"] == SHARDED:
        _check_parts(source, manifest)
    return manifest


def _check_parts(source: Path, manifest: dict[str, Any]) -> None:
    """Every tensor of a sharded checkpoint lies in files that there are, without a gap."""
    sizes = [entry.get("size") for entry in manifest["files"].values() if isinstance(entry, dict)]
    size_of_all = sum(size for size in sizes if isinstance(size, int))
    if not isinstance(manifest.get("tensors"), dict):
        raise CheckpointError(source, "does not say where its tensors lie")
    for name, entry in manifest["tensors"].items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "parts": list(parts)}:
                end, wrong = 0, dtype not in DTYPES.values() or "/" not in name
                for part in parts:
                    match part:
                        case [int(first), int(rows), str(stem)]:
                            wrong |= first != end or rows < 0 or stem not in manifest["files"]
                            end += rows
                        case _:
                            wrong = True
                wrong |= end != (shape[0] if shape else 1)
                # what is not in the files must not be allocated for
                wrong |= not all(isinstance(size, int) and size >= 0 for size in shape)
                wrong = wrong or math.prod(shape) * WIDTHS[dtype] > size_of_all
            case _:
                wrong = True
        if wrong:
            raise CheckpointError(source, f"does not say where {name!r} lies")


def _joined(
    source: Path, entries: dict[str, Any], files: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """The tensors of a sharded checkpoint, their parts put together."""
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, entry in entries.items():
        kind, inner = name.split("/", 1)
        try:
            parts = [files[stem][name] for _, _, stem in entry["parts"]]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(source, f"does not fit the files: {name!r}: {error}") from error
        if [*whole.shape] != entry["shape"] or DTYPES[whole.dtype] != entry["dtype"]:
            raise CheckpointError(source, f"does not fit the files: {name!r} is {whole.shape}")
        tensors.setdefault(kind, {})[inner] = whole
    return tensors


def verify_file(path: Path, manifest: dict[str, Any], stem: str) -> None:
    """Compares a file with its size and SHA-256 in the manifest."""
    _verify(file_of(path, stem), manifest["files"][stem])


def _verify(path: Path, entry: Any) -> None:
    with reading(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        match entry:
            case {"size": int(due), "sha256": str(sha256)}:
                if size != due:
                    raise CheckpointError(path, f"has {size} bytes, the manifest says {due}")
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise CheckpointError(path, "is damaged: the manifest has another SHA-256")
            case _:
                raise CheckpointError(path, "has no size and SHA-256 in the manifest")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong in reading a file from elsewhere is a `CheckpointError` that names it."""
    try:
        if not path.is_file():  # a pipe, from a hostile archive, would block
            raise CheckpointError(path, "is missing")
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left: half written, half deleted, already replaced."""
    for path in sorted(folder.iterdir()):
        superseded = path.suffix == ".replaced" and path.with_suffix("").exists()
        if superseded or path.name.startswith((".writing-", ".deleting-")):
            remove_directory(path)


def remove_directory(path: Path) -> None:
    """Removes a directory so that a kill on the way leaves no half of it under a valid name."""
    doomed = path if path.name.startswith(".") else path.with_name(f".deleting-{path.name}")
    try:
        if path.is_symlink():  # what it leads to belongs to somebody else
            path.unlink()
            return
        os.rename(path, doomed)
        shutil.rmtree(doomed)
    except OSError as error:  # the new checkpoint is safe: no reason to stop the training
        message = f"{path} could not be removed: {error}"
        warnings.warn(message, CheckpointWarning, stacklevel=4)
