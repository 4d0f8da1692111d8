"""What the kernels of both Adams share."""

from __future__ import annotations

import math

import triton
import triton.language as tl

LEAST_NORMAL = tl.constexpr(2.0**-126)


@triton.jit
def one_minus_exp(x, TERMS: tl.constexpr):
    """1 - exp(x) for x <= 0, to rounding also where exp(x) is close to 1.

    Above -1/2 it is -x (1 + x/2 (1 + x/3 (...))); TERMS = 9 is enough for float32, 16 for float64.
    """
    near = tl.maximum(x, -0.5)
    series = near * 0.0 + 1.0
    for n in tl.static_range(TERMS, 1, -1):
        series = 1.0 + series * near * (1.0 / n)
    return tl.where(x > -0.5, -near * series, 1.0 - tl.exp(x))


@triton.jit
def flushed(moment):
    return tl.where(tl.abs(moment) < LEAST_NORMAL, 0.0, moment)


def logarithm(beta: float) -> float:
    # a power of 0 is exp of this many times its exponent, and no NaN where that is 0
    return math.log(beta) if beta > 0 else -1e6
