"""What several kernels share: selection, noise, row numbers, sums over pieces, tiles.

The functions under `triton.jit` work on blocks: rows of the batch along the first axis, [BLOCK_B, 1]
where they have one number each.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from .._devices import rehearsal, rehearsing

# rows of the batch in one program: the least that a tensor core takes, and all that leaves enough
# registers for the split operands of the products
BLOCK_B = 16
# elements and pieces that one program of the reduction reads at a time
REDUCED_ELEMENTS, REDUCED_PIECES = 64, 32
# threads that have kernels compiled take turns
_COMPILING = threading.Lock()
# bits of infinity; every NaN is given the next number
INFINITY_KEY = tl.constexpr(0x7F800000)


@functools.cache
def row_error(device: torch.device) -> Tensor:
    """int32 [1] on the device, 0 until a kernel has met a row number outside its table.

    Made at the first use on a device, which must not be within the capture of a CUDA graph: each
    replay would set it back to 0.
    """
    return torch.zeros(1, dtype=torch.int32, device=device)


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., Any]:
    """What launches a kernel, or compiles it alone, see `compiling`."""
    return functools.partial(kernel.warmup, grid=grid) if rehearsing() else kernel[grid]


@contextmanager
def compiling() -> Iterator[list[Future[Any]]]:
    """Within it launches of this thread are compiled side by side and none runs; it ends with the last.

    Gives what is being compiled, of which kernels that lie in Triton's cache are ready at once.

    Raises:
        triton.CompilationError, and what else their launch would raise.
    """
    with _COMPILING, _parsing_in_turn(), ThreadPoolExecutor() as pool:
        # left by an error this mode of Triton would stay active: what went wrong is raised behind it
        with triton.AsyncCompileMode(pool, ignore_errors=True) as mode, rehearsal():
            yield mode.raw_futures
        for future in mode.raw_futures:
            future.result()


@contextmanager
def _parsing_in_turn() -> Iterator[None]:
    """Within it one thread at a time makes a syntax tree of a kernel.

    Python 3.11 counts the depth of `ast.parse` for all threads together, and one that another interrupts
    takes its depth for an error: "SystemError: AST constructor recursion depth mismatch".
    """
    parse, turn = JITFunction.parse, threading.Lock()

    def parse_in_turn(function: Any) -> Any:
        with turn:
            return parse(function)

    JITFunction.parse = parse_in_turn
    try:
        yield
    finally:
        JITFunction.parse = parse


def input_precision() -> str:
    """How the tensor cores multiply float32, after `torch.get_float32_matmul_precision()`.

    "highest" is as accurate as float32 (tf32x3: errors of 8e-8), "high" about 4e-6 at half the cost.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":  # multiplies in float32, whatever it is told
        return "tf32x3"
    precision = {"highest": "tf32x3", "high": "bf16x3", "medium": "tf32"}
    return precision[torch.get_float32_matmul_precision()]


