"""The file run.json of a run directory: what a run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..training.runs import directory
from ..training.runs.checkpoints import latest_epoch

# what is not an option of its own: it follows from the data
_OF_DATA = (
    "pixels",
    "columns",
    "carried",
    "categories",
    "unseen",
    "digest",
)
# what a run of version 0.1, whose run.json does not say it, was
_BEFORE = {"transform": "none", "recipe": "table", "binarize": None, "likelihood": "gaussian"}


def record_run(run_dir: Path, run: dict[str, Any], *, resume: bool) -> None:
    """Writes run.json; where the directory holds a run, compares instead."""
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"--run-dir: expected a directory, {run_dir} is a file")
    if latest_epoch(run_dir) is not None:
        if not resume:
            raise ValueError(
                f"--run-dir: {run_dir} already holds a run; add --resume to go on with it, or name "
                "another directory"
            )
        _compare(run_dir, read_run(run_dir), run)
        return
    with directory.RunDirectory(run_dir):
        directory.write_run(run_dir, run)


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


def _compare(run_dir: Path, stored: dict[str, Any], run: dict[str, Any]) -> None:
    stored = _BEFORE | stored
    for name, value in run.items():
        # a run of version 0.1 does not say everything
        if name not in stored or stored[name] == value:
            continue
        if name in _OF_DATA:
            raise ValueError(
                f"--data: {run['data']} is not as it was when {run_dir} began ({name} differs); go on "
                "with the data of then, or name another --run-dir"
            )
        option = name.replace("_", "-")
        raise ValueError(f"--{option}: expected {stored[name]!r} as in {run_dir}, got {value!r}")
