"""The file run.json of a run directory: what a run was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..training import directory
from ..training.checkpoints import latest_epoch


def record_run(run_dir: Path, run: dict[str, Any], *, resume: bool) -> None:
    """Writes run.json; where the directory holds a run, compares instead."""
    if latest_epoch(run_dir) is not None:
        if not resume:
            raise ValueError(
                f"--run-dir: {run_dir} already holds a run; add --resume to go on with it, or name "
                "another directory"
            )
        stored = read_run(run_dir)
        for name, value in run.items():
            if stored.get(name) != value:
                raise ValueError(
                    f"--{name}: expected {stored.get(name)!r} as in {run_dir}, got {value!r}"
                )
        return
    with directory.RunDirectory(run_dir):
        directory.write_run(run_dir, run)


def read_run(run_dir: Path) -> dict[str, Any]:
    """What `record_run` has written."""
    try:
        return directory.read_run(run_dir)
    except FileNotFoundError as error:
        missing = error.filename
        raise ValueError(f"--run-dir: {missing} not found; `rvi-fast train` writes it") from None
