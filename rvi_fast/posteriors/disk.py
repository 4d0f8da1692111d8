"""Room on a disk for tables, taken when they are made: a full disk is an error there, and no later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..files import durable
from ..memory.room import InsufficientMemory, free_disk


def reserve(path: Path, size: int) -> None:
    """Makes a file of so many bytes, all 0.

    Raises:
        InsufficientMemory: the disk has no room; there is no such file then.
    """
    room = free_disk(path.parent)
    free = size if room is None else room
    refusal = (
        f"storage: {path} needs {size} bytes ({size / 1e9:.1f} GB), its disk has {free} "
        f"({free / 1e9:.1f} GB) free; use another directory, fewer or smaller groups, or a smaller "
        "latent_dim"
    )
    if size > free:
        raise InsufficientMemory(refusal)
    with durable(path) as file:
        file.truncate(size)
        try:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            raise InsufficientMemory(f"{refusal}: {error}") from error


def reserve_more(paths: Sequence[Path], added: int, before: int) -> None:
    """Makes room at the ends of files for more rows; or leaves all of them as they are.

    Args:
        paths: in one directory.
        added: how many rows.
        before: how many each of them has.

    Raises:
        InsufficientMemory: the disk has no room.
    """
    sizes = {path: path.stat().st_size for path in paths}
    more = {path: size // before * added for path, size in sizes.items()}
    room = free_disk(paths[0].parent)
    refusal = (
        f"storage: {added} more rows need {sum(more.values())} bytes in {paths[0].parent}, its disk has "
        f"{room} free; use another directory"
    )
    if room is not None and sum(more.values()) > room:
        raise InsufficientMemory(refusal)
    try:
        for path in paths:
            files.lengthen(path, sizes[path] + more[path])
    except OSError as error:
        for path, size in sizes.items():
            os.truncate(path, size)
        raise InsufficientMemory(f"{refusal}: {error}") from error
