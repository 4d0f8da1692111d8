"""Clipping of gradients among which those of rows are sparse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .. import _checks


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` where some gradients are sparse, as those of `rows` are.

    The norm is that of all gradients together, as if they stood in one vector; entries of a sparse
    gradient that name the same row are added up first. Gradients are changed in place.

    Args:
        parameters: those whose gradients are clipped; those without one are passed over.
        max_norm: the norm is at most this afterwards.
        norm_type: p of the p-norm, `math.inf` included.
        error_if_nonfinite: refuse a norm that is NaN or infinite, before anything is changed.

    Returns:
        The norm before, [].

    Raises:
        ValueError, TypeError: `max_norm` or `norm_type` is out of its range.
        RuntimeError: the norm is not finite and `error_if_nonfinite`.

    Example:
        >>> import torch, rvi_fast
        >>> posterior = rvi_fast.RelayPosterior(100, 4, groups=(3,), sparse=True)
        >>> posterior(torch.tensor([3, 1, 3])).kl.sum().mul(1e3).backward()
        >>> norm = rvi_fast.optim.clip_grad_norm_(posterior.parameters(), 1.0)
        >>> bool(norm > 1)
        True
    """
    _checks.check_non_negative("max_norm", max_norm)
    if isinstance(norm_type, bool) or not isinstance(norm_type, int | float) or not norm_type > 0:
        raise ValueError(f"norm_type: expected a number > 0, got {norm_type!r}")
    values = []
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        if (grad := parameter.grad) is None:
            continue
        if grad.is_sparse:
            # the values of a coalesced tensor are its own memory
            parameter.grad = grad = grad.coalesce()
            grad = grad.values()
        values.append(grad)
    return _clip(values, float(max_norm), float(norm_type), error_if_nonfinite)


def _clip(values: list[Tensor], max_norm: float, norm_type: float, strict: bool) -> Tensor:
    if not values:
        return torch.tensor(0.0, device="cpu")
    device = values[0].device
    norms = [torch.linalg.vector_norm(part, norm_type).to(device) for part in values]
    total = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    if strict and not bool(torch.isfinite(total)):
        raise RuntimeError(
            f"parameters: expected gradients of a finite norm, got {float(total)}; nothing was clipped"
        )
    # without waiting for the device; the sum in the denominator is torch's
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for part in values:
        part.mul_(factor.to(part.device))
    return total
