"""Adam for the rows of a batch, in place.

Math:
    A row last updated at step tau has missed s = clock - tau steps with zero gradient:
        theta <- P theta - P m F(v),   m <- m b1^s,   v <- v b2^s
    where P and F(v) = sum_j w_j / (q_j sqrt(v) + eps) come from `history`: with Q in the middle of the
    q_j and u = eps / (Q sqrt(v) + eps), F is a polynomial in u over Q sqrt(v) + eps, evaluated in
    Chebyshev's form. Then a step with gradient g:
        m <- m + (1 - b1) (g - m),   v <- b2 v + (1 - b2) g^2
        theta <- (1 - lr weight_decay) theta - lr / (1 - b1^n) m / (sqrt(v / (1 - b2^n)) + eps)
    n is the count of all steps ("dense", "lazy") or the row's own ("row"); "lazy" adds eps to sqrt(v)
    before the bias is corrected, as SparseAdam does, and neither of the two misses steps.
    bfloat16 moments are computed in float32 and rounded at random when they are written: 16 bits of a
    Philox word keyed by (key of the row, column, steps taken) are added below those that stay.

Shapes:
    rows [N, W] float32; exp_avg, exp_avg_sq [N, W] float32 or bfloat16; row_step [N] int32; index and
    key_index [B] int32 or int64; grad [B, W]; clock [2] int64; history [steps, HISTORY_COLUMNS] float64;
    lr float64, one element. Without a key_index a row's number is its key.

Saved:
    Nothing.

Traffic:
    Three rows of W numbers read and written for each row of the batch, and its gradient read: 28 B W
    bytes for a step, 24 B W for a catch-up of rows that have missed something; with bfloat16 moments 20
    B W and 16 B W.

Limits:
    A row may stand in a catch-up more than once. The program that exchanges its `row_step` for the clock
    first finds what was there, and it alone reads and writes the row; those that come later find the
    clock in it and have nothing left to do. Whichever is first computes the same. A step wants each row
    once. All programs read clock and history as they were; a launch of its own counts the clock up and
    extends the history after them. Row numbers outside [0, N) are left out and raise `row_error`.
    Moments below the least normal number become 0. Tables of other dtypes are left to the reference.

Source:
    `rvi_fast.reference.row_adam_catch_up` and `row_adam_step`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._op_checks import checked
from ._adam import flushed, logarithm, one_minus_exp
from ._common import INFINITY_KEY, launch, row_error

# reference.WINDOW_TOLERANCE
WINDOW_TOLERANCE = 1e-9
# reference.HISTORY_TERMS and HISTORY_COLUMNS
HISTORY_TERMS = tl.constexpr(12)
HISTORY_COLUMNS = tl.constexpr(16)
# columns a program holds at once; 4 for each of 128 threads at W = 308, three tables of them
MAX_BLOCK_W = 1024
# reference.MOMENT_SEED
MOMENT_SEED = tl.constexpr(0x6D6F6D656E7473)


@triton.jit
def _power(log2_base, exponent):
    """base ** exponent, a float32, from float64: the fraction alone goes through the fast exp2."""
    product = log2_base * exponent
    whole = tl.floor(product)
    return tl.exp2((product - whole).to(tl.float32)) * tl.exp2(whole.to(tl.float32))


@triton.jit
def missed_steps(history_ptr, last, now, start, log2_beta1, log2_beta2):
    """What a row last updated at `last` < `now` has missed, as float32 factors."""
    entry = history_ptr + (last - start) * HISTORY_COLUMNS
    newest = history_ptr + (now - start) * HISTORY_COLUMNS
    decay = 1.0 - one_minus_exp((tl.load(newest + 2) - tl.load(entry + 2)).to(tl.float32), 9)
    middle = tl.load(entry + 3)
    first, all_steps = middle * tl.load(entry + 1), tl.load(entry)
    line = decay * first.to(tl.float32), decay * (all_steps - first).to(tl.float32)
    # what has missed nothing has no middle yet, and does not move
    middle = tl.where(middle > 0, middle, 1.0).to(tl.float32)
    steps = (now - last).to(tl.float64)
    factors = _power(log2_beta1, steps), _power(log2_beta2, steps)
    return decay, entry + 4, middle, line, factors


@triton.jit
def catch_up(theta, moment, square, missed, eps):
    decay, terms, middle, line, factors = missed
    denominator = middle * tl.sqrt(square) + eps
    share = eps / denominator
    x = 2.0 * share - 1.0
    near, far = x * 0.0, x * 0.0  # Clenshaw's recurrence
    for k in tl.static_range(HISTORY_TERMS - 1, 0, -1):
        near, far = tl.load(terms + k).to(tl.float32) - far + 2.0 * x * near, near
    bend = decay * (tl.load(terms).to(tl.float32) - far + x * near)
    factor = line[0] + share * (line[1] - (1.0 - share) * bend)
    theta = theta * decay - moment / denominator * factor
    return theta, flushed(moment * factors[0]), flushed(square * factors[1])


@triton.jit
def load_moment(pointers, valid):
    """float32 from float32, or from the bits of bfloat16."""
    if pointers.dtype.element_ty == tl.int16:
        bits = tl.load(pointers, mask=valid, other=0).to(tl.int32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return tl.load(pointers, mask=valid, other=0.0)


@triton.jit
def _bfloat16_bits(value, random):
    """`reference.to_bfloat16`, as int16; `random` int32 in [0, 2^16)."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    finite = tl.minimum(magnitude + random, INFINITY_KEY - 1)
    # a NaN whose upper half is that of infinity
    other = tl.where(magnitude > INFINITY_KEY, magnitude | 0x400000, magnitude)
    rounded = (bits ^ magnitude) | tl.where(magnitude < INFINITY_KEY, finite, other)
    return (rounded >> 16).to(tl.int16)


