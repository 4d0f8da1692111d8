"""What a run has been through, for others to read while it goes on: `run_dir/metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...files import StrPath, append_line, read_lines, rewrite_lines
from .checkpoints import CheckpointError


def append_metrics(run_dir: StrPath, record: Mapping[str, Any]) -> None:
    """Appends one line to `run_dir/metrics.jsonl`; non-finite floats become null.

    It is not waited for: the history in the checkpoints is what a resumed run goes on with.
    """
    append_line(_metrics(run_dir), record)


def rewrite_metrics(run_dir: StrPath, records: Iterable[Mapping[str, Any]]) -> None:
    """Replaces `run_dir/metrics.jsonl` as a whole: a kill leaves the old file or the new one."""
    rewrite_lines(_metrics(run_dir), records)


def read_metrics(run_dir: StrPath) -> list[dict[str, Any]]:
    """The records of `run_dir/metrics.jsonl`, without a last line that was torn off by a kill.

    Raises:
        CheckpointError: a line is not a JSON object; names the file and the line.
    """
    path = _metrics(run_dir)
    try:
        return read_lines(path)
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error


def _metrics(run_dir: StrPath) -> Path:
    return Path(run_dir) / "metrics.jsonl"