def multiplies_in_groups() -> bool:
    """Whether the current device has products of four warps (wgmma: sm_90 alone)."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return False
    try:
        driver = triton.runtime.driver.active
    except RuntimeError:
        # no GPU: nothing is launched, but memory may be estimated, of which these take more
        return True
    return _architecture(driver.get_current_device()) == 90


@functools.cache
def _architecture(device: int) -> int:
    """That of the current device, by its number."""
    return triton.runtime.driver.active.get_current_target().arch


def block_of(size: int, least: int = 16) -> int:
    """The power of two, at least `least`, that covers `size`."""
    return max(least, triton.next_power_of_2(size))


# Row numbers


@triton.jit
def load_row_numbers(index, row_error, position, num_data, batch, HOLES: tl.constexpr):
    """Row numbers as int64, and which of them lie in the table; raises the flag for the others.

    What lies beyond the batch is not in the table either, and raises nothing; with HOLES nor does -1,
    which stands where there is no row.
    """
    inside = position < batch
    row = tl.load(index + position, mask=inside, other=0).to(tl.int64)
    valid = inside & (row >= 0) & (row < num_data)
    wrong = inside & (valid == 0)
    if HOLES:
        wrong &= row != -1
    tl.store(row_error + tl.zeros_like(row), tl.zeros_like(row) + 1, mask=wrong)
    return tl.where(valid, row, 0), valid


# Selection


@triton.jit
def magnitude_key(value):
    """int32 keys in the order of |value|: -0 equals 0, all NaN are equal and above infinity."""
    key = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.minimum(key, INFINITY_KEY + 1)


@triton.jit
def mark_largest(key, position, KEPT: tl.constexpr):
    """Marks the KEPT largest keys of each row; ties go to the lowest position.

    Both loops halve the range that holds a threshold, and stop once every row has found its own: the
    least number that fewer than KEPT keys exceed, or any that exactly KEPT keys reach; then the
    position before which there are KEPT.
    """
    # at least KEPT keys reach `low`, fewer reach `high`
    high = tl.max(key, 1, keep_dims=True) + 1
    low = high - 1 if KEPT == 1 else tl.zeros_like(high)
    while tl.max(high - low) > 1:
        middle = low + ((high - low) >> 1)
        count = tl.sum((key >= middle).to(tl.int32), 1, keep_dims=True)
        low = tl.where(count >= KEPT, middle, low)
        high = tl.where(count > KEPT, high, tl.where(count == KEPT, middle + 1, middle))

    # what lies above is kept, of the tied all before the position `end`
    rank = tl.where(key > low, -1, tl.where(key == low, position, key.shape[1]))
    scarce = tl.sum((rank < key.shape[1]).to(tl.int32), 1, keep_dims=True) > KEPT
    end = tl.zeros_like(low) + key.shape[1]
    begin = tl.where(scarce, 0, end - 1)
    while tl.max(end - begin) > 1:
        middle = begin + ((end - begin) >> 1)
        count = tl.sum((rank < middle).to(tl.int32), 1, keep_dims=True)
        end = tl.where(count >= KEPT, middle, end)
        begin = tl.where(count >= KEPT, begin, middle)
    return rank < end


# Noise


@triton.jit
def log_of_uniform(x):
    """log(x) for 2^-24 <= x <= 1; the polynomial of the Cephes library, errors below 2 ulp.

    The approximate logarithm of the hardware is useless near 1, where the logarithm vanishes.
    """
    bits = x.to(tl.int32, bitcast=True) - 0x3F3504F3  # sqrt(1/2)
    exponent = (bits >> 23).to(tl.float32)
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    p = 7.0376836292e-2 * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    p = p * f * square
    # log 2 in two parts
    p = exponent * -2.12194440e-4 + p
    p = -0.5 * square + p
    return (f + p) + exponent * 0.693359375


@triton.jit
def box_muller(first, second):
    """Two normals from two words of 32 random bits, of which 24 are used."""
    uniform = (first >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    radius = tl.sqrt(-2.0 * log_of_uniform(uniform + 5.9604644775390625e-08))
    # the angle in quarter turns: the nearest whole number, and the exact rest in [-1/2, 1/2]
    turn = (second >> 8).to(tl.int32)
    quarter = (turn + 0x200000) >> 22
    x = (turn - (quarter << 22)).to(tl.float32) * 3.7450704e-07  # pi / 2 * 2^-22
    square = x * x
    s = -1.9515295891e-4 * square + 8.3321608736e-3
    s = s * square - 1.6666654611e-1
    s = s * (square * x) + x
    c = 2.443315711809948e-5 * square - 1.388731625493765e-3
    c = c * square + 4.166664568298827e-2
    c = c * (square * square) + (1.0 - 0.5 * square)
    odd = (quarter & 1) == 1
    cosine = tl.where(((quarter + 1) & 2) == 2, -radius, radius) * tl.where(odd, s, c)
    sine = tl.where((quarter & 2) == 2, -radius, radius) * tl.where(odd, c, s)
    return cosine, sine


@triton.jit
def normal_noise(seed, row, sample, BLOCK_T: tl.constexpr):
    """Noise [BLOCK_B, BLOCK_T] of a sample: Philox 4x32-10 keyed by the seed, counter (t // 4,
    sample, row), so that a number depends on nothing but what it is for.

    Args:
        seed: int64 scalar.
        row: int64 [BLOCK_B, 1].
    """
    quad = tl.arange(0, BLOCK_T // 4)[None, :]
    low, high = row.to(tl.int32), (row >> 32).to(tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, quad, sample, low, high)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    normals = tl.join(tl.join(n0, n2), tl.join(n1, n3))  # [..., pair, member of the pair]
    return tl.reshape(normals, [row.shape[0], BLOCK_T])


# Sums over the batch, made in pieces


@triton.jit(do_not_specialize=["num_pieces", "size"])
def _sum_pieces_kernel(
    pieces,
    total,
    num_pieces,
    size,
    BLOCK_PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    result = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_pieces, BLOCK_PIECES):
        piece = (first + tl.arange(0, BLOCK_PIECES)).to(tl.int64)[:, None]
        exists = (piece < num_pieces) & (element < size)[None, :]
        values = tl.load(pieces + piece * size + element[None, :], mask=exists, other=0.0)
        result += tl.sum(values, 0)
    tl.store(total + element, result, mask=element < size)


def sum_pieces(pieces: Tensor, total: Tensor) -> None:
    """Writes the sum of pieces [P, ...] to `total`, always in the same order."""
    size = total.numel()
    launch(_sum_pieces_kernel, (triton.cdiv(size, REDUCED_ELEMENTS),))(
        pieces,
        total,
        num_pieces=len(pieces),
        size=size,
        BLOCK_PIECES=REDUCED_PIECES,
        BLOCK=REDUCED_ELEMENTS,
        num_warps=4,
        enable_fp_fusion=True,
    )
