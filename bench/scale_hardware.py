"""The constants that `scale.py` predicts from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "scale.json"


@dataclass(frozen=True)
class Hardware:
    """What a machine needs for each byte, product and exchange; seconds, unless it says otherwise.

    Attributes:
        step: of a step, whatever its batch.
        row_byte: a byte of a row with its moments, read, worked on and written.
        flop: of the decoder.
        parameter: a shared parameter, stepped.
        epoch_byte: a byte of tables in memory as an epoch ends: brought up to date and looked at.
        order_row: a row of all processes, whose place in an epoch each of them draws.
        read, read_byte: a batch of mapped data, and a byte of it, on a thread of its own.
        move_in, move_out: a byte of tables in files, made ready and put away by a thread of its own.
        bus_byte: between host and device.
        journal_byte: a byte copied into the journal, on disk.
        save_byte: a byte of a checkpoint, hashed and on disk.
        disk_read, disk_write: bytes per second.
        cached: bytes of files that the system keeps in memory.
        dirty: those of them that it lets wait to be written.
        exchange: by number of processes, what a sum over all of them adds to a step, at least and for
            each byte.
        cores: of one machine.
        capacity: by number of processes, what so many do at once, in processes; cores where not named.
        base: bytes of a process that has loaded torch.
        device: "cpu" or "cuda".
        memory: bytes of the device; 0 is not known.
    """

    step: float
    row_byte: float
    flop: float
    parameter: float
    epoch_byte: float
    order_row: float
    read: float
    read_byte: float
    move_in: float
    move_out: float
    bus_byte: float
    journal_byte: float
    save_byte: float
    disk_read: float
    disk_write: float
    cached: float
    dirty: float
    cores: int
    base: float
    exchange: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    capacity: Mapping[int, float] = field(default_factory=dict)
    device: str = "cpu"
    memory: float = 0.0

    @classmethod
    def load(cls, path: Path = RESULTS) -> Hardware:
        """What `measure` has written."""
        held = json.loads(path.read_text())["hardware"]
        numbers = {f.name: held[f.name] for f in fields(cls) if f.name in held}
        for name in ("exchange", "capacity"):
            numbers[name] = {int(size): value for size, value in held[name].items()}
        return cls(**numbers)
