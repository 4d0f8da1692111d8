"""Cases and contract of `adam_step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .contract import Inputs, OpContract


@dataclass(frozen=True)
class AdamStepCase:
    """Parameters [P] after `steps` steps, and one more with a gradient in `num_parts` parts."""

    size: int
    num_parts: int = 1
    steps: int = 3
    beta1: float = 0.9
    weight_decay: float = 0.0

    def __str__(self) -> str:
        sizes = f"P{self.size}-n{self.num_parts}"
        return f"{sizes}-after{self.steps}-beta{self.beta1}-decay{self.weight_decay}"


class AdamStepContract(OpContract):
    """What an implementation of `adam_step` has to keep."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {"adam_step": ()}
    cases: ClassVar[Sequence[AdamStepCase]] = (
        AdamStepCase(1),
        AdamStepCase(63, 7, weight_decay=0.1),
        AdamStepCase(1000, 2, steps=0),
        AdamStepCase(2049, 63, steps=1000),
        AdamStepCase(7, 1, beta1=0.0),
        AdamStepCase(63, 0),
        AdamStepCase(0, 3),
    )

    def inputs(self, function: str, case: AdamStepCase, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator().manual_seed(case.size)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        moments = (0.1 * normal(case.size), 0.01 * normal(case.size).square())
        if case.steps == 0:
            moments = (torch.zeros_like(moments[0]), torch.zeros_like(moments[1]))
        return {
            "params": normal(case.size),
            "exp_avg": moments[0],
            "exp_avg_sq": moments[1],
            "grads": normal(case.num_parts, case.size),
            "step": torch.tensor([case.steps]),
            "lr": torch.tensor(0.01, dtype=torch.float64),
            "beta1": case.beta1,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": case.weight_decay,
        }
