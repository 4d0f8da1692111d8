"""How the differentiable ops are called under autograd, transforms and the compiler.

A backward is a Function of its own, so that torch.func can differentiate through it; second derivatives
differentiate the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function, forward_ad


def plain() -> bool:
    """No functorch transform and no compiler at work: the short ways below are open."""
    return not (torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling())


def forward_mode() -> bool:
    """Whether forward-mode derivatives are at work, of torch.func or `torch.autograd.forward_ad`.

    The differentiable ops are then the formulas of the reference, which torch differentiates in every
    mode and order: a `Function` with a `jvp` is what the compiler refuses.
    """
    return forward_ad._current_level >= 0


def apply(function: type[Function], *args: Any) -> Any:
    # `Function.apply` inspects the signature of `forward` at every call, which takes longer than
    # the kernels need for a small batch, and only functorch makes use of it
    owner: Any = super(Function, function) if plain() else function
    return owner.apply(*args)


def first_order(function: type[Function], *args: Any) -> Any:
    # without a second derivative to come, the gradient needs no node of its own
    if plain() and not torch.is_grad_enabled():
        return function.forward(*args)
    return apply(function, *args)
