"""Which tiles compile without spills, and what they cost: where the kernels' tables of tiles come from.

`python tests/kernel_tiles.py linear 64` tries tiles of linear_log_likelihood for 64 hidden
units, `python tests/kernel_tiles.py relay` those of relay_sample at the sizes of its first budget
case. For every target: registers, spills, and instructions times warps for each row (and 32 features)
of a tile. The tables hold the widest tiles without spills on any target, but for those of sm_90 alone.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import kernel_budget
from kernel_cases import LAUNCHES

from rvi_fast import kernels, testing


def compiled(contract: Any, function: str, case: Any) -> Iterator[tuple[int, str, dict[str, int]]]:
    """Target, kernel and measurements of everything that a call launches."""
    arguments = [
        kernel_budget.without_memory(value) for value in contract().arguments(function, case)
    ]
    for target in kernel_budget.TARGETS:
        with kernel_budget.recorded(target) as launched:
            getattr(kernels, function)(*arguments)
        for kernel in launched:
            yield target, kernel.src.fn.__name__, kernel_budget.measure(kernel)


def report(tile: tuple[int, ...], rows: float, found: Iterator[Any], stem: str) -> None:
    for target, name, row in found:
        if stem in name:
            cost = row["instructions"] * row["warps"] / rows
            print(
                f"{tile!s:>16} sm_{target} {name:<58} {row['registers']:>4} registers "
                f"{row['spills']:>4} spills {cost:>8.0f} per row",
                flush=True,
            )


def try_linear(hidden_dim: int) -> None:
    module = importlib.import_module("rvi_fast.kernels.weights")
    launcher = importlib.import_module("rvi_fast.kernels.likelihood_launches")
    case = testing.LinearLogLikelihoodCase(256, 784, hidden_dim=hidden_dim)
    function = "linear_log_likelihood_bwd"
    for tile in itertools.product((16, 32), (16, 32), (4, 8)):
        table = {module.block_of(hidden_dim): tile}
        tables = {"ROWS_TILES": table, "FEATURES_TILES": table}
        with (
            mock.patch.multiple(module, **tables, multiplies_in_groups=lambda: False),
            mock.patch.multiple(launcher, **tables),
        ):
            found = compiled(testing.LinearLogLikelihoodContract, function, case)
            report(tile, tile[0] * tile[1] / 32, found, "linear")


def try_relay() -> None:
    module = importlib.import_module("rvi_fast.kernels.relay_sample")
    backward = importlib.import_module("rvi_fast.kernels.relay_sample_bwd")
    contract = testing.RelaySampleContract
    usual: Callable[..., dict[str, Any]] = module.constants_of
    for columns, warps, limit in itertools.product((32, 64), (4, 8), (128, 255)):

        def constants(*arguments: Any, own: tuple[int, int, int] = (columns, warps, limit)) -> Any:
            names = ("BLOCK_K", "num_warps", "maxnreg")
            return usual(*arguments) | dict(zip(names, own, strict=True))

        with (
            mock.patch.object(module, "constants_of", constants),
            mock.patch.object(backward, "constants_of", constants),
        ):
            for function in contract.functions:
                found = compiled(contract, function, LAUNCHES[contract][0])
                report((columns, warps, limit), module.BLOCK_B, found, "relay")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("op", choices=["linear", "relay"])
    parser.add_argument("hidden_dim", type=int, nargs="?", default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        if arguments.op == "linear":
            try_linear(arguments.hidden_dim)
        else:
            try_relay()


if __name__ == "__main__":
    main()
