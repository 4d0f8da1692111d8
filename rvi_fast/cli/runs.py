"""The file run.json of a run directory: what a run was trained on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..training.runs import directory
from ..training.runs.checkpoints import (
    CheckpointError,
    checkpoints,
    latest_epoch,
    read_manifest,
)

# what is not an option of its own: it follows from the data
_OF_DATA = (
    "pixels",
    "columns",
    "carried",
    "categories",
    "unseen",
)
# what the table says, which can have more rows later
_OF_ROWS = ("rows", "digest", "earlier")
# what a run of version 0.1, whose run.json does not say it, was
_BEFORE = {"transform": "none", "recipe": "table", "binarize": None, "likelihood": "gaussian"}


def check_run(
    run_dir: Path,
    run: dict[str, Any],
    *,
    resume: bool,
    digest: Callable[[int], str] | None = None,
) -> int | None:
    """Compares what a run is to be with what a directory holds.

    Args:
        run_dir: the directory.
        run: what `record_run` is to write.
        resume: whether to go on with a run that is there.
        digest: that of so many first rows of the data; None where `fit` alone compares them.

    Returns:
        How many rows the run had so far, if it goes on with more; else None.

    Raises:
        ValueError: there is a run that is not to go on, or another one.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"--run-dir: expected a directory, {run_dir} is a file")
    if latest_epoch(run_dir) is None:
        return None
    if not resume:
        raise ValueError(
            f"--run-dir: {run_dir} already holds a run; add --resume to go on with it, or name "
            "another directory"
        )
    stored = read_run(run_dir)
    before = rows_trained(run_dir)
    more = before is not None and before < run["rows"]
    if digest is not None:
        known = digest_of(stored, before)
        # of version 0.1 nothing is known
        if known not in (None, digest(before) if more and before else run["digest"]):
            raise _changed(run_dir, run, "digest")
    _compare(run_dir, stored, run, more=more)
    return before if more else None


def record_run(run_dir: Path, run: dict[str, Any]) -> None:
    """Writes run.json for a run that begins, or goes on with more rows; see `check_run`."""
    with directory.RunDirectory(run_dir):
        if latest_epoch(run_dir) is not None:
            stored, before = read_run(run_dir), rows_trained(run_dir)
            # until a checkpoint has the others, these are what there is
            earlier = {str(before): digest_of(stored, before)}
            run = {**stored, **run, "earlier": {**stored.get("earlier", {}), **earlier}}
        directory.write_run(run_dir, run)


def rows_trained(run_dir: Path) -> int | None:
    """Rows of the table that the last good checkpoint is of; None where 0.1 has not written it."""
    for epoch, path in checkpoints(run_dir):
        with suppress(CheckpointError):
            data = read_manifest(path, epoch)["metadata"].get("settings", {}).get("data")
            return int(data["rows"]) if isinstance(data, dict) else None
    return None


def digest_of(run: dict[str, Any], rows: int | None) -> str | None:
    """What run.json says of the table when it had so many rows, if it does."""
    digest: str | None = run.get("earlier", {}).get(str(rows), run.get("digest"))
    return digest


def read_run(run_dir: Path) -> dict[str, Any]:
    """What `record_run` has written.

    Raises:
        ValueError: it is not there, or damaged.
    """
    try:
        return directory.read_run(run_dir)
    except FileNotFoundError as error:
        missing = error.filename
        raise ValueError(f"--run-dir: {missing} not found; `rvi-fast train` writes it") from None


def find_run(run_dir: Path) -> dict[str, Any] | None:
    """What run.json says; None for a run that `fit(run_dir=)` has made, which writes none."""
    if not (run_dir / "run.json").exists() and latest_epoch(run_dir) is not None:
        return None
    return read_run(run_dir)


def run_to_resume(run_dir: Path) -> dict[str, Any] | None:
    """What run.json says of the run that a directory holds; None where it holds none."""
    return None if latest_epoch(run_dir) is None else _BEFORE | read_run(run_dir)


def _compare(run_dir: Path, stored: dict[str, Any], run: dict[str, Any], *, more: bool) -> None:
    stored = _BEFORE | stored
    for name, value in run.items():
        # a run of version 0.1 does not say everything
        if name in _OF_ROWS or name not in stored or stored[name] == value:
            continue
        if name in _OF_DATA:
            raise _changed(run_dir, run, name)
        # a table with more rows can have another name
        if name != "data" or not more:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option}: expected {stored[name]!r} as in {run_dir}, got {value!r}"
            )


def _changed(run_dir: Path, run: dict[str, Any], name: str) -> ValueError:
    return ValueError(
        f"--data: {run['data']} is not as it was when {run_dir} began ({name} differs); go on with the "
        "data of then, perhaps with more rows after them, or name another --run-dir"
    )
