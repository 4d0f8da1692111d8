"""What is done with one piece: its rows through a model, and into the file of all."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from ...data.arrays import StoredArray
from ..loop.threads import one_thread
from ..pieces import Job
from ..workers import Say
from .outputs import RowFile


def write_piece(job: Job[StoredArray], file: RowFile, rows: range, say: Say) -> int:
    """Writes what becomes of some rows, and tells of them once they are on disk.

    Returns:
        How many entries were filled in.
    """
    on_cpu = next(job.model.parameters()).device.type == "cpu"
    # opened first: a process that outlives its call for a moment writes into no file of a later one;
    # one thread, as processes side by side have, or the bits would not be those of any of them
    with file.open() as target, one_thread() if on_cpu else nullcontext():
        values, filled = _changed(job, rows.start, job.source.read(rows))
        file.write(target, rows.start, values)
    say(len(rows))
    return filled


def _changed(job: Job[StoredArray], first: int, block: np.ndarray) -> tuple[np.ndarray, int]:
    """What is written for some rows, and how many entries of it were filled in."""
    source = job.source
    where = f"{source.path}: {source.name}, from row {first} on"
    shown = source.numbers(first, block)
    if job.kind == "infer":
        return job.latents(shown, where), 0
    # nothing is missing in pixels
    found = None if source.pixels else job.completed(shown, where)
    if found is None:
        return block, 0
    values, gaps = found
    return source.filled(block, values, gaps), int(gaps.sum())