@triton.jit
def row_key(key_index_ptr, place, row, valid):
    """What keys the random bits of the moments of rows at a place in the batch; see `store_moments`."""
    if key_index_ptr is None:
        return row
    else:
        return tl.load(key_index_ptr + place, mask=valid, other=0).to(tl.int64)


@triton.jit
def store_moments(exp_avg, exp_avg_sq, moment, square, key, first, count, valid):
    """Writes both moments of the columns from `first`, up to date with step `count`.

    Of one row [n] with its key; or of the rows with keys [BLOCK_B, 1], and moments [BLOCK_B, n].
    """
    if exp_avg.dtype.element_ty == tl.int16:
        quads = first // 4 + tl.arange(0, moment.shape[-1] // 4)
        seed = tl.full((), MOMENT_SEED, tl.int64)
        low, high = key.to(tl.int32), (key >> 32).to(tl.int32)
        w0, w1, w2, w3 = tl.philox(seed, quads, count.to(tl.int32), low, high)
        words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), moment.shape)
        moment = _bfloat16_bits(moment, (words >> 16).to(tl.int32))
        square = _bfloat16_bits(square, (words & 0xFFFF).to(tl.int32))
    tl.store(exp_avg, moment, mask=valid)
    tl.store(exp_avg_sq, square, mask=valid)


@triton.jit
def adam_factors(count, lr_ptr, log_beta1, log_beta2, weight_decay):
    """Step size, root of the second bias correction and weight decay of step `count`, as float32."""
    lr = tl.load(lr_ptr)
    steps = count.to(tl.float64)
    correction1 = one_minus_exp((steps * log_beta1).to(tl.float32), 9)
    correction2 = one_minus_exp((steps * log_beta2).to(tl.float32), 9)
    step_size = lr.to(tl.float32) / correction1
    root = tl.sqrt(correction2)
    decay = (1.0 - lr * weight_decay).to(tl.float32)
    return step_size, root, decay


@triton.jit
def stepped(theta, moment, square, grad, factors, betas, LAZY: tl.constexpr = False):
    """Rows and moments after a step; `betas` are beta2, 1 - beta1, 1 - beta2 and eps."""
    beta2, rest1, rest2, eps = betas
    step_size, root, decay = factors
    moment = flushed(moment + (grad - moment) * rest1)
    square = flushed(square * beta2 + grad * grad * rest2)
    # SparseAdam adds eps before it corrects the bias
    denominator = (tl.sqrt(square) + eps) / root if LAZY else tl.sqrt(square) / root + eps
    return theta * decay - step_size * moment / denominator, moment, square


@triton.jit
def owned_row(index_ptr, place, num_data, error_ptr, HOLES: tl.constexpr):
    """The row of this program, and whether there is one: row numbers are checked here alone.

    With HOLES -1 stands where there is none, and is no error.
    """
    row = tl.load(index_ptr + place).to(tl.int64)
    inside = (row >= 0) & (row < num_data)
    wrong = inside == 0
    if HOLES:
        wrong &= row != -1
    tl.store(error_ptr, 1, mask=wrong)
    return tl.where(inside, row, 0), inside


