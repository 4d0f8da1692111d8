"""What the laws of an entry compute, for the walks of `log_likelihood` and `linear_log_likelihood`.

Math:
    gaussian    entry -1/2 u^2 - log s - 1/2 log 2 pi,   residual u = (x - o) / s;   slope u;
                factor g / s;   scale_term u^2 - 1
    bernoulli   entry x o - log(1 + exp(o)), o the logit;   residual and slope x - 1 / (1 + exp(-o));
                factor g
    laplace     entry -|u| - log s - log 2, residual u as above;   slope sign u, 0 at the kink;
                factor g / s;   scale_term |u| - 1
    The gradient by the output o is slope times factor, that by s is scale_term times factor.

Shapes:
    Tiles of values x, outputs o and scales s, or log s, in float32, which broadcast to one another;
    `grad` is g, the gradient of the row's log-likelihood. A walk passes the name of the law as LAW, and
    leaves out itself what is not observed.
"""

from __future__ import annotations

import triton
import triton.language as tl

HALF_LOG_TWO_PI = tl.constexpr(0.9189385332046727)
LOG_TWO = tl.constexpr(0.6931471805599453)


@triton.jit
def residual(values, output, scale, LAW: tl.constexpr, INVERTED: tl.constexpr):
    """What all else is computed from; INVERTED where `scale` is 1 / s."""
    if LAW == "bernoulli":
        return values - tl.sigmoid(output)
    elif INVERTED:
        return (values - output) * scale
    else:
        return (values - output) / scale


@triton.jit
def slope(apart, LAW: tl.constexpr):
    """The derivative by the output given the residual, but for `factor`."""
    if LAW == "laplace":
        return tl.where(apart < 0.0, -1.0, tl.where(apart > 0.0, 1.0, apart))
    else:
        return apart


@triton.jit
def factor(grad, scale, LAW: tl.constexpr, INVERTED: tl.constexpr):
    """What slope and scale_term are multiplied with."""
    if LAW == "bernoulli":
        return grad
    elif INVERTED:
        return grad * scale
    else:
        return grad / scale


@triton.jit
def entry(values, output, log_scale, apart, LAW: tl.constexpr):
    """What an entry adds to the log-likelihood, given its residual."""
    if LAW == "bernoulli":
        # the larger exponent is taken out, so that none overflows
        softplus = tl.maximum(output, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(output)))
        return values * output - softplus
    elif LAW == "laplace":
        return -tl.abs(apart) - (log_scale + LOG_TWO)
    else:
        tl.static_assert(LAW == "gaussian")
        return -0.5 * apart * apart - (log_scale + HALF_LOG_TWO_PI)


@triton.jit
def scale_term(apart, LAW: tl.constexpr):
    """The derivative by the scale given the residual, but for `factor`."""
    if LAW == "laplace":
        return tl.abs(apart) - 1.0
    else:
        tl.static_assert(LAW == "gaussian")
        return apart * apart - 1.0
