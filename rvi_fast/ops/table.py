"""Which implementation serves which device, and how an op is made known to torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import torch

from .. import reference
from .._op_checks import checked

ops = torch.ops.rvi_fast
# of each op, the signature that all its implementations have
SCHEMAS: dict[str, str] = {}

_HERE = nullcontext()


class FallbackWarning(UserWarning):
    """An implementation that could serve a device is not there; a slower one takes its place."""


def implementation(device_type: str) -> ModuleType:
    """The namespace that serves tensors on "cpu" or "cuda"."""
    return _serving(device_type)[0]


def unused(device_type: str) -> dict[str, str]:
    """Implementations that could serve the device and do not, each with the reason."""
    reason = _serving(device_type)[1]
    return {{"cpu": "C++", "cuda": "Triton"}[device_type]: reason} if reason else {}


@functools.cache
def _serving(device_type: str) -> tuple[ModuleType, str]:
    """What serves a device, and why that is the reference where it is."""
    found: ModuleType
    try:
        if device_type == "cpu":
            from .. import cpp as found
        else:
            from .. import kernels as found
    except (ImportError, ValueError) as error:  # not built, built for another version, no such path
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"rvi_fast: the plain torch reference serves {device_type} tensors, slowly: {reason}",
            FallbackWarning,
            stacklevel=2,
        )
        return reference, reason
    return found, ""


def check_rows_read(device: torch.device) -> None:
    """Raises what kernels on a GPU could only take down: a row number outside its table.

    Reads one number back, so it belongs where the device is waited for anyway.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return
    if implementation("cuda") is reference:  # which checks the numbers itself
        return
    error = implementation("cuda").row_error(device)
    if bool(error):
        error.zero_()
        raise IndexError("index: a batch held a row number outside its table; it was left out")


def _run(device_type: str, name: str, *args: Any) -> Any:
    # arguments are checked by each function of an implementation, see `_op_checks.checked`
    chosen = implementation(device_type)
    if chosen is not reference:
        # a kernel is launched on the device that is current
        on_device = torch.cuda.device(args[0].device) if device_type == "cuda" else _HERE
        with on_device:
            result = getattr(chosen, name)(*args)
        if result is not NotImplemented:
            return result
    with torch.autocast(device_type, enabled=False):
        return getattr(reference, name)(*args)


_library = torch.library.Library("rvi_fast", "DEF")


def defined(name: str, schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Defines an op by its schema and, decorated, its fake: shapes and dtypes of the results alone.

    The fake is what torch.compile and torch.export run; it refuses what the op refuses.
    """

    def define(fake: Callable[..., Any]) -> Callable[..., Any]:
        SCHEMAS[name] = schema
        _library.define(name + schema)
        for device_type in ("cpu", "cuda"):
            _library.impl(name, functools.partial(_run, device_type, name), device_type.upper())
        torch.library.register_fake(f"rvi_fast::{name}")(checked(fake, name))
        return fake

    return define
