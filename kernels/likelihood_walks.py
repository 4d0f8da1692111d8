"""The two walks of the likelihood of a linear layer: over the features, and over the rows.

`linear_log_likelihood` and `likelihood_rows` say what they compute: for a batch, or for rows `index` of
tables x and mask, then with the logarithm of the scale and one gradient for all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import laws
from ._common import load_row_numbers
from .data import load_tile
from .pieces import SHARED_BLOCK
from .weights import load_bias, load_matrix, products

BLOCK_OF_NUMBERS = tl.constexpr(SHARED_BLOCK)


@triton.jit
def _rows_of_tile(index_ptr, error_ptr, first, row, rows, num_data, batch, AXIS: tl.constexpr):
    """Where x and mask have the rows of a tile: from which row on, numbers from there, which exist.

    They are those of the batch, `rows` of the tile's shape, or with `index_ptr` rows of tables, of which
    some may not exist: -1 stands for none.
    """
    if index_ptr is None:
        return first, rows, first + row < batch
    else:
        number, exists = load_row_numbers(index_ptr, error_ptr, first + row, num_data, batch, True)
        return 0, tl.expand_dims(number, AXIS), exists


@triton.jit
def _load_grad(grad_log_prob_ptr, grad, offsets, exists):
    """The gradient of each row's log-likelihood, float32: its own, or `grad` for all."""
    if grad_log_prob_ptr is None:
        return tl.zeros(exists.shape, tl.float32) + grad
    else:
        return tl.load(grad_log_prob_ptr + offsets, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _both(scale, SCALE: tl.constexpr, LOG_SCALE: tl.constexpr):
    """1 / s and log s, from s or from its logarithm."""
    if SCALE == "none":
        return 1.0, 0.0
    elif LOG_SCALE:
        return tl.exp(-scale), scale
    else:
        return 1.0 / scale, tl.log(scale)


@triton.jit(
    do_not_specialize=["program_tiles", "outputs", "batch", "num_data"],
    do_not_specialize_on_alignment=["index_ptr"],
)
def _linear_log_likelihood_rows_kernel(
    grad_log_prob_ptr,
    grad_of_all,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    scale_ptr,
    mask_ptr,
    index_ptr,
    error_ptr,
    num_data,
    log_prob_ptr,
    grad_hidden_ptr,
    program_tiles,
    outputs,
    batch,
    num_features,
    LAW: tl.constexpr,
    HIDDEN_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_HIDDEN: tl.constexpr,
    SCALE: tl.constexpr,
    LOG_SCALE: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program takes BLOCK_B rows of a sample and walks over `program_tiles` tiles of features.

    It writes a piece of log_prob [S, B] and of grad_hidden [S, B, H]; pieces lie `outputs` = S * B rows
    apart.
    """
    WHOLE: tl.constexpr = BLOCK_K == BLOCK_H
    first, piece = tl.program_id(0).to(tl.int64) * BLOCK_B, tl.program_id(1).to(tl.int64)
    row, unit = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_H)[None, :]
    source, rows, exists = _rows_of_tile(
        index_ptr, error_ptr, first, row, row[:, None], num_data, batch, 1
    )
    position = tl.program_id(2).to(tl.int64) * batch + first
    total = tl.zeros((BLOCK_B,), dtype=tl.float32)
    if WHOLE:
        hidden = load_matrix(hidden_ptr, position, exists, 0, HIDDEN_DIM, BLOCK_H)
    if NEED_HIDDEN:
        grad = _load_grad(grad_log_prob_ptr, grad_of_all, position + row, exists)[:, None]
        grad_hidden = tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32)
    for step in range(program_tiles):
        start = (piece * program_tiles + step) * BLOCK_D
        column = (start + tl.arange(0, BLOCK_D)).to(tl.int32)
        columns, has_column = column[None, :], column < num_features
        inside = exists[:, None] & has_column[None, :]
        values, observed, scale = load_tile(
            x_ptr,
            mask_ptr,
            scale_ptr,
            source,
            rows,
            exists,
            start,
            columns,
            inside,
            num_features,
            MASK,
            SCALE,
            1,
        )
        inverse, log_scale = _both(scale, SCALE, LOG_SCALE)
        if WHOLE:
            weight = load_matrix(weight_ptr, start, has_column, 0, HIDDEN_DIM, BLOCK_H)
            output = tl.dot(hidden, tl.trans(weight), input_precision=PRECISION)
        else:
            output = products(
                hidden_ptr,
                position,
                exists,
                weight_ptr,
                start,
                has_column,
                HIDDEN_DIM,
                PRECISION,
                BLOCK_K,
            )
        output += load_bias(bias_ptr, column, num_features, HAS_BIAS)[None, :]
        apart = tl.where(observed, laws.residual(values, output, inverse, LAW, True), 0.0)
        entry = laws.entry(values, output, log_scale, apart, LAW)
        total += tl.sum(tl.where(observed, entry, 0.0), axis=1)
        if NEED_HIDDEN:
            grad_output = laws.factor(laws.slope(apart, LAW) * grad, inverse, LAW, True)
            grad_output = tl.where(observed, grad_output, 0.0)
            if not WHOLE:
                weight = load_matrix(weight_ptr, start, has_column, 0, HIDDEN_DIM, BLOCK_H)
            grad_hidden = tl.dot(grad_output, weight, grad_hidden, input_precision=PRECISION)
    position += piece * outputs
    written = first + row < batch
    tl.store(log_prob_ptr + position + row, total, mask=written)
    if NEED_HIDDEN:
        to = grad_hidden_ptr + position * HIDDEN_DIM + (row[:, None] * HIDDEN_DIM + unit)
        tl.store(to, grad_hidden, mask=written[:, None] & (unit < HIDDEN_DIM))


@triton.jit
def _row_of_piece(ptr, piece, rows, row, stride, WIDTH: tl.constexpr):
    """Where a row of a piece [rows, WIDTH] begins: `stride` apart, or with none one behind another."""
    if stride is None:
        return ptr + (piece * rows + row) * WIDTH
    else:
        return ptr + (piece * stride + row * WIDTH)


@triton.jit
def _store_number(ptr, number, stride):
    """The number of this program, as one of many to be added up: `SHARED_BLOCK` to a piece.

    What the last piece has room for beyond them becomes 0.
    """
    place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    if stride is None:
        tl.store(ptr + place, number)
    else:
        tl.store(ptr + place // BLOCK_OF_NUMBERS * stride + place % BLOCK_OF_NUMBERS, number)
        last = tl.num_programs(0).to(tl.int64) * tl.num_programs(1) - 1
        rest = tl.arange(0, BLOCK_OF_NUMBERS)
        empty = (place == last) & (rest > last % BLOCK_OF_NUMBERS)
        to = ptr + last // BLOCK_OF_NUMBERS * stride + rest
        tl.store(to, tl.zeros((BLOCK_OF_NUMBERS,), tl.float32), mask=empty)


@triton.jit(
    do_not_specialize=["program_blocks", "batch", "num_data"],
    do_not_specialize_on_alignment=["index_ptr"],
)
def _linear_log_likelihood_features_kernel(
    grad_log_prob_ptr,
    grad_of_all,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    scale_ptr,
    mask_ptr,
    index_ptr,
    error_ptr,
    num_data,
    grad_weight_ptr,
    grad_bias_ptr,
    grad_scale_ptr,
    piece_stride,
    program_blocks,
    num_samples,
    batch,
    num_features,
    LAW: tl.constexpr,
    HIDDEN_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_LINEAR: tl.constexpr,
    NEED_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    LOG_SCALE: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A program takes BLOCK_D features and walks over `program_blocks` blocks of rows, all samples.

    It writes a piece of grad_weight [D, H], grad_bias [D] and grad_scale, which is [D], one number for
    each program, or the result itself where the scale is entry-wise. Its tiles have features along
    the first axis.
    """
    piece = tl.program_id(1).to(tl.int64)
    row, batch_rows = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_B)[None, :]
    start = tl.program_id(0).to(tl.int64) * BLOCK_D
    feature, unit = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_H)[None, :]
    # features fit into 32 bits, which are half the registers
    column = (start + feature).to(tl.int32)
    columns, has_column = column[:, None], column < num_features
    bias = load_bias(bias_ptr, column, num_features, HAS_BIAS)[:, None]
    WHOLE: tl.constexpr = BLOCK_K == BLOCK_H
    if WHOLE:
        weight = load_matrix(weight_ptr, start, has_column, 0, HIDDEN_DIM, BLOCK_H)

    grad_weight = tl.zeros((BLOCK_D, BLOCK_H), dtype=tl.float32)
    grad_bias = tl.zeros((BLOCK_D,), dtype=tl.float32)
    grad_scale = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for block in range(program_blocks):
        first = (piece * program_blocks + block) * BLOCK_B
        source, rows, exists = _rows_of_tile(
            index_ptr, error_ptr, first, row, batch_rows, num_data, batch, 0
        )
        inside = has_column[:, None] & exists[None, :]
        values, observed, scale = load_tile(
            x_ptr,
            mask_ptr,
            scale_ptr,
            source,
            rows,
            exists,
            start,
            columns,
            inside,
            num_features,
            MASK,
            SCALE,
            0,
        )
        inverse, _ = _both(scale, SCALE, LOG_SCALE)
        entry_scale = tl.zeros((BLOCK_D, BLOCK_B), dtype=tl.float32)
        position = first
        for _ in range(num_samples):
            grad = _load_grad(grad_log_prob_ptr, grad_of_all, position + row, exists)
            if WHOLE:
                hidden = load_matrix(hidden_ptr, position, exists, 0, HIDDEN_DIM, BLOCK_H)
                output = tl.dot(weight, tl.trans(hidden), input_precision=PRECISION)
            else:
                output = products(
                    weight_ptr,
                    start,
                    has_column,
                    hidden_ptr,
                    position,
                    exists,
                    HIDDEN_DIM,
                    PRECISION,
                    BLOCK_K,
                )
            output += bias
            apart = tl.where(observed, laws.residual(values, output, inverse, LAW, True), 0.0)
            factor = laws.factor(grad[None, :], inverse, LAW, True)
            factor = tl.where(observed, factor, 0.0)
            if NEED_LINEAR:
                grad_output = laws.slope(apart, LAW) * factor
                if grad_weight_ptr is not None:
                    if not WHOLE:
                        hidden = load_matrix(hidden_ptr, position, exists, 0, HIDDEN_DIM, BLOCK_H)
                    grad_weight = tl.dot(
                        grad_output, hidden, grad_weight, input_precision=PRECISION
                    )
                grad_bias += tl.sum(grad_output, axis=1)
            if NEED_SCALE:
                # by the logarithm of the scale: times the scale, by which the factor is divided
                own = tl.where(observed, grad[None, :], 0.0) if LOG_SCALE else factor
                terms = laws.scale_term(apart, LAW) * own
                if SCALE == "entry":
                    entry_scale += terms
                else:
                    grad_scale += tl.sum(terms, axis=1)
            position += batch
        if NEED_SCALE and SCALE == "entry":
            to = grad_scale_ptr + first * num_features + batch_rows * num_features + columns
            tl.store(to, entry_scale, mask=inside)

    if NEED_LINEAR and grad_weight_ptr is not None:
        to = _row_of_piece(grad_weight_ptr, piece, num_features, start, piece_stride, HIDDEN_DIM)
        to += feature[:, None] * HIDDEN_DIM + unit
        tl.store(to, grad_weight, mask=has_column[:, None] & (unit < HIDDEN_DIM))
    if NEED_LINEAR and grad_bias_ptr is not None:
        to = _row_of_piece(grad_bias_ptr, piece, num_features, 0, piece_stride, 1) + column
        tl.store(to, grad_bias, mask=has_column)
    if NEED_SCALE and SCALE == "feature":
        to = _row_of_piece(grad_scale_ptr, piece, num_features, 0, piece_stride, 1) + column
        tl.store(to, grad_scale, mask=has_column)
    if NEED_SCALE and SCALE == "scalar":
        _store_number(grad_scale_ptr, tl.sum(grad_scale, axis=0), piece_stride)