@triton.jit(do_not_specialize=["num_data"])
def _row_adam_catch_up_kernel(
    rows_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    row_step_ptr,
    index_ptr,
    clock_ptr,
    history_ptr,
    error_ptr,
    key_index_ptr,
    num_data,
    log2_beta1: tl.float64,
    log2_beta2: tl.float64,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row, inside = owned_row(index_ptr, place, num_data, error_ptr, False)
    now, start = tl.load(clock_ptr), tl.load(clock_ptr + 1)
    if inside:
        # the first to come is the one that brings the row up to date
        last = tl.atomic_xchg(row_step_ptr + row, now.to(tl.int32), sem="relaxed").to(tl.int64)
        if last < now:
            key = row_key(key_index_ptr, place, row, inside)
            missed = missed_steps(
                history_ptr,
                last,
                now,
                start,
                tl.full((), log2_beta1, tl.float64),
                tl.full((), log2_beta2, tl.float64),
            )
            for first in range(0, WIDTH, BLOCK_W):
                columns = first + tl.arange(0, BLOCK_W)
                offsets, valid = row * WIDTH + columns, columns < WIDTH
                theta, moment, square = catch_up(
                    tl.load(rows_ptr + offsets, mask=valid, other=0.0),
                    load_moment(exp_avg_ptr + offsets, valid),
                    load_moment(exp_avg_sq_ptr + offsets, valid),
                    missed,
                    eps,
                )
                tl.store(rows_ptr + offsets, theta, mask=valid)
                store_moments(
                    exp_avg_ptr + offsets,
                    exp_avg_sq_ptr + offsets,
                    moment,
                    square,
                    key,
                    first,
                    now,
                    valid,
                )


@triton.jit
def _same_row(index_ptr, order_ptr, place, next, batch):
    """Whether the place that is `next` in the order holds the row of `place`."""
    exists = (next >= 0) & (next < batch)
    other = tl.load(order_ptr + next, mask=exists, other=0)
    return exists & (tl.load(index_ptr + other) == tl.load(index_ptr + place))


@triton.jit(do_not_specialize=["num_data", "batch"])
def _row_adam_step_kernel(
    rows_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    row_step_ptr,
    index_ptr,
    grad_ptr,
    clock_ptr,
    history_ptr,
    lr_ptr,
    error_ptr,
    order_ptr,
    key_index_ptr,
    num_data,
    batch,
    log2_beta1: tl.float64,
    log2_beta2: tl.float64,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    beta2,
    rest1,
    rest2,
    eps,
    weight_decay: tl.float64,
    SEMANTICS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    if order_ptr is None:
        place = tl.program_id(0).to(tl.int64)
        row, inside = owned_row(index_ptr, place, num_data, error_ptr, False)
    else:
        place = tl.load(order_ptr + tl.program_id(0).to(tl.int64))
        row, inside = owned_row(index_ptr, place, num_data, error_ptr, False)
        # the first of its places steps the row, from the sum of its gradients
        before = tl.program_id(0).to(tl.int64) - 1
        inside = inside & (_same_row(index_ptr, order_ptr, place, before, batch) == 0)
    now = tl.load(clock_ptr)
    if inside:
        count, last = now + 1, now
        key = row_key(key_index_ptr, place, row, inside)
        if SEMANTICS == "dense":
            last = tl.load(row_step_ptr + row).to(tl.int64)
        if SEMANTICS == "row":
            count = tl.load(row_step_ptr + row).to(tl.int64) + 1
        factors = adam_factors(count, lr_ptr, log_beta1, log_beta2, weight_decay)
        if SEMANTICS == "dense":  # what a row just updated has missed changes nothing
            missed = missed_steps(
                history_ptr,
                last,
                now,
                tl.load(clock_ptr + 1),
                tl.full((), log2_beta1, tl.float64),
                tl.full((), log2_beta2, tl.float64),
            )
        for first in range(0, WIDTH, BLOCK_W):
            columns = first + tl.arange(0, BLOCK_W)
            offsets, valid = row * WIDTH + columns, columns < WIDTH
            theta = tl.load(rows_ptr + offsets, mask=valid, other=0.0)
            moment = load_moment(exp_avg_ptr + offsets, valid)
            square = load_moment(exp_avg_sq_ptr + offsets, valid)
            grad = tl.load(grad_ptr + place * WIDTH + columns, mask=valid, other=0.0)
            grad = grad.to(tl.float32)
            if order_ptr is not None:
                next = tl.program_id(0).to(tl.int64) + 1
                while _same_row(index_ptr, order_ptr, place, next, batch):
                    more = tl.load(order_ptr + next) * WIDTH + columns
                    grad += tl.load(grad_ptr + more, mask=valid, other=0.0).to(tl.float32)
                    next += 1
            if SEMANTICS == "dense":
                theta, moment, square = catch_up(theta, moment, square, missed, eps)
            betas = beta2, rest1, rest2, eps
            theta, moment, square = stepped(
                theta, moment, square, grad, factors, betas, SEMANTICS == "lazy"
            )
            tl.store(rows_ptr + offsets, theta, mask=valid)
            store_moments(
                exp_avg_ptr + offsets,
                exp_avg_sq_ptr + offsets,
                moment,
                square,
                key,
                first,
                now + 1,
                valid,
            )
        if SEMANTICS != "lazy":
            tl.store(row_step_ptr + row, count.to(tl.int32))


@triton.jit
def _log1p(x):
    """log(1 + x) for float64 x > -1, to rounding: the error of 1 + x cancels."""
    shifted = 1.0 + x
    difference = shifted - 1.0
    safe = tl.where(difference == 0, 1.0, difference)
    return tl.where(difference == 0, x, tl.log(shifted) * (x / safe))


@triton.jit
def _add(pointers, values, valid):
    tl.store(pointers, tl.load(pointers, mask=valid, other=0.0) + values, mask=valid)


@triton.jit
def count_step(
    clock_ptr,
    history_ptr,
    lr_ptr,
    window,
    log_beta1,
    log_beta2,
    weight_decay,
    DENSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Counts the clock up and adds the new step to what rows last updated before it have missed."""
    clock = tl.load(clock_ptr) + 1
    if DENSE:
        now = clock - tl.load(clock_ptr + 1)
        lr = tl.load(lr_ptr)
        newest = history_ptr + now * HISTORY_COLUMNS
        log_decay = tl.load(newest - HISTORY_COLUMNS + 2) + _log1p(-(lr * weight_decay))
        step, later = clock.to(tl.float64), (window // 8).to(tl.float64)
        size = lr / one_minus_exp(step * log_beta1, 16)
        root = tl.sqrt(one_minus_exp(step * log_beta2, 16))
        spread = root * tl.sqrt(one_minus_exp((step + later) * log_beta2, 16))
        latest = tl.sqrt(tl.exp((0.5 * later + 1.0) * log_beta2) / spread)
        tl.store(newest - HISTORY_COLUMNS + 3, latest)
        for first in range(0, window, BLOCK_M):
            missed = (first + 1 + tl.arange(0, BLOCK_M)).to(tl.int64)
            valid = (missed <= window) & (missed <= now)
            entries = newest - missed * HISTORY_COLUMNS
            steps = missed.to(tl.float64)
            gap = tl.load(entries + 2, mask=valid, other=0.0) - log_decay
            weight = size * tl.exp(steps * log_beta1 + gap)
            # the newest is not read back: it may not be there yet
            middle = tl.load(entries + 3, mask=valid & (missed > 1), other=1.0)
            middle = tl.where(missed == 1, latest, middle)
            q = tl.exp(steps * log_beta2 * 0.5) / root
            ratio = q / middle
            ratio_root = tl.sqrt(ratio)
            quotient = (ratio_root - 1.0) / (ratio_root + 1.0)
            _add(entries, weight, valid)
            _add(entries + 1, weight / q, valid)
            term = weight * (1.0 - ratio) * (1.0 - ratio) / (ratio * ratio_root)
            _add(entries + 4, term, valid)
            term *= 2.0
            for k in tl.static_range(1, HISTORY_TERMS):
                term *= quotient
                _add(entries + 4 + k, term, valid)
        tl.store(newest + 2, log_decay)
    tl.store(clock_ptr, clock)


@triton.jit(do_not_specialize=["window"])
def _row_adam_clock_kernel(
    clock_ptr,
    history_ptr,
    lr_ptr,
    window,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    weight_decay: tl.float64,
    DENSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    count_step(
        clock_ptr, history_ptr, lr_ptr, window, log_beta1, log_beta2, weight_decay, DENSE, BLOCK_M
    )


def _covered(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    clock: Tensor,
    history: Tensor,
) -> bool:
    """Whether the kernels can work in place."""
    return (
        rows.dtype == torch.float32
        and exp_avg.dtype == exp_avg_sq.dtype
        and exp_avg.dtype in (torch.float32, torch.bfloat16)
        and (row_step.dtype, clock.dtype) == (torch.int32, torch.int64)
        and history.dtype == torch.float64
        and all(t.is_contiguous() for t in (rows, exp_avg, exp_avg_sq, row_step, clock, history))
    )


def moment_table(table: Tensor) -> Tensor:
    """bfloat16 goes to the kernels as its bits."""
    return table.view(torch.int16) if table.dtype == torch.bfloat16 else table


def moment_keys(exp_avg: Tensor, key_index: Tensor | None) -> Tensor | None:
    """`key_index` as the kernels take it: None where nothing is drawn, or by row numbers."""
    drawn = exp_avg.dtype == torch.bfloat16
    return key_index.contiguous() if drawn and key_index is not None else None


def _block_w(width: int) -> int:
    """Columns of a tile, a multiple of the four that share their random words."""
    return max(4, min(MAX_BLOCK_W, triton.next_power_of_2(width)))


def window_of(beta1: float, beta2: float) -> int:
    """`reference.row_adam_window`."""
    rate = beta1 / math.sqrt(beta2)
    return max(1, math.ceil(math.log(WINDOW_TOLERANCE) / math.log(rate))) if rate > 0 else 1


@checked
def row_adam_catch_up(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    clock: Tensor,
    history: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    key_index: Tensor | None = None,
) -> None:
    """`reference.row_adam_catch_up`."""
    if not _covered(rows, exp_avg, exp_avg_sq, row_step, clock, history):
        return NotImplemented
    if index.shape[0] == 0:
        return None
    num_data, width = rows.shape
    launch(_row_adam_catch_up_kernel, (index.shape[0],))(
        rows_ptr=rows,
        exp_avg_ptr=moment_table(exp_avg),
        exp_avg_sq_ptr=moment_table(exp_avg_sq),
        row_step_ptr=row_step,
        index_ptr=index.contiguous(),
        clock_ptr=clock,
        history_ptr=history,
        error_ptr=row_error(rows.device),
        key_index_ptr=moment_keys(exp_avg, key_index),
        num_data=num_data,
        log2_beta1=logarithm(beta1) / math.log(2.0),
        log2_beta2=logarithm(beta2) / math.log(2.0),
        eps=eps,
        WIDTH=width,
        BLOCK_W=_block_w(width),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return None


@checked
def row_adam_step(
    rows: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    row_step: Tensor,
    index: Tensor,
    grad: Tensor,
    clock: Tensor,
    history: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    semantics: str,
    repeats: bool = False,
    key_index: Tensor | None = None,
) -> None:
    """`reference.row_adam_step`."""
    if not _covered(rows, exp_avg, exp_avg_sq, row_step, clock, history):
        return NotImplemented
    num_data, width = rows.shape
    log_beta1, log_beta2 = logarithm(beta1), logarithm(beta2)
    lr = lr.to(torch.float64)
    if index.shape[0] > 0:
        launch(_row_adam_step_kernel, (index.shape[0],))(
            rows_ptr=rows,
            exp_avg_ptr=moment_table(exp_avg),
            exp_avg_sq_ptr=moment_table(exp_avg_sq),
            row_step_ptr=row_step,
            index_ptr=index.contiguous(),
            grad_ptr=grad.contiguous(),
            clock_ptr=clock,
            history_ptr=history,
            lr_ptr=lr,
            error_ptr=row_error(rows.device),
            # a stable order: sums do not depend on chance
            order_ptr=index.sort(stable=True).indices if repeats else None,
            key_index_ptr=moment_keys(exp_avg, key_index),
            num_data=num_data,
            batch=index.shape[0],
            log2_beta1=log_beta1 / math.log(2.0),
            log2_beta2=log_beta2 / math.log(2.0),
            log_beta1=log_beta1,
            log_beta2=log_beta2,
            beta2=beta2,
            rest1=1.0 - beta1,
            rest2=1.0 - beta2,
            eps=eps,
            weight_decay=float(weight_decay),
            SEMANTICS=semantics,
            WIDTH=width,
            BLOCK_W=_block_w(width),
            num_warps=4,
            enable_fp_fusion=True,
        )
    window = window_of(beta1, beta2) if semantics == "dense" else 1
    launch(_row_adam_clock_kernel, (1,))(
        clock_ptr=clock,
        history_ptr=history,
        lr_ptr=lr,
        window=window,
        log_beta1=log_beta1,
        log_beta2=log_beta2,
        weight_decay=float(weight_decay),
        DENSE=semantics == "dense",
        BLOCK_M=256,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return None
