"""What can still be allocated, and refusals of what cannot."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_ADVICE = "lower num_data, groups or latent_dim, or name a directory as storage"


class InsufficientMemory(ValueError, MemoryError):
    """What was asked for does not fit in memory or on the disk: nothing was allocated."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device, as far as the system says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    bounds = [bound for bound in (_available(), cgroup_room()) if bound is not None]
    return min(bounds) if device.type == "cpu" and bounds else None


def check_memory(device: torch.device, table: str, size: int, advice: str = _ADVICE) -> None:
    """Refuses an allocation that cannot fit.

    Raises:
        InsufficientMemory: names the table, the bytes and what to do.
    """
    free = free_memory(device)
    if free is not None and size > free:
        raise InsufficientMemory(
            f"{table}: needs {size} bytes ({size / 1e9:.1f} GB) on {device}, where {free} "
            f"({free / 1e9:.1f} GB) are free; {advice}"
        )


def free_disk(directory: Path) -> int | None:
    """Bytes that can be written there, as far as the system says."""
    status = os.statvfs(directory) if hasattr(os, "statvfs") else None
    return None if status is None else status.f_bavail * status.f_frsize


def _available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def cgroup_room(
    listing: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What the control groups of this process leave, file pages that can be dropped included."""
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rooms = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / controllers
        files = ("memory.max", "memory.current")
        if controllers:  # version 1
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        group = base / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            try:
                limit, used = ((folder / file).read_text().strip() for file in files)
                numbers = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
            except (OSError, ValueError):  # the root has no limit, and a container sees less
                continue
            if limit != "max":
                droppable = int(numbers.get("inactive_file", 0))
                rooms.append(max(int(limit) - int(used) + droppable, 0))
    return min(rooms, default=None)
