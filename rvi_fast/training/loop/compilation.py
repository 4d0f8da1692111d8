"""Kernels of a step, compiled side by side before its first launch would compile them one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, as_completed, wait
from contextlib import nullcontext, suppress
from typing import Any

import torch

from ..._devices import Unrehearsed
from ...ops.table import implementation
from ...progress import progress_bar
from .step import BoundStep

# seconds in which kernels that were compiled before are read from a file
_READ = 0.5


def compile_kernels(step: BoundStep, size: int, kinds: Sequence[int], *, progress: bool) -> None:
    """Compiles what the kernels of a step need, where the package has any for its device.

    The step is rehearsed and not run. Where that could change anything nothing is done, and kernels are
    compiled as they are met.

    Args:
        step: before its first batch.
        size: rows of a batch.
        kinds: as `BoundStep.launch` takes them, one of each that launches kernels of its own.
        progress: say what is compiled, and how far that is; where nothing is, nothing is said.
    """
    device = step.seed.device
    compiling = getattr(implementation(device.type), "compiling", None)
    if compiling is None or not step.changes_by_kernels_alone:
        return
    index = torch.zeros(size, dtype=torch.int64, device=device)
    # a kernel is compiled for the device that is current
    here: Any = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with here, compiling() as compiled:
        # what comes after an op that has no kernel for these tensors is compiled as it is met
        with suppress(Unrehearsed):
            for kind in kinds:
                step.launch(index, kind)
        if progress:
            show(compiled, _name(device))


def show(compiled: Iterable[Future[Any]], device: str) -> None:
    """Waits for kernels, with a bar if there is something to wait for."""
    _, left = wait(compiled, _READ)
    if left:
        kernels = f"{len(left)} kernel{'s' * (len(left) > 1)}"
        text = f"compiling {kernels} for {device}, once"
        with progress_bar(len(left), unit="kernel", description=text) as bar:
            for _ in as_completed(left):
                bar.update()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
