"""What the kernels of both Adams share."""

from __future__ import annotations

import math

import triton
import triton.language as tl

# one program, in the upper half of the step
PROGRAM = tl.constexpr(1 << 32)
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


@triton.jit
def bias_corrections(step, log_beta1, log_beta2):
    """1 - beta1 ** step and 1 - beta2 ** step, float32."""
    steps = step.to(tl.float64)
    return (
        one_minus_exp((steps * log_beta1).to(tl.float32), 9),
        one_minus_exp((steps * log_beta2).to(tl.float32), 9),
    )


@triton.jit
def stepped(theta, moment, square, grad, lr, decay, corrections, beta2, rest1, rest2, eps):
    """Parameters and moments after a step of Adam, all float32 but `lr`."""
    correction1, correction2 = corrections
    moment = flushed(moment + (grad - moment) * rest1)
    square = flushed(square * beta2 + grad * grad * rest2)
    denominator = tl.sqrt(square) / tl.sqrt(correction2) + eps
    theta = theta * decay - lr.to(tl.float32) / correction1 * moment / denominator
    return theta, moment, square


@triton.jit
def count_program(step_ptr):
    """The step to be taken, and how many programs have asked before: `step_ptr` counts both."""
    before = tl.atomic_add(step_ptr, tl.full((), PROGRAM, tl.int64), sem="relaxed")
    return (before & (PROGRAM - 1)) + 1, before // PROGRAM


def logarithm(beta: float) -> float:
    # a power of 0 is exp of this many times its exponent, and no NaN where that is 0
    return math.log(beta) if beta > 0 else -1e6
