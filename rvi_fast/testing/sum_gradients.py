"""Contract of `sum_gradients`, which several processes launch before they sum gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..reference import fused_step
from .compare import assert_bit_equal
from .contract import Inputs
from .finish_step import FinishStepContract
from .inputs import Implementation


class SumGradientsContract(FinishStepContract):
    """What `sum_gradients` has to keep, of whatever namespace has it and `finish_step`."""

    implementations: ClassVar[Sequence[Implementation]] = (Implementation("reference", fused_step),)
    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {"sum_gradients": ()}

    def arguments(self, function: str, case: Any) -> tuple[Any, ...]:
        """float32 arguments of `sum_gradients`, by position."""
        inputs = self.inputs(case)
        return inputs["grads"], inputs["parts"]

    def call(self, implementation: Implementation, inputs: Inputs) -> dict[str, Tensor]:
        """Runs it on copies: the first piece, on the CPU."""
        grads, parts = (
            inputs[name].to(implementation.device, copy=True) for name in ("grads", "parts")
        )
        implementation.namespace.sum_gradients(grads, parts)
        return {"gradient": grads[0].cpu()}

    def test_a_step_from_the_sum_is_that_from_its_pieces(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        whole = inputs["grads"].clone()
        whole[0] = self.call(implementation, inputs)["gradient"]
        own = inputs | {"grads": whole, "parts": torch.ones_like(inputs["parts"])}
        expected, got = (
            super(SumGradientsContract, self).call(implementation, v) for v in (inputs, own)
        )
        assert_bit_equal(got, expected)
