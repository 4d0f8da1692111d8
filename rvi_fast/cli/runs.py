"""The file run.json of a run directory: what a run was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..training.checkpoints import RunDirectory, latest_epoch

_RUN_FILE = "run.json"


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
    with RunDirectory(run_dir):
        path = run_dir / _RUN_FILE
        temporary = path.with_name(f".{path.name}.writing")
        temporary.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)


def read_run(run_dir: Path) -> dict[str, Any]:
    path = run_dir / _RUN_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--run-dir: {path} not found; `rvi-fast train` writes it") from None
    except ValueError as error:
        raise ValueError(f"--run-dir: {path} is damaged: {error}") from error
