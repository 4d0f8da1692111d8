"""Cases and contract of `linear_log_likelihood`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .contract import Inputs
from .log_likelihood import OTHER_LAWS, LogLikelihoodCase, LogLikelihoodContract


@dataclass(frozen=True)
class LinearLogLikelihoodCase(LogLikelihoodCase):
    """The same for `linear_log_likelihood`; `x_dtype` None is the dtype of the layer."""

    hidden_dim: int = 16
    bias: bool = True

    def __str__(self) -> str:
        return f"{super().__str__()}-H{self.hidden_dim}{'-bias' * self.bias}"


class LinearLogLikelihoodContract(LogLikelihoodContract):
    """What `linear_log_likelihood_fwd` and its `_bwd` have to keep."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "linear_log_likelihood_fwd": ("log_prob",),
        "linear_log_likelihood_bwd": (
            "log_prob",
            "grad_hidden",
            "grad_weight",
            "grad_bias",
            "grad_scale",
        ),
    }
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"need_linear": ("grad_weight", "grad_bias")}
    cases: ClassVar[Sequence[LinearLogLikelihoodCase]] = (
        LinearLogLikelihoodCase(1, 1, hidden_dim=1),
        LinearLogLikelihoodCase(7, 63, 3, "feature", hidden_dim=7),
        LinearLogLikelihoodCase(63, 7, 1, "entry", True, hidden_dim=63, bias=False),
        LinearLogLikelihoodCase(63, 100, 2, "one", True, torch.uint8, hidden_dim=64),
        LinearLogLikelihoodCase(1000, 63, 1, "feature", True, torch.float16, hidden_dim=5),
        LinearLogLikelihoodCase(70, 130, 2, "entry", x_dtype=torch.bfloat16, hidden_dim=33),
        LinearLogLikelihoodCase(33, 65, 1, "scalar", True, torch.float64, hidden_dim=200),
        LinearLogLikelihoodCase(300, 40, 1, "scalar", hidden_dim=17, bias=False),
        LinearLogLikelihoodCase(0, 7, 2, "feature", hidden_dim=4),
        *(
            case
            for law, (first, second, third) in OTHER_LAWS.items()
            for case in (
                LinearLogLikelihoodCase(7, 63, 3, third, hidden_dim=7, law=law),
                LinearLogLikelihoodCase(33, 65, 1, first, hidden_dim=20, law=law),
                LinearLogLikelihoodCase(
                    63, 100, 2, second, True, torch.uint8, packed=True, law=law, hidden_dim=64
                ),
            )
        ),
    )

    def inputs(self, function: str, case: Any, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator().manual_seed(case.hidden_dim)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        return super().inputs(function, case, dtype) | {
            "hidden": normal(case.num_samples, case.batch, case.hidden_dim),
            "weight": normal(case.num_features, case.hidden_dim) / case.hidden_dim**0.5,
            "bias": normal(case.num_features) if case.bias else None,
            "need_hidden": True,
            "need_linear": True,
        }
