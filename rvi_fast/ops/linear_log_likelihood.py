"""`linear_log_likelihood`: schemas, fakes, autograd and the door for the layer above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import reference
from .autograd import apply, first_order, forward_mode, without_autocast
from .log_likelihood import LogLikelihoodBackward
from .table import defined, ops

_LINEAR = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor x, Tensor? scale, Tensor? mask, str law"
)


@defined("linear_log_likelihood_fwd", f"({_LINEAR}) -> Tensor")
def _(hidden, weight, bias, x, scale, mask, law):
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    return hidden.new_empty(hidden.shape[:2], dtype=dtype)


@defined(
    "linear_log_likelihood_bwd",
    f"(Tensor grad_log_prob, {_LINEAR}, bool need_hidden, "
    "bool need_linear, bool need_scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _(grad, hidden, weight, bias, x, scale, mask, law, need_hidden, need_linear, need_scale):
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
    some_bias = weight if bias is None else bias
    return (
        hidden.new_empty(hidden.shape[:2], dtype=dtype),
        hidden.new_empty(hidden.shape if need_hidden else 0),
        weight.new_empty(weight.shape if need_linear else 0),
        some_bias.new_empty(bias.shape if need_linear and bias is not None else 0),
        hidden.new_empty(0, dtype=dtype)
        if scale is None
        else scale.new_empty(scale.shape if need_scale else 0),
    )


class _LinearLogLikelihood(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(hidden, weight, bias, x, scale, mask, law):
        return ops.linear_log_likelihood_fwd(hidden, weight, bias, x, scale, mask, law)

    @staticmethod
    def setup_context(ctx, inputs, result):
        ctx.save_for_backward(*inputs[:6])
        ctx.law = inputs[6]

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias, x, scale, mask = ctx.saved_tensors
        need_hidden, need_weight, need_bias, need_x, need_scale, *_ = ctx.needs_input_grad
        grads = [None] * 4
        if need_hidden or need_weight or need_bias or need_scale:
            needs = need_hidden, need_weight or need_bias, need_scale
            _, *grads = first_order(
                _LinearLogLikelihoodBackward, grad, *ctx.saved_tensors, ctx.law, *needs
            )
        grad_x = None
        if need_x:  # of the size of x: the one gradient that takes the outputs as a whole
            with without_autocast(hidden.device.type):
                output = reference.linear_output(hidden, weight, bias)
            grad_output, _ = first_order(
                LogLikelihoodBackward, grad, x, output, scale, mask, ctx.law, True, False
            )
            grad_x = reference.grad_x(grad, grad_output, x, output, mask, ctx.law)
        grad_hidden, grad_weight, grad_bias, grad_scale = grads
        return (
            grad_hidden if need_hidden else None,
            grad_weight if need_weight else None,
            grad_bias if need_bias else None,
            grad_x,
            grad_scale if need_scale else None,
            None,
            None,
        )


class _LinearLogLikelihoodBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad, hidden, weight, bias, x, scale, mask, law, need_hidden, need_linear, need_scale
    ):
        return ops.linear_log_likelihood_bwd(
            grad, hidden, weight, bias, x, scale, mask, law, need_hidden, need_linear, need_scale
        )

    @staticmethod
    def setup_context(ctx, inputs, result):
        ctx.save_for_backward(*inputs[:7])
        ctx.constants = inputs[7:]

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors
        wanted = [position for position, need in enumerate(ctx.needs_input_grad[:7]) if need]

        def gradients(*some: Tensor) -> Any:
            inputs = dict(enumerate(saved)) | dict(zip(wanted, some, strict=True))
            return reference.linear_log_likelihood_bwd(*inputs.values(), *ctx.constants)

        _, pullback = torch.func.vjp(gradients, *(saved[position] for position in wanted))
        found = dict(zip(wanted, pullback(grads), strict=True))
        return *(found.get(position) for position in range(7)), *[None] * 4


def linear_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> Tensor:
    """[S, B] from hidden [S, B, H]; arguments checked by the caller."""
    if forward_mode():
        with without_autocast(hidden.device.type):
            return reference.linear_log_likelihood(hidden, weight, bias, x, scale, mask, law)
    return apply(_LinearLogLikelihood, hidden, weight, bias, x, scale, mask, law)
