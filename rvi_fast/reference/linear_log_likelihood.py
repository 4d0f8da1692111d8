"""Log-likelihoods around the output of a linear layer."""

from __future__ import annotations

from torch import Tensor

from .._op_checks import checked
from ._common import compute_dtype
from .log_likelihood import log_likelihood, log_likelihood_bwd


def linear_gaussian_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Gaussian log-likelihood under a linear layer: mean_bd = sum_h hidden_bh W_dh + bias_d.

    Args and returns: `rvi_fast.linear_gaussian_log_likelihood`.
    """
    return linear_log_likelihood(hidden, weight, bias, x, scale, mask, "gaussian")


def linear_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> Tensor:
    """`log_likelihood` given the output of a linear layer: output_bd = sum_h hidden_bh W_dh + bias_d."""
    return log_likelihood(x, linear_output(hidden, weight, bias), scale, mask, law)


def linear_output(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden @ weight.T + bias, at least in float32."""
    dtype = compute_dtype(hidden, weight)
    output = hidden.to(dtype) @ weight.to(dtype).mT
    return output if bias is None else output + bias.to(dtype)


@checked
def linear_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> Tensor:
    """Log-likelihood [S, B] from hidden [S, B, H], weight [D, H], bias [D] and x [B, D]."""
    return linear_log_likelihood(hidden, weight, bias, x, scale, mask, law)


@checked
def linear_log_likelihood_bwd(
    grad_log_prob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
    need_hidden: bool,
    need_linear: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-likelihood [S, B] and gradients of hidden, weight, bias and scale, each in its own shape.

    One not needed, or of a bias or scale that is None, has 0 elements. With grad_output [S, B, D] and
    grad_scale of `log_likelihood_bwd`:

        grad_hidden = grad_output W,   grad_W = sum_sb grad_output_sb hidden_sb^T,
        grad_bias = sum_sb grad_output_sb
    """
    output = linear_output(hidden, weight, bias)
    log_prob = log_likelihood(x, output, scale, mask, law)
    grad_output, grad_scale = log_likelihood_bwd(
        grad_log_prob, x, output, scale, mask, law, need_hidden or need_linear, need_scale
    )
    grad_hidden, grad_weight = hidden.new_empty(0), weight.new_empty(0)
    grad_bias = weight.new_empty(0) if bias is None else bias.new_empty(0)
    if need_hidden:
        grad_hidden = (grad_output @ weight.to(output.dtype)).to(hidden.dtype)
    if need_linear:
        products = grad_output.flatten(0, 1).mT @ hidden.to(output.dtype).flatten(0, 1)
        grad_weight = products.to(weight.dtype)
        if bias is not None:
            grad_bias = grad_output.sum((0, 1)).to(bias.dtype)
    return log_prob, grad_hidden, grad_weight, grad_bias, grad_scale
