"""A run directory: the lock that says who trains there, and what was asked for.

run_dir/.lock      who trains here (`RunDirectory`)
run_dir/run.json   what the command line was asked for, with its SHA-256
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from ...files import (
    ForeignFile,
    StrPath,
    lock,
    naming,
    open_own,
    read_bytes,
    sealed,
    unsealed,
    write_bytes,
)
from .checkpoints import CheckpointError, CheckpointWarning

# what a run.json of 0.1.0 holds, which has no hash; the last came later
_UNSEALED = {"data", "subset", "missing", "seed", "pixels", "standardizer", "missing_boxes"}


class RunDirectoryInUse(RuntimeError):
    """Another process, or another `RunDirectory` of this one, holds the run directory."""


class RunDirectory(os.PathLike[str]):
    """Holds a run directory for one process: `with RunDirectory("runs/a") as run_dir: ...`.

    The directory is created where it is missing. The lock goes with the process, however it ends,
    and forked children (workers of a DataLoader) do not share it.

    Args:
        run_dir: the directory. The object itself can be passed wherever a `run_dir` is asked for.

    Raises:
        RunDirectoryInUse: on entering, at once, if it is held; names pid, host and since when.
        ValueError: on entering, if the path leads to or through a file, or its `.lock` to another one.
    """

    def __init__(self, run_dir: StrPath) -> None:
        self.path = Path(run_dir)
        self._lock_file: IO[bytes] | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def __enter__(self) -> RunDirectory:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"run_dir must be a directory, got {self.path}: a file") from error
        held_by = self.path / ".lock"
        try:
            file = open_own(held_by, create=True, append=True)
        except ForeignFile as error:  # whoever writes to it would write to another file
            raise ValueError(f"run_dir: {held_by}: {error.strerror}; remove it") from error
        try:
            with naming(held_by):
                lock(file)
                file.truncate(0)
                since = datetime.now().astimezone().isoformat(timespec="seconds")
                file.write(f"pid {os.getpid()} on {socket.gethostname()} since {since}".encode())
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(1000).decode(errors="replace") or "a process that has just started"
            file.close()
            raise RunDirectoryInUse(f"run directory {self.path} is in use by {holder}") from None
        except BaseException:
            file.close()
            raise
        self._lock_file = file
        _held.add(file)
        return self

    def __exit__(self, *exception: object) -> None:
        # the file stays: a process that waits to lock a removed one would lock nothing
        file, self._lock_file = self._lock_file, None
        if file is not None and not file.closed:
            _held.discard(file)
            file.truncate(0)
            file.close()


_held: set[IO[bytes]] = set()


def _let_go_in_child() -> None:
    # closing a copy of the descriptor does not unlock: the parent still holds the directory
    while _held:
        _held.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def write_run(run_dir: StrPath, run: dict[str, Any]) -> None:
    """Writes `run_dir/run.json`, whole or not at all."""
    write_bytes(Path(run_dir) / "run.json", sealed(run) + b"\n")


def read_run(run_dir: StrPath) -> dict[str, Any]:
    """What `write_run` was given.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: a byte of it is another one.
    """
    path = Path(run_dir) / "run.json"
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    try:
        return unsealed(content.removesuffix(b"\n"))
    except ValueError as error:
        reason = f"is damaged: it {error}"
    try:
        run = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is damaged: {error}") from error
    if not isinstance(run, dict) or {*run, "missing_boxes"} != _UNSEALED:
        raise CheckpointError(path, reason)
    message = f"{path} has no SHA-256, as 0.1.0 wrote it: damage would not be noticed"
    warnings.warn(message, CheckpointWarning, stacklevel=2)
    return run
