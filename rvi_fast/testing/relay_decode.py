"""Cases and contract of `relay_decode`, a launch of the step of a small batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..layout import RowLayout
from ..reference import fused_step
from .compare import assert_as_accurate, assert_bit_equal
from .contract import Inputs, OpContract
from .inputs import Implementation, make_tables, poisoned_memory

ARGUMENTS = tuple(inspect.signature(fused_step.relay_decode).parameters)


@dataclass(frozen=True)
class RelayDecodeCase:
    """A batch of packed rows, and hidden layers of the given widths behind it."""

    num_data: int
    batch: int
    latent_dim: int
    groups: tuple[int, ...]
    hidden: tuple[int, ...] = ()
    top: float | int = 0.5
    form: str = "linear"
    bias: bool = True
    # noise of row numbers of their own, of 33 bits
    keyed: bool = False

    def __str__(self) -> str:
        sizes = f"B{self.batch}-T{self.latent_dim}-K{sum(self.groups)}"
        layers = "-".join(f"H{width}" for width in self.hidden)
        extras = ["no_bias"] * (not self.bias) + ["keyed"] * self.keyed
        return "-".join(filter(None, [self.form, sizes, layers, *extras]))


class RelayDecodeContract:
    """What `relay_decode` has to keep, of whatever namespace has it."""

    implementations: ClassVar[Sequence[Implementation]] = (Implementation("reference", fused_step),)
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32,)
    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "relay_decode": ("z", "kl", "mean", "hidden")
    }
    cases: ClassVar[Sequence[RelayDecodeCase]] = (
        RelayDecodeCase(1, 1, 1, (1,), (1,)),
        RelayDecodeCase(63, 16, 64, (25, 50, 100), (64, 64)),
        RelayDecodeCase(63, 37, 20, (33, 64, 5), (7, 1, 20)),
        RelayDecodeCase(63, 63, 7, (9, 31), (128,), form="cluster", bias=False),
        RelayDecodeCase(63, 17, 128, (), (100, 7, 128), keyed=True),
        RelayDecodeCase(63, 15, 100, (7, 40), (), 1.0),
        RelayDecodeCase(63, 5, 128, (1024,), (20,), 0.1, keyed=True, bias=False),
    )
    pytest_generate_tests = OpContract.pytest_generate_tests

    def inputs(self, case: RelayDecodeCase, dtype: torch.dtype = torch.float32) -> Inputs:
        """Every argument by name, on the CPU."""
        layout = RowLayout.resolve(case.latent_dim, case.groups, case.top, case.form)
        rows, relays = make_tables(layout, case.num_data, dtype)
        generator = torch.Generator().manual_seed(case.batch)
        index = torch.randperm(case.num_data, generator=generator)[: case.batch]
        words = [reference.pack_bits(mark) for mark in reference.selected(rows[index], layout)]
        widths = (case.latent_dim, *case.hidden)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype) / shape[-1] ** 0.5

        return {
            "rows": rows,
            "relays": relays,
            "index": index,
            "seed": torch.tensor([2**40 + 3]),
            "noise_index": index + 2**33 if case.keyed else None,
            "bits": torch.cat([*words, index.new_empty((case.batch, 0), dtype=torch.int32)], -1),
            "weights": [normal(*shape) for shape in zip(widths[1:], widths, strict=False)],
            "biases": [normal(width) if case.bias else None for width in case.hidden],
            "groups": list(layout.groups),
            "kept": list(layout.kept),
            "form": layout.form,
        }

    def arguments(self, function: str, case: RelayDecodeCase) -> tuple[Any, ...]:
        """float32 arguments of `function`, which is `relay_decode`, by position."""
        return tuple(self.inputs(case).values())

    def call(self, implementation: Implementation, inputs: Inputs) -> dict[str, Tensor]:
        """z, kl, mean and hidden_1, ..., by name, on the CPU."""
        own = [_each(inputs[name], lambda t: t.to(implementation.device)) for name in ARGUMENTS]
        z, kl, mean, hidden = implementation.namespace.relay_decode(*own)
        layers = {f"hidden_{number}": layer for number, layer in enumerate(hidden, 1)}
        results = {"z": z, "kl": kl, "mean": mean} | layers
        return {name: result.cpu() for name, result in results.items()}

    def test_results_equal_the_reference(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        definition = Implementation("reference", fused_step)
        yardstick = self.call(definition, inputs)
        double = {name: _each(value, _wide) for name, value in inputs.items()}
        exact, got = self.call(definition, double), self.call(implementation, inputs)
        assert got.keys() == exact.keys()
        for name in exact:
            assert_as_accurate(name, got[name], exact[name], yardstick[name])

    def test_runs_are_bit_equal_whatever_memory_holds(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        expected = self.call(implementation, inputs)
        with poisoned_memory():
            assert_bit_equal(self.call(implementation, inputs), expected)


def _each(value: Any, transform: Any) -> Any:
    """The argument with each tensor in it transformed."""
    if isinstance(value, list):
        return [_each(entry, transform) for entry in value]
    return transform(value) if isinstance(value, Tensor) else value


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
