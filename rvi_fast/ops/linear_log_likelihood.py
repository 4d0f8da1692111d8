"""`linear_gaussian_log_likelihood`: schemas, fakes, autograd and the door for the layer above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import reference
from .autograd import apply, first_order, forward_mode
from .log_likelihood import GaussianLogLikelihoodBackward
from .table import defined, ops

_LINEAR = "Tensor hidden, Tensor weight, Tensor? bias, Tensor x, Tensor scale, Tensor? mask"


@defined("linear_gaussian_log_likelihood_fwd", f"({_LINEAR}) -> Tensor")
def _(hidden, weight, bias, x, scale, mask):
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    return hidden.new_empty(hidden.shape[:2], dtype=dtype)


@defined(
    "linear_gaussian_log_likelihood_bwd",
    f"(Tensor grad_log_prob, {_LINEAR}, bool need_hidden, "
    "bool need_linear, bool need_scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _(grad, hidden, weight, bias, x, scale, mask, need_hidden, need_linear, need_scale):
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    some_bias = weight if bias is None else bias
    return (
        hidden.new_empty(hidden.shape[:2], dtype=dtype),
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_linear else 0),
        some_bias.new_empty(bias.shape if need_linear and bias is not None else 0),
        scale.new_empty(scale.shape if need_scale else 0),
    )


class _LinearGaussianLogLikelihood(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(hidden, weight, bias, x, scale, mask):
        return ops.linear_gaussian_log_likelihood_fwd(hidden, weight, bias, x, scale, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias, x, scale, mask = ctx.saved_tensors
        need_hidden, need_weight, need_bias, need_x, need_scale, _ = ctx.needs_input_grad
        grads = [None] * 4
        if need_hidden or need_weight or need_bias or need_scale:
            needs = need_hidden, need_weight or need_bias, need_scale
            _, *grads = first_order(
                _LinearGaussianLogLikelihoodBackward, grad, *ctx.saved_tensors, *needs
            )
        grad_x = None
        if need_x:  # of the size of x: the one gradient that takes the means as a whole
            with torch.autocast(hidden.device.type, enabled=False):
                mean = reference.linear_mean(hidden, weight, bias)
            grad_mean, _ = first_order(
                GaussianLogLikelihoodBackward, grad, x, mean, scale, mask, True, False
            )
            grad_x = -grad_mean.sum(0).to(x.dtype)
        grad_hidden, grad_weight, grad_bias, grad_scale = grads
        return (
            grad_hidden if need_hidden else None,
            grad_weight if need_weight else None,
            grad_bias if need_bias else None,
            grad_x,
            grad_scale if need_scale else None,
            None,
        )


class _LinearGaussianLogLikelihoodBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, hidden, weight, bias, x, scale, mask, need_hidden, need_linear, need_scale):
        return ops.linear_gaussian_log_likelihood_bwd(
            grad, hidden, weight, bias, x, scale, mask, need_hidden, need_linear, need_scale
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:7])
        ctx.constants = inputs[7:]

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors
        wanted = [position for position, need in enumerate(ctx.needs_input_grad[:7]) if need]

        def gradients(*some: Tensor) -> Any:
            inputs = dict(enumerate(saved)) | dict(zip(wanted, some, strict=True))
            return reference.linear_gaussian_log_likelihood_bwd(*inputs.values(), *ctx.constants)

        _, pullback = torch.func.vjp(gradients, *(saved[position] for position in wanted))
        found = dict(zip(wanted, pullback(grads), strict=True))
        return *(found.get(position) for position in range(7)), *[None] * 3


def linear_gaussian_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """[S, B] from hidden [S, B, H]; arguments checked by the caller."""
    if forward_mode():
        with torch.autocast(hidden.device.type, enabled=False):
            return reference.linear_gaussian_log_likelihood(hidden, weight, bias, x, scale, mask)
    return apply(_LinearGaussianLogLikelihood, hidden, weight, bias, x, scale, mask)
