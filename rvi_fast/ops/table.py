"""Which implementation serves which device, and how an op is made known to torch."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._devices import DEVICES, Unrehearsed, device_row, rehearsing
from .._op_checks import checked
from .autograd import without_autocast

ops = torch.ops.rvi_fast
# of each op, the signature that all its implementations have
SCHEMAS: dict[str, str] = {}


class FallbackWarning(UserWarning):
    """Kernels that could serve a device are not there, or lack an op; a slower one takes its place."""


def implementation(device_type: str) -> ModuleType:
    """The namespace that serves tensors on a kind of device; without kernels it is the reference."""
    return _serving(device_type)[0]


def unused(device_type: str) -> dict[str, str]:
    """Implementations that could serve the device and do not: why, what that costs, and the remedy."""
    reason = _serving(device_type)[1]
    return {device_row(device_type).kernels: reason} if reason else {}


@functools.cache
def _serving(device_type: str) -> tuple[ModuleType, str]:
    """What serves a device, and why that is the reference where there are kernels."""
    row = device_row(device_type)
    if not row.wing:
        return reference, ""
    try:
        return importlib.import_module(f"rvi_fast.{row.wing}"), ""
    except (ImportError, ValueError) as error:  # not built, built for another version, no such path
        reason = f"{type(error).__name__}: {error}"
        # a path that is asked for by name and that the machine lacks is no matter of what is installed
        if isinstance(error, ImportError):
            reason += f"; {row.cost}; {row.remedy}"
        _warn(f"{device_type} tensors, slowly: {reason}")
        return reference, reason


@functools.cache
def _kernel(device_type: str, name: str) -> Callable[..., Any] | None:
    """What serves an op on a kind of device, None if it is the reference."""
    serving = implementation(device_type)
    if serving is reference:
        return None
    found: Callable[..., Any] | None = getattr(serving, name, None)
    if found is None:
        kernels = device_row(device_type).kernels
        _warn(f"{name} on {device_type} tensors, slowly: the {kernels} kernels have none")
    return found


def _warn(what: str) -> None:
    message = f"rvi_fast: the plain torch reference serves {what}"
    warnings.warn(message, FallbackWarning, stacklevel=3)


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


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Within it a CUDA device is the current one; to enter it costs next to nothing where it is."""
    # the device of a tensor has a number
    same = device.index == torch.cuda.current_device()
    return nullcontext() if same else torch.cuda.device(device)


def _run(device_type: str, name: str, *args: Any) -> Any:
    # arguments are checked by each function of an implementation, see `_op_checks.checked`
    function = _kernel(device_type, name)
    if function is not None:
        if device_type == "cuda":  # a kernel is launched on the device that is current
            with _current(args[0].device):
                result = function(*args)
        else:
            result = function(*args)
        if result is not NotImplemented:
            return result
    if rehearsing():
        raise Unrehearsed(name)
    with without_autocast(device_type):
        return getattr(reference, name)(*args)


def _run_elsewhere(name: str, *args: Any) -> Any:
    """Tensors on a device that has no row, or of a layout that no implementation reads."""
    schema = getattr(ops, name).default._schema
    for argument, value in zip(schema.arguments, args, strict=False):
        if isinstance(value, Tensor) and value.layout != torch.strided:
            raise TypeError(f"{argument.name}: expected a dense tensor, got {value.layout}")
    return _run(args[0].device.type, name, *args)


_library = torch.library.Library("rvi_fast", "DEF")


def defined(name: str, schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Defines an op by its schema and, decorated, its fake: shapes and dtypes of the results alone.

    The fake is what torch.compile and torch.export run; it refuses what the op refuses.
    """

    def define(fake: Callable[..., Any]) -> Callable[..., Any]:
        SCHEMAS[name] = schema
        _library.define(name + schema)
        for device_type in DEVICES:
            _library.impl(name, functools.partial(_run, device_type, name), device_type.upper())
        elsewhere = functools.partial(_run_elsewhere, name)
        _library.impl(name, elsewhere, "CompositeExplicitAutograd")
        torch.library.register_fake(f"rvi_fast::{name}")(checked(fake, name))
        return fake

    return define
