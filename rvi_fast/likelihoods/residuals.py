"""Which laws have a scale that is the root mean square of residuals."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .gaussian import GaussianLikelihood
from .mixed import Mixed


def residual_scales(law: Any, observed: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Each learned log s of Gaussian columns, and how many entries of a row it is about on average.

    Other laws have no such scale, or one that residuals do not give in closed form.

    Args:
        law: the law of all columns.
        observed: share of the rows in which each column is observed, [D].
    """
    if isinstance(law, Mixed):
        parts = zip(law.parts, law.columns_of_parts, strict=True)
        return [pair for part, own in parts for pair in residual_scales(part, observed[own])]
    if type(law) is not GaussianLikelihood:
        return []
    log_scale = law.log_scale
    if not isinstance(log_scale, nn.Parameter) or not log_scale.requires_grad:
        return []
    count = observed if log_scale.dim() else observed.sum()
    return [(log_scale, count.to(log_scale))]
