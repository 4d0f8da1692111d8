"""What is refused before any work is done."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import data
from .._devices import DEVICES, count_devices, kinds_of_devices


def check_out(
    out: Path, inputs: Sequence[str | os.PathLike[str]], suffixes: Sequence[str] | None = None
) -> None:
    """Refuses an --out that could not be written when all is done, or that is one of the inputs.

    Args:
        out: the file.
        inputs: data sets by name, and paths.
        suffixes: what it may end in; None allows anything.
    """
    try:
        data.check_target(out, suffixes)
    except ValueError as error:
        raise ValueError(f"--out: {str(error).removeprefix('path: ')}") from error
    for path in map(Path, inputs):
        if path.exists() and out.exists() and os.path.samefile(path, out):
            raise ValueError(f"--out: expected another file than the data, got {out}")


def check_device(name: str | None) -> str:
    """A device that tensors can be made on; the default where none is named."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    refusal = f"--device: expected {kinds_of_devices()}, got {name!r}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(refusal) from None
    if device.type not in DEVICES:
        raise ValueError(refusal)
    if device.type != "cpu" and (device.index or 0) >= (count := count_devices(device.type)):
        raise ValueError(f"{refusal}; torch sees {count} {device.type.upper()} devices")
    return name


def check_bounds(arguments: argparse.Namespace) -> tuple[float, float]:
    """--min-value and --max-value, infinite where they are not given."""
    low = -float("inf") if arguments.min_value is None else arguments.min_value
    high = float("inf") if arguments.max_value is None else arguments.max_value
    if not low <= high:
        raise ValueError(f"--min-value: expected at most --max-value ({high}), got {low}")
    return low, high
