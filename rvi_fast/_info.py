"""What is installed, which implementation serves which device, and why another does not.

`python -m rvi_fast.info` and `rvi-fast info` print it.
"""

from __future__ import annotations

import importlib.metadata
import platform
from itertools import product
from typing import Any

import torch

from . import ops
from ._devices import DEVICES, beside, count_devices
from ._version import __version__
from .layout import RowLayout

_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "scikit-learn",
    "matplotlib",
    "pandas",
    "pyarrow",
    "tensorboard",
)


def info() -> dict[str, Any]:
    """Versions, devices, and for each device the implementation that serves it.

    Returns:
        "versions": package -> version or None; "threads": torch's; "devices": device -> {"name",
        "implementation", "unused": {implementation: reason}}.
    """
    versions: dict[str, str | None] = {"rvi_fast": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    devices = {"cpu": _device("cpu", platform.processor() or platform.machine())}
    for kind in [kind for kind in DEVICES if kind != "cpu"]:
        module = torch.get_device_module(kind)
        for number in range(count_devices(kind)):
            named = hasattr(module, "get_device_name")
            name = module.get_device_name(number) if named else platform.machine()
            devices[f"{kind}:{number}"] = _device(kind, name)
    return {"versions": versions, "threads": torch.get_num_threads(), "devices": devices}


def _device(device_type: str, name: str) -> dict[str, Any]:
    used = ops.implementation(device_type).__name__.rpartition(".")[2]
    return {"name": name, "implementation": used, "unused": ops.unused(device_type)}


def run_every_op(device: torch.device | str) -> list[tuple[str, str]]:
    """Runs each op once, forward and backward: (op, "ok" or what went wrong)."""
    from . import functional, optim
    from .posteriors.relay import RelayPosterior

    layout = RowLayout.resolve(4, (3, 5))
    rows = torch.zeros(6, layout.width, device=device, requires_grad=True)
    relays = torch.ones(8, 4, device=device, requires_grad=True)
    index = torch.tensor([5, 0, 5], device=device)

    def relay_sample() -> None:
        z, kl = functional.relay_sample(rows, relays, index, layout=layout)
        (z.sum() + kl.sum()).backward()

    def gaussian_log_likelihood() -> None:
        mean = torch.zeros(3, 2, device=device, requires_grad=True)
        x = torch.tensor([[1.0, torch.nan]] * 3, device=device)
        functional.gaussian_log_likelihood(x, mean, 0.5).sum().backward()

    def linear_gaussian_log_likelihood() -> None:
        hidden, x = torch.zeros(3, 4, device=device), torch.zeros(3, 2, device=device)
        weight = torch.zeros(2, 4, device=device, requires_grad=True)
        functional.linear_gaussian_log_likelihood(hidden, weight, None, x, 0.5).sum().backward()

    def row_adam() -> None:
        for mode, moments in product(optim.MODES, (None, torch.bfloat16)):
            posterior = RelayPosterior(6, 4, groups=(3, 5), sparse=True, device=device)
            optimizer = optim.RowAdam(posterior, mode=mode, moment_dtype=moments)
            posterior(index).kl.sum().backward()
            optimizer.step()
            posterior.mean()

    def adam_step() -> None:
        params, exp_avg, exp_avg_sq = torch.zeros(3, 5, device=device)
        kept = beside(params.device)
        step = torch.zeros(1, dtype=torch.int64, device=kept)
        lr = torch.ones((), dtype=torch.float64, device=kept)
        constants = (0.9, 0.999, 1e-8, 0.0)
        grads = torch.ones(2, 5, device=device)
        ops.ops.adam_step(params, exp_avg, exp_avg_sq, grads, step, lr, *constants)

    results = []
    for op in (
        relay_sample,
        gaussian_log_likelihood,
        linear_gaussian_log_likelihood,
        row_adam,
        adam_step,
    ):
        try:
            op()
            results.append((op.__name__, "ok"))
        except Exception as error:  # the table must name whatever fails
            results.append((op.__name__, f"{type(error).__name__}: {error}"))
    return results


def main() -> int:
    """Prints the table; exit status 1 if an op fails on a device."""
    state = info()
    width = max(len(name) for name in state["versions"])
    for name, version in state["versions"].items():
        print(f"{name:<{width}}  {version or 'not installed'}")
    print(f"{'threads':<{width}}  {state['threads']}")
    if not torch.cuda.is_available():
        print("\ncuda: no device (torch.cuda.is_available() is false)")
    failed = False
    for device, entry in state["devices"].items():
        print(f"\n{device} ({entry['name']}): {entry['implementation']}")
        for other, reason in entry["unused"].items():
            print(f"  not used: {other}: {reason}")
        for op, result in run_every_op(device):
            failed |= result != "ok"
            print(f"  {op:<24} {result}")
    return int(failed)
