"""Cases and contract of `log_likelihood`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import reference
from ..reference.laws import LAWS
from .contract import Inputs, OpContract

# of each law beside the Gaussian the kinds of scale that its cases have
OTHER_LAWS = {
    law: ("scalar", "feature", "entry") if terms.scaled else ("none",) * 3
    for law, terms in LAWS.items()
    if law != "gaussian"
}


@dataclass(frozen=True)
class LogLikelihoodCase:
    """Shapes and kinds of one call of `log_likelihood`.

    `scale` names the shape: "scalar", "one" [1], "feature" [D], "entry" [B, D] or "none";
    `x_dtype` None is the dtype of the output; without a mask NaN marks what is missing. `packed` gives
    the mask's bits.
    """

    batch: int
    num_features: int
    num_samples: int = 1
    scale: str = "scalar"
    masked: bool = False
    x_dtype: torch.dtype | None = None
    packed: bool = False
    law: str = "gaussian"

    def __str__(self) -> str:
        sizes = f"B{self.batch}-D{self.num_features}-S{self.num_samples}"
        kind = "mean" if self.x_dtype is None else str(self.x_dtype).removeprefix("torch.")
        extras = [word for word in ("masked", "packed") if getattr(self, word)]
        extras += [self.law] * (self.law != "gaussian")
        return "-".join([sizes, self.scale, kind, *extras])


class LogLikelihoodContract(OpContract):
    """What `log_likelihood_fwd` and `log_likelihood_bwd` have to keep."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "log_likelihood_fwd": ("log_prob",),
        "log_likelihood_bwd": ("grad_output", "grad_scale"),
    }
    cases: ClassVar[Sequence[LogLikelihoodCase]] = (
        LogLikelihoodCase(1, 1),
        LogLikelihoodCase(7, 63, 3, "feature"),
        LogLikelihoodCase(63, 7, 1, "entry", masked=True),
        LogLikelihoodCase(63, 1000, 2, "one", True, torch.uint8),
        LogLikelihoodCase(1000, 63, 1, "feature", True, torch.float16),
        LogLikelihoodCase(7, 1000, 1, "entry", x_dtype=torch.bfloat16),
        LogLikelihoodCase(63, 63, 2, "scalar", True, torch.float64),
        LogLikelihoodCase(0, 7, 2, "feature"),
        LogLikelihoodCase(7, 63, 2, "feature", True, torch.uint8, packed=True),
        LogLikelihoodCase(63, 1000, 1, "entry", True, packed=True),
        LogLikelihoodCase(1000, 33, 1, "scalar", True, torch.bfloat16, packed=True),
        *(
            case
            for law, (first, second, third) in OTHER_LAWS.items()
            for case in (
                LogLikelihoodCase(1, 1, scale=first, law=law),
                LogLikelihoodCase(7, 63, 3, second, True, torch.uint8, packed=True, law=law),
                LogLikelihoodCase(63, 1000, 2, third, masked=True, law=law),
            )
        ),
    )

    def inputs(self, function: str, case: LogLikelihoodCase, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator().manual_seed(case.num_features)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        batch = (case.batch, case.num_features)
        observed = torch.rand(batch, generator=generator) < 0.7
        if case.batch > 1:
            observed[0] = False
        x = normal(*batch)
        if case.scale == "none":  # zeros and ones, which are data of every such law
            x = (x > 0).to(dtype)
        if case.x_dtype == torch.uint8:
            x = torch.randint(256, batch, generator=generator, dtype=torch.uint8)
        elif case.x_dtype is not None:
            x = x.to(case.x_dtype)
        mask = reference.pack_bits(observed) if case.packed else observed
        shapes = {"scalar": (), "one": (1,), "feature": batch[1:], "entry": batch}
        return {
            "x": x if case.masked else torch.where(observed, x, torch.nan),
            "output": normal(case.num_samples, *batch),
            "scale": None if case.scale == "none" else normal(*shapes[case.scale]).abs() + 0.3,
            "mask": mask if case.masked else None,
            "grad_log_prob": normal(case.num_samples, case.batch),
            "law": case.law,
            "need_output": True,
            "need_scale": True,
        }
