"""Cases and contract of `finish_step`, the last launch of a step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..reference import fused_step
from ..reference.fused_step import SHARED_BLOCK
from ..reference.history import extend_history
from .compare import assert_as_accurate, assert_bit_equal
from .contract import Inputs, OpContract
from .inputs import Implementation, poisoned_memory

# what it writes in place
WRITTEN = ("params", "exp_avg", "exp_avg_sq", "step", "clock", "history", "result", "position")
ARGUMENTS = tuple(inspect.signature(fused_step.finish_step).parameters)


@dataclass(frozen=True)
class FinishStepCase:
    """Shared parameters of `blocks` blocks in `num_groups` groups after `steps` steps.

    A gradient has up to `room` pieces; the log-likelihood of `batch` rows `pieces`.
    """

    blocks: int
    room: int = 8
    num_groups: int = 3
    batch: int = 16
    pieces: int = 2
    steps: int = 12
    beta1: float = 0.9
    weight_decay: float = 0.0
    # where in a ring of four steps the result belongs, and a count of steps for each group
    position: int | None = None
    # whether groups have a weight decay of their own; the first has none
    decays: bool = False

    def __str__(self) -> str:
        sizes = f"P{self.blocks * SHARED_BLOCK}-n{self.room}-G{self.num_groups}"
        extras = f"beta{self.beta1}-decay{self.weight_decay}"
        extras += "" if self.position is None else f"-ring{self.position}"
        extras += "-decays" if self.decays else ""
        return f"{sizes}-B{self.batch}-p{self.pieces}-after{self.steps}-{extras}"


class FinishStepContract:
    """What `finish_step` has to keep, of whatever namespace has it."""

    implementations: ClassVar[Sequence[Implementation]] = (Implementation("reference", fused_step),)
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32,)
    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {"finish_step": ()}
    cases: ClassVar[Sequence[FinishStepCase]] = (
        FinishStepCase(1, 1, 1, 1, 1, steps=0),
        FinishStepCase(70, 8, weight_decay=0.1),
        FinishStepCase(41, 25, 5, 257, 13),
        FinishStepCase(9, 3, 2, 1, 25, beta1=0.0),
        FinishStepCase(5, 1, 5, 5000, 1, steps=300),
        FinishStepCase(0, 2, 0),
        FinishStepCase(70, 8, 3, position=1),
        FinishStepCase(2, 2, 1, position=3),
        FinishStepCase(70, 8, 3, position=1, decays=True),
    )
    pytest_generate_tests = OpContract.pytest_generate_tests

    def inputs(self, case: FinishStepCase, dtype: torch.dtype = torch.float32) -> Inputs:
        """Every argument by name, on the CPU; what stands beyond the pieces is NaN."""
        generator = torch.Generator().manual_seed(case.blocks)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        size = case.blocks * SHARED_BLOCK
        moments = (0.1 * normal(size), 0.01 * normal(size).square())
        if case.steps == 0:
            moments = (torch.zeros_like(moments[0]), torch.zeros_like(moments[1]))
        blocks = (case.blocks,)
        parts = torch.randint(case.room + 1, blocks, generator=generator, dtype=torch.int32)
        group = torch.zeros(blocks, dtype=torch.int32)
        if case.num_groups:
            group = torch.randint(case.num_groups, blocks, generator=generator, dtype=torch.int32)
        if case.blocks > 2:  # parts of one number
            parts[:: case.blocks // 2] = -case.room
        piece = torch.arange(case.room)[:, None]
        absent = (piece >= parts.abs()).repeat_interleave(SHARED_BLOCK, 1)
        clock = torch.zeros(2, dtype=torch.int64)
        history = torch.zeros(case.steps + 2, reference.HISTORY_COLUMNS, dtype=torch.float64)
        row_lr = torch.tensor(0.02, dtype=torch.float64)
        row_betas = (case.beta1, 0.99)
        for _ in range(case.steps):
            clock[0] += 1
            extend_history(history, clock, row_lr, *row_betas, case.weight_decay)
        inputs: Inputs = {
            "params": normal(size),
            "exp_avg": moments[0],
            "exp_avg_sq": moments[1],
            "grads": normal(case.room, size).masked_fill(absent, torch.nan),
            "parts": parts,
            "group": group,
            "step": torch.tensor([case.steps]),
            "position": None,
            "lr": 0.01 * (1.0 + torch.arange(case.num_groups, dtype=torch.float64)),
            "beta1": case.beta1,
            "beta2": 0.999,
            "eps": 1e-8,
            "clock": clock,
            "history": history,
            "row_lr": row_lr,
            "row_beta1": row_betas[0],
            "row_beta2": row_betas[1],
            "row_weight_decay": case.weight_decay,
            "log_prob": normal(case.pieces, case.batch) - 30.0,
            "kl": normal(case.batch).square(),
            "kl_weight": torch.tensor([0.3], dtype=dtype),
            "result": torch.full((3,), torch.nan, dtype=dtype),
            "weight_decay": None,
        }
        if case.decays:
            inputs["weight_decay"] = 5.0 * torch.arange(case.num_groups, dtype=torch.float64)
        if case.position is not None:
            inputs["step"] = inputs["step"].repeat(case.num_groups)
            inputs["position"] = torch.tensor([case.position])
            inputs["result"] = normal(4, 3)
        return {name: inputs[name] for name in ARGUMENTS}

    def arguments(self, function: str, case: FinishStepCase) -> tuple[Any, ...]:
        """float32 arguments of `function`, which is `finish_step`, by position."""
        return tuple(self.inputs(case).values())

    def call(self, implementation: Implementation, inputs: Inputs) -> dict[str, Tensor]:
        """Runs it on copies: what it wrote in place, by name, on the CPU."""
        own = {
            name: value.to(implementation.device, copy=True) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        implementation.namespace.finish_step(*own.values())
        return {name: own[name].cpu() for name in WRITTEN if own[name] is not None}

    def check(self, implementation: Implementation, inputs: Inputs) -> None:
        """Compares a call with the reference in float64; the history is float64 in both."""
        double = {
            name: value.double()
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in inputs.items()
        }
        definition = Implementation("reference", fused_step)
        yardstick, exact = (self.call(definition, values) for values in (inputs, double))
        got = self.call(implementation, inputs)
        for name in exact:
            assert_as_accurate(name, got[name], exact[name], yardstick[name])

    def test_results_equal_the_reference(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        self.check(implementation, self.inputs(case, dtype))

    def test_runs_are_bit_equal_whatever_memory_holds(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        expected = self.call(implementation, inputs)
        with poisoned_memory():
            assert_bit_equal(self.call(implementation, inputs), expected)
