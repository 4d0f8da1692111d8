"""`log_likelihood`: schemas, fakes, autograd and the door for the layer above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import reference
from .autograd import apply, first_order, forward_mode
from .table import defined, ops


@defined(
    "log_likelihood_fwd",
    "(Tensor x, Tensor output, Tensor? scale, Tensor? mask, str law) -> Tensor",
)
def _(x, output, scale, mask, law):
    return output.new_empty(
        output.shape[:2], dtype=torch.promote_types(output.dtype, torch.float32)
    )


@defined(
    "log_likelihood_bwd",
    "(Tensor grad_log_prob, Tensor x, Tensor output, Tensor? scale, Tensor? mask, str law, "
    "bool need_output, bool need_scale) -> (Tensor, Tensor)",
)
def _(grad_log_prob, x, output, scale, mask, law, need_output, need_scale):
    grad_output = output.new_empty(output.shape if need_output else 0)
    if scale is None:
        return grad_output, output.new_empty(0)
    return grad_output, scale.new_empty(scale.shape if need_scale else 0)


class _LogLikelihood(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, output, scale, mask, law):
        return ops.log_likelihood_fwd(x, output, scale, mask, law)

    @staticmethod
    def setup_context(ctx, inputs, result):
        ctx.save_for_backward(*inputs[:4])
        ctx.law = inputs[4]

    @staticmethod
    def backward(ctx, grad):
        x, output, _, mask = ctx.saved_tensors
        need_x, need_output, need_scale, *_ = ctx.needs_input_grad
        grad_output, grad_scale = first_order(
            LogLikelihoodBackward,
            grad,
            *ctx.saved_tensors,
            ctx.law,
            need_x or need_output,
            need_scale,
        )
        return (
            reference.grad_x(grad, grad_output, x, output, mask, ctx.law) if need_x else None,
            grad_output if need_output else None,
            grad_scale if need_scale else None,
            None,
            None,
        )


class LogLikelihoodBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, output, scale, mask, law, need_output, need_scale):
        return ops.log_likelihood_bwd(grad, x, output, scale, mask, law, need_output, need_scale)

    @staticmethod
    def setup_context(ctx, inputs, result):
        ctx.save_for_backward(*inputs[:5])
        ctx.constants = inputs[5:]

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors
        wanted = [position for position, need in enumerate(ctx.needs_input_grad[:5]) if need]

        def gradients(*some: Tensor) -> Any:
            inputs = dict(enumerate(saved)) | dict(zip(wanted, some, strict=True))
            return reference.log_likelihood_bwd(*inputs.values(), *ctx.constants)

        _, pullback = torch.func.vjp(gradients, *(saved[position] for position in wanted))
        found = dict(zip(wanted, pullback(grads), strict=True))
        return *(found.get(position) for position in range(5)), *[None] * 3


def log_likelihood(
    x: Tensor, output: Tensor, scale: Tensor | None, mask: Tensor | None, law: str
) -> Tensor:
    """[S, B] from output [S, B, D]; arguments checked by the caller."""
    if forward_mode():
        return reference.log_likelihood(x, output, scale, mask, law)
    return apply(_LogLikelihood, x, output, scale, mask, law)
