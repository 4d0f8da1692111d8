"""The file run.json of a run directory: what a run was trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..training.checkpoints import RunDirectory, latest_epoch

_RUN_FILE = "run.json"
# what every run.json says
_KEYS = ("data", "subset", "missing", "seed", "pixels", "standardizer")
# what is not an option of its own: it follows from the data
_OF_DATA = ("pixels", "standardizer", "columns", "carried", "unseen", "digest")


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
    with RunDirectory(run_dir):
        path = run_dir / _RUN_FILE
        temporary = path.with_name(f".{path.name}.writing")
        sealed = {**run, "sha256": _seal(run)}
        temporary.write_text(json.dumps(sealed, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)


def read_run(run_dir: Path) -> dict[str, Any]:
    """What run.json says.

    Raises:
        ValueError: it is not there, or damaged.
    """
    path = run_dir / _RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--run-dir: {path} not found; `rvi-fast train` writes it") from None
    except ValueError as error:
        raise ValueError(f"--run-dir: {path} is damaged: {error}") from error
    lacking = [key for key in _KEYS if not isinstance(run, dict) or key not in run]
    if lacking:
        raise ValueError(f"--run-dir: {path} is damaged: it lacks {', '.join(lacking)}")
    # runs of version 0.1 have no seal
    seal = run.pop("sha256", None)
    if seal != _seal(run) and (seal is not None or "digest" in run):
        raise ValueError(f"--run-dir: {path} is damaged: its SHA-256 is another")
    return run


def find_run(run_dir: Path) -> dict[str, Any] | None:
    """What run.json says; None for a run that `fit(run_dir=)` has made, which writes none."""
    if not (run_dir / _RUN_FILE).exists() and latest_epoch(run_dir) is not None:
        return None
    return read_run(run_dir)


def _compare(run_dir: Path, stored: dict[str, Any], run: dict[str, Any]) -> None:
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


def _seal(run: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
