"""What the package knows of kinds of devices: a row for each; any other is `_ANY`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor


class Device(NamedTuple):
    """What serves tensors on a kind of device, and what such a device has."""

    # the package with its kernels, and what they are called; where there is none the reference serves
    wing: str = ""
    kernels: str = ""
    # what it costs not to have them, and how to get them
    cost: str = ""
    remedy: str = ""
    # whether there are float64 tensors; where not, what must be float64 is kept on the CPU
    has_float64: bool = True
    # whether rows may lie in host memory, or in files, under a model on it
    hosts: bool = False


DEVICES = {
    "cpu": Device(
        "cpp",
        "C++",
        cost="a training step takes four to seven times as long",
        remedy="install a wheel that has them, or g++ or clang++ and then: "
        "pip install --force-reinstall --no-deps --no-binary rvi-fast rvi-fast",
        hosts=True,
    ),
    "cuda": Device(
        "kernels",
        "Triton",
        cost="every op is many launches of torch",
        remedy="on Linux: pip install 'rvi-fast[gpu]'",
        hosts=True,
    ),
    "xpu": Device(hosts=True),
    "mps": Device(has_float64=False, hosts=True),
}
_ANY = Device()
_CPU = torch.device("cpu")


def device_row(device_type: str) -> Device:
    """What is known of a kind of device, "cuda" for one."""
    return DEVICES.get(device_type, _ANY)


def kinds_of_devices(*, hosts: bool = False) -> str:
    """The kinds that have a row, for a message; with `hosts` those that rows may lie outside of."""
    names = [kind for kind, row in DEVICES.items() if row.hosts or not hosts]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def count_devices(device_type: str) -> int:
    """How many devices of a kind torch sees."""
    return 1 if device_type == "cpu" else int(torch.get_device_module(device_type).device_count())


def beside(device: torch.device) -> torch.device:
    """Where float64 state of what lies on a device is kept: with it, or on the CPU."""
    return device if device_row(device.type).has_float64 else _CPU


def to_float64(values: Tensor) -> Tensor:
    """The values in float64, `beside` their device."""
    # in two steps: a device without float64 cannot convert before it copies
    return values.to(beside(values.device)).to(torch.float64)


def in_line(device: torch.device) -> Callable[[], None]:
    """For another thread to call: what it asks of the device from then on waits for what this one did.

    On CUDA the two use one stream, this thread's; memory that one lets go of is then not written to
    before the other has read it. Other devices have one line for all threads.
    """
    if device.type != "cuda":
        return lambda: None
    stream = torch.cuda.current_stream(device)
    return lambda: torch.cuda.set_stream(stream)


def wait_for(device: torch.device) -> None:
    """Returns when what this thread has asked of a CUDA device is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def capturing(tensor: Tensor) -> bool:
    """Whether what is launched on a tensor now does not run, but goes into a CUDA graph or nowhere."""
    return rehearsing() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


_REHEARSING: ContextVar[bool] = ContextVar("rvi_fast rehearsing", default=False)


def rehearsing() -> bool:
    """Whether this thread asks for kernels without wanting them to run."""
    return _REHEARSING.get()


class Unrehearsed(RuntimeError):
    """An op that no kernel serves: it would run."""


@contextmanager
def rehearsal() -> Iterator[None]:
    """Within it kernels that this thread launches do not run, and other ops raise `Unrehearsed`."""
    before = _REHEARSING.set(True)
    try:
        yield
    finally:
        _REHEARSING.reset(before)
