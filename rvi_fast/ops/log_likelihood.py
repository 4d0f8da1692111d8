"""`gaussian_log_likelihood`: schemas, fakes, autograd and the door for the layer above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import reference
from .autograd import apply, first_order, forward_mode
from .table import defined, ops


@defined(
    "gaussian_log_likelihood_fwd",
    "(Tensor x, Tensor mean, Tensor scale, Tensor? mask) -> Tensor",
)
def _(x, mean, scale, mask):
    return mean.new_empty(mean.shape[:2], dtype=torch.promote_types(mean.dtype, torch.float32))


@defined(
    "gaussian_log_likelihood_bwd",
    "(Tensor grad_log_prob, Tensor x, Tensor mean, Tensor scale, "
    "Tensor? mask, bool need_mean, bool need_scale) -> (Tensor, Tensor)",
)
def _(grad_log_prob, x, mean, scale, mask, need_mean, need_scale):
    return mean.new_empty(mean.shape if need_mean else 0), scale.new_empty(
        scale.shape if need_scale else 0
    )


class _GaussianLogLikelihood(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mean, scale, mask):
        return ops.gaussian_log_likelihood_fwd(x, mean, scale, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0]
        need_x, need_mean, need_scale, _ = ctx.needs_input_grad
        grad_mean, grad_scale = first_order(
            GaussianLogLikelihoodBackward,
            grad,
            *ctx.saved_tensors,
            need_x or need_mean,
            need_scale,
        )
        return (
            -grad_mean.sum(0).to(x.dtype) if need_x else None,
            grad_mean if need_mean else None,
            grad_scale if need_scale else None,
            None,
        )


class GaussianLogLikelihoodBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad, x, mean, scale, mask, need_mean, need_scale):
        return ops.gaussian_log_likelihood_bwd(grad, x, mean, scale, mask, need_mean, need_scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])
        ctx.constants = inputs[5:]

    @staticmethod
    def backward(ctx, *grads):
        grad, x, mean, scale, mask = ctx.saved_tensors

        def gradients(grad: Tensor, mean: Tensor, scale: Tensor) -> Any:
            return reference.gaussian_log_likelihood_bwd(grad, x, mean, scale, mask, *ctx.constants)

        _, pullback = torch.func.vjp(gradients, grad, mean, scale)
        grad_grad, grad_mean, grad_scale = pullback(grads)
        grad_x = -grad_mean.sum(0).to(x.dtype) if ctx.needs_input_grad[1] else None
        return grad_grad, grad_x, grad_mean, grad_scale, *[None] * 3


def gaussian_log_likelihood(x: Tensor, mean: Tensor, scale: Tensor, mask: Tensor | None) -> Tensor:
    """[S, B] from mean [S, B, D]; arguments checked by the caller."""
    if forward_mode():
        return reference.gaussian_log_likelihood(x, mean, scale, mask)
    return apply(_GaussianLogLikelihood, x, mean, scale, mask)
