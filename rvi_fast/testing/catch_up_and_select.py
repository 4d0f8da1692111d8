"""Cases and contract of `catch_up_and_select`, a launch of the step of a small batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..layout import RowLayout
from ..reference import fused_step
from .compare import assert_bit_equal
from .contract import Inputs, OpContract
from .inputs import Implementation, poisoned_memory
from .row_adam import RowAdamCase, RowAdamContract

ARGUMENTS = tuple(inspect.signature(fused_step.catch_up_and_select).parameters)
WRITTEN = ("rows", "exp_avg", "exp_avg_sq", "row_step")


@dataclass(frozen=True)
class CatchUpAndSelectCase:
    """A batch of a table of packed rows after some steps of Adam, some of its rows up to date."""

    num_data: int
    batch: int
    latent_dim: int
    groups: tuple[int, ...]
    top: float | int = 0.5
    form: str = "linear"
    steps: int = 12
    weight_decay: float = 0.0
    bfloat16: bool = False
    # coefficients in {0, -0, +-1/2, +-1}, which no moment moves
    ties: bool = False
    # whether `arguments` are those of a batch in a ring
    ring: bool = False
    # random bits of row numbers of their own, of 33 bits
    keyed: bool = False

    def __str__(self) -> str:
        sizes = f"B{self.batch}-T{self.latent_dim}-K{'.'.join(map(str, self.groups))}"
        extras = [word for word in ("bfloat16", "ties", "ring", "keyed") if getattr(self, word)]
        return "-".join([self.form, sizes, f"after{self.steps}", f"top{self.top}", *extras])


class CatchUpAndSelectContract:
    """What `catch_up_and_select` has to keep, of whatever namespace has it."""

    implementations: ClassVar[Sequence[Implementation]] = (Implementation("reference", fused_step),)
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32,)
    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {"catch_up_and_select": ("bits",)}
    cases: ClassVar[Sequence[CatchUpAndSelectCase]] = (
        CatchUpAndSelectCase(1, 1, 1, (1,)),
        CatchUpAndSelectCase(63, 17, 7, (25, 50, 100), weight_decay=0.1),
        CatchUpAndSelectCase(63, 7, 7, (25, 50, 100), bfloat16=True),
        CatchUpAndSelectCase(63, 7, 20, (33, 64, 5), 0.3, ties=True),
        CatchUpAndSelectCase(63, 7, 64, (), weight_decay=0.1),
        CatchUpAndSelectCase(63, 7, 1, (), bfloat16=True),
        CatchUpAndSelectCase(63, 7, 7, (25, 50, 100), bfloat16=True, keyed=True),
        CatchUpAndSelectCase(63, 7, 5, (9, 31, 1), form="cluster"),
        CatchUpAndSelectCase(63, 7, 5, (9, 31, 40), form="cluster", ties=True),
        CatchUpAndSelectCase(63, 7, 100, (7, 40), 1.0),
        CatchUpAndSelectCase(63, 2, 128, (1024, 7), 0.1, bfloat16=True),
        CatchUpAndSelectCase(63, 2, 3, (257, 300, 31), 0.4, ties=True),
        CatchUpAndSelectCase(9, 3, 6, (4,) * 19, 2, ties=True),
        CatchUpAndSelectCase(9, 3, 6, (15,) * 9, 7),
        CatchUpAndSelectCase(7, 5, 4, (6, 3), steps=0, ties=True),
    )
    pytest_generate_tests = OpContract.pytest_generate_tests

    def layout(self, case: CatchUpAndSelectCase) -> RowLayout:
        """Where the parts of the case's rows lie."""
        return RowLayout.resolve(case.latent_dim, case.groups, case.top, case.form)

    def inputs(self, case: CatchUpAndSelectCase, dtype: torch.dtype = torch.float32) -> Inputs:
        """Every argument by name, on the CPU, with `weight_decay` and `lr` of the steps so far."""
        layout = self.layout(case)
        table = RowAdamCase(
            case.num_data,
            case.batch,
            layout.width,
            case.steps,
            weight_decay=case.weight_decay,
            bfloat16=case.bfloat16,
        )
        state = RowAdamContract().inputs("row_adam_catch_up", table, dtype)
        generator = torch.Generator().manual_seed(case.batch)
        state["index"] = torch.randperm(case.num_data, generator=generator)[: case.batch]
        if case.ties:
            coefficients = state["rows"][:, : layout.deviation_offset]
            coefficients.copy_((2 * coefficients).round().clamp(-2, 2) / 2)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name][:, : layout.deviation_offset] = 0
        return state | {
            "latent_dim": case.latent_dim,
            "groups": list(layout.groups),
            "kept": list(layout.kept),
            "order": None,
            "position": None,
            "key_index": state["index"] + 2**33 if case.keyed else None,
        }

    def in_a_ring(self, inputs: Inputs) -> Inputs:
        """The same batch, which is row 1 of three of an `order`, and not in `index` yet."""
        index = inputs["index"]
        order = torch.zeros((3, len(index) + 2), dtype=torch.int64)
        order[1, : len(index)] = index
        unknown = torch.full_like(index, -1)
        return inputs | {"index": unknown, "order": order, "position": torch.tensor([1])}

    def arguments(self, function: str, case: CatchUpAndSelectCase) -> tuple[Any, ...]:
        """float32 arguments of `function`, which is `catch_up_and_select`, by position."""
        inputs = self.in_a_ring(self.inputs(case)) if case.ring else self.inputs(case)
        return tuple(inputs[name] for name in ARGUMENTS)

    def call(self, implementation: Implementation, inputs: Inputs) -> dict[str, Tensor]:
        """Runs it on copies: the bits, and the tables it wrote, by name, on the CPU."""
        own = self._run(implementation, inputs)
        return {name: own[name].cpu() for name in (*WRITTEN, "bits")}

    def _run(self, implementation: Implementation, inputs: Inputs) -> dict[str, Any]:
        own = {
            name: inputs[name].to(implementation.device, copy=name in (*WRITTEN, "index"))
            if isinstance(inputs[name], Tensor)
            else inputs[name]
            for name in ARGUMENTS
        }
        return own | {"bits": implementation.namespace.catch_up_and_select(*own.values())}

    def test_rows_are_caught_up_as_the_reference_does_it(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        last = [inputs[name] for name in ("latent_dim", "groups", "kept")]

        def row_adam_catch_up(*arguments: Any) -> None:
            *own, keys = arguments
            implementation.namespace.catch_up_and_select(*own, *last, key_index=keys)

        caught_up = SimpleNamespace(row_adam_catch_up=row_adam_catch_up)
        op = Implementation(implementation.name, caught_up, implementation.device)
        RowAdamContract().check(op, "row_adam_catch_up", inputs)

    def test_bits_are_the_selection_of_the_rows_that_are_left(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        got = self.call(implementation, inputs)
        marks = reference.selected(got["rows"][inputs["index"]], self.layout(case))
        words = [reference.pack_bits(mark) for mark in marks]
        empty = torch.empty((case.batch, 0), dtype=torch.int32)
        assert torch.equal(got["bits"], torch.cat([*words, empty], 1))

    def test_a_batch_is_taken_from_its_place_in_a_ring(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        ring = self.in_a_ring(inputs)
        assert_bit_equal(self.call(implementation, ring), self.call(implementation, inputs))
        assert torch.equal(self._run(implementation, ring)["index"].cpu(), inputs["index"])

    def test_runs_are_bit_equal_whatever_memory_holds(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        expected = self.call(implementation, inputs)
        with poisoned_memory():
            assert_bit_equal(self.call(implementation, inputs), expected)
