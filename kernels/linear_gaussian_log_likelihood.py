"""Log-likelihood of a batch under Gaussians around the output of a linear layer, never written down.

Math:
    forward     mean_b = W h_b + bias,   u = (x - mean) / s,
                log p(x_b) = sum_{d observed} (-1/2 u_bd^2 - log s - 1/2 log 2 pi)
    backward    E = g u / s where observed, else 0:
                grad_h = E W,   grad_W = E^T h,   grad_bias = sum_b E_b,   grad_s = sum g (u^2 - 1) / s
    `x` and what is observed are constants.

Shapes:
    hidden [S, B, H] and weight [D, H], H up to 256, bias [D] or None: float32, float16 or bfloat16;
    x [B, D] uint8 (counts as x / 255), float16, bfloat16, float32 or float64; scale [], [1], [D] or
    [B, D]; mask None (NaN in x marks what is missing), bool [B, D], or int32 [B, ceil(D / 32)] with
    entry d in bit d % 32 of word d // 32. log_prob [S, B] float32.

Saved:
    The inputs alone: the mean is computed again, which makes value and gradients three products.

Traffic:
    forward     x, mask and an entry-wise scale once per sample, hidden once, the weight once per
                BLOCK_B rows (out of the cache), log_prob.
    backward    x, mask and scale once, whatever S; per row and tile of BLOCK_D features hidden read,
                and a piece of grad_h written and read back. For H = 64 and BLOCK_D = 64 those are
                4 H (3 ceil(D / 64)) = 12 H D / 64 bytes, 9.8 kB a row at D = 784, out of the cache:
                the batch is cut into chunks whose pieces fit `CHUNK_ELEMENTS`. FLOP per row: 6 D H.
    The other ways: programs that own rows and walk over D read and write pieces of grad_W instead,
    8 D H / BLOCK_B + 4 D H / BLOCK_B (the weight) bytes a row, as much at BLOCK_B = 64, but leave a
    batch of 256 to a handful of programs, each 13 tiles long; a second kernel for grad_W reads x twice
    and has 8 D H FLOP a row, a third more where the products are what takes the time.

Limits:
    A NaN in x where the mask says observed gives NaN; what stands at missing entries is never used. A
    row with nothing observed has 0. Sums are float32 in an order that depends on B, D, H and S alone.
    float64 layers, and H above 256, are left to the reference.

Source:
    `rvi_fast.reference.linear_gaussian_log_likelihood_fwd` and `_bwd`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import block_of, input_precision

LARGEST_HIDDEN = 256
# float32 of pieces of grad_hidden at a time, 32 MB: they stay in the cache of a large GPU, and a chunk
# is 9,900 rows for D = 784 and H = 64
CHUNK_ELEMENTS = 1 << 23
# programs of a chunk, over all tiles of features: two to a processor of a large GPU
PROGRAMS = 256
# elements and pieces that one program of the reduction reads at a time
REDUCED_ELEMENTS, REDUCED_PIECES = 128, 8
HALF_LOG_TWO_PI = tl.constexpr(0.9189385332046727)
PIXEL_SCALE = tl.constexpr(1.0 / 255.0)


@triton.jit
def _load_values(x_ptr, offsets, inside):
    values = tl.load(x_ptr + offsets, mask=inside, other=0)
    if x_ptr.dtype.element_ty == tl.uint8:
        return values.to(tl.float32) * PIXEL_SCALE
    else:
        return values.to(tl.float32)


@triton.jit
def _load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK: tl.constexpr):
    if MASK == "nan":
        return inside & (values == values)
    elif MASK == "bool":
        return tl.load(mask_ptr + rows * num_features + columns, mask=inside, other=0) != 0
    else:
        words = mask_ptr + rows * ((num_features + 31) // 32) + columns // 32
        return ((tl.load(words, mask=inside, other=0) >> (columns % 32)) & 1) != 0


@triton.jit
def _load_scale(scale_ptr, rows, columns, inside, num_features, SCALE: tl.constexpr):
    """float32, of a shape that broadcasts to the tile."""
    if SCALE == "scalar":
        return tl.load(scale_ptr).to(tl.float32)
    elif SCALE == "feature":
        return tl.load(scale_ptr + columns, mask=columns < num_features, other=1.0).to(tl.float32)
    else:
        offsets = rows * num_features + columns
        return tl.load(scale_ptr + offsets, mask=inside, other=1.0).to(tl.float32)


@triton.jit
def _load_matrix(ptr, row, exists, HIDDEN_DIM: tl.constexpr, BLOCK_H: tl.constexpr):
    """Rows [n] of a matrix with HIDDEN_DIM columns, as float32 [n, BLOCK_H]; 0 outside."""
    unit = tl.arange(0, BLOCK_H)[None, :]
    inside = exists[:, None] & (unit < HIDDEN_DIM)
    return tl.load(ptr + row[:, None] * HIDDEN_DIM + unit, mask=inside, other=0).to(tl.float32)


@triton.jit
def _load_bias(bias_ptr, columns, num_features, HAS_BIAS: tl.constexpr):
    """float32 [1, BLOCK_D]."""
    if HAS_BIAS:
        return tl.load(bias_ptr + columns, mask=columns < num_features, other=0).to(tl.float32)
    else:
        return tl.zeros(columns.shape, tl.float32)


@triton.jit
def _log_prob(scaled, scale, observed):
    """Sums over the features of a tile, [BLOCK_B]."""
    entry = -0.5 * scaled * scaled - (tl.log(scale) + HALF_LOG_TWO_PI)
    return tl.sum(tl.where(observed, entry, 0.0), axis=1)


@triton.jit
def _linear_gaussian_log_likelihood_fwd_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    scale_ptr,
    mask_ptr,
    log_prob_ptr,
    batch,
    num_features,
    HIDDEN_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """A program takes BLOCK_B rows of one sample and walks over the features."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    rows = row[:, None]
    position = tl.program_id(1).to(tl.int64) * batch + row
    hidden = _load_matrix(hidden_ptr, position, row < batch, HIDDEN_DIM, BLOCK_H)
    total = tl.zeros((BLOCK_B,), dtype=tl.float32)
    for start in range(0, num_features, BLOCK_D):
        column = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        columns = column[None, :]
        inside = (rows < batch) & (columns < num_features)
        weight = _load_matrix(weight_ptr, column, column < num_features, HIDDEN_DIM, BLOCK_H)
        values = _load_values(x_ptr, rows * num_features + columns, inside)
        observed = _load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK)
        scale = _load_scale(scale_ptr, rows, columns, inside, num_features, SCALE)
        mean = tl.dot(hidden, tl.trans(weight), input_precision=PRECISION)
        mean += _load_bias(bias_ptr, columns, num_features, HAS_BIAS)
        total += _log_prob((values - mean) / scale, scale, observed)
    tl.store(log_prob_ptr + position, total, mask=row < batch)


@triton.jit
def _linear_gaussian_log_likelihood_bwd_kernel(
    grad_log_prob_ptr,
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    scale_ptr,
    mask_ptr,
    row_pieces_ptr,
    feature_pieces_ptr,
    scale_pieces_ptr,
    grad_scale_ptr,
    chunk_first,
    chunk_rows,
    outputs,
    program_blocks,
    num_samples,
    batch,
    num_features,
    HIDDEN_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_HIDDEN: tl.constexpr,
    NEED_LINEAR: tl.constexpr,
    NEED_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """A program takes BLOCK_D features and `program_blocks` blocks of rows, in all samples.

    Rows are those of the chunk. Pieces of rows, [tiles, S * rows * (H + 1)]: a tile's part of
    grad_hidden [S, rows, H], if needed, and of log_prob [S, rows]. Pieces of features, [programs,
    D * (H + 2)]: grad_weight [D, H], grad_bias [D] and grad_scale [D].
    """
    tile, program = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tile * BLOCK_D + tl.arange(0, BLOCK_D)
    columns = column[None, :]
    unit = tl.arange(0, BLOCK_H)[None, :]
    weight = _load_matrix(weight_ptr, column, column < num_features, HIDDEN_DIM, BLOCK_H)
    bias = _load_bias(bias_ptr, columns, num_features, HAS_BIAS)
    row_pieces_ptr += tile * outputs * (HIDDEN_DIM + 1)

    grad_weight = tl.zeros((BLOCK_D, BLOCK_H), dtype=tl.float32)
    grad_bias = tl.zeros((BLOCK_D,), dtype=tl.float32)
    grad_scale = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for block in range(program_blocks):
        # numbers within the chunk; `rows` within the batch
        row = (program * program_blocks + block) * BLOCK_B + tl.arange(0, BLOCK_B)
        exists = row < chunk_rows
        rows = (chunk_first + row)[:, None]
        inside = exists[:, None] & (columns < num_features)
        values = _load_values(x_ptr, rows * num_features + columns, inside)
        observed = _load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK)
        scale = _load_scale(scale_ptr, rows, columns, inside, num_features, SCALE)
        inverse = 1.0 / scale
        entry_scale = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
        # of a sample: where its rows are, and where its results go
        position, output = chunk_first + row, row
        for _ in range(num_samples):
            hidden = _load_matrix(hidden_ptr, position, exists, HIDDEN_DIM, BLOCK_H)
            grad = tl.load(grad_log_prob_ptr + position, mask=exists, other=0.0)
            mean = tl.dot(hidden, tl.trans(weight), input_precision=PRECISION) + bias
            scaled = tl.where(observed, (values - mean) * inverse, 0.0)
            log_prob = row_pieces_ptr + outputs * HIDDEN_DIM + output
            tl.store(log_prob, _log_prob(scaled, scale, observed), mask=exists)

            factor = tl.where(observed, grad.to(tl.float32)[:, None] * inverse, 0.0)
            grad_mean = scaled * factor
            if NEED_HIDDEN:
                part = tl.dot(grad_mean, weight, input_precision=PRECISION)
                to = row_pieces_ptr + output[:, None] * HIDDEN_DIM + unit
                tl.store(to, part, mask=exists[:, None] & (unit < HIDDEN_DIM))
            if NEED_LINEAR:
                grad_weight += tl.dot(tl.trans(grad_mean), hidden, input_precision=PRECISION)
                grad_bias += tl.sum(grad_mean, axis=0)
            if NEED_SCALE:
                entry_scale += (scaled * scaled - 1.0) * factor
            position += batch
            output += chunk_rows
        if NEED_SCALE:
            if SCALE == "entry":
                tl.store(grad_scale_ptr + rows * num_features + columns, entry_scale, mask=inside)
            else:
                grad_scale += tl.sum(entry_scale, axis=0)

    feature_pieces_ptr += program * num_features * (HIDDEN_DIM + 2)
    if NEED_LINEAR:
        to = feature_pieces_ptr + column[:, None] * HIDDEN_DIM + unit
        inside = (column < num_features)[:, None] & (unit < HIDDEN_DIM)
        tl.store(to, grad_weight, mask=inside)
        to = feature_pieces_ptr + num_features * HIDDEN_DIM + column
        tl.store(to, grad_bias, mask=column < num_features)
    if NEED_SCALE:
        if SCALE == "feature":
            to = feature_pieces_ptr + num_features * (HIDDEN_DIM + 1) + column
            tl.store(to, grad_scale, mask=column < num_features)
        elif SCALE == "scalar":
            number = program * tl.num_programs(0) + tile
            tl.store(scale_pieces_ptr + number, tl.sum(grad_scale, axis=0))


@triton.jit
def _sum_of_pieces(
    pieces_ptr,
    element,
    exists,
    num_pieces,
    stride,
    BLOCK_PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums [BLOCK] of elements over the pieces, which lie `stride` apart."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, num_pieces, BLOCK_PIECES):
        piece = (first + tl.arange(0, BLOCK_PIECES)).to(tl.int64)[:, None]
        offsets = piece * stride + element[None, :]
        inside = (piece < num_pieces) & exists[None, :]
        total += tl.sum(tl.load(pieces_ptr + offsets, mask=inside, other=0.0), axis=0)
    return total


@triton.jit
def _add_to(ptr, offset, value, inside, ADD: tl.constexpr):
    if ADD:
        value += tl.load(ptr + offset, mask=inside, other=0.0)
    tl.store(ptr + offset, value, mask=inside)


@triton.jit
def _linear_gaussian_log_likelihood_sum_kernel(
    row_pieces_ptr,
    feature_pieces_ptr,
    scale_pieces_ptr,
    log_prob_ptr,
    grad_hidden_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    grad_scale_ptr,
    num_tiles,
    num_programs,
    chunk_first,
    chunk_rows,
    outputs,
    row_programs,
    feature_programs,
    batch,
    num_features,
    HIDDEN_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_HIDDEN: tl.constexpr,
    NEED_LINEAR: tl.constexpr,
    NEED_SCALE: tl.constexpr,
    SCALE: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds up the pieces of a chunk; sums over rows join those of the chunks before (ADD).

    The first `row_programs` programs add tiles, the next `feature_programs` add programs, and one
    more adds all pieces of a scalar scale's gradient.
    """
    pid = tl.program_id(0)
    if pid < row_programs:
        element = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        size = outputs * (HIDDEN_DIM + 1)
        in_hidden = element < outputs * HIDDEN_DIM
        exists = (element < size) & (in_hidden == 0)
        if NEED_HIDDEN:
            exists = element < size
        total = _sum_of_pieces(
            row_pieces_ptr, element, exists, num_tiles, size, BLOCK_PIECES, BLOCK
        )
        if NEED_HIDDEN:
            # samples lie a batch apart, those of the pieces a chunk
            output = element // HIDDEN_DIM
            sample = output // chunk_rows
            to = (sample * (batch - chunk_rows) + chunk_first) * HIDDEN_DIM + element
            tl.store(grad_hidden_ptr + to, total, mask=in_hidden)
        output = element - outputs * HIDDEN_DIM
        to = output // chunk_rows * (batch - chunk_rows) + chunk_first + output
        tl.store(log_prob_ptr + to, total, mask=exists & (in_hidden == 0))
    elif pid < row_programs + feature_programs:
        element = (pid - row_programs).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        weights = num_features * HIDDEN_DIM
        size = weights + 2 * num_features
        in_weight = element < weights
        in_scale = (element >= weights + num_features) & (element < size)
        in_bias = (element >= weights) & (element < weights + num_features)
        exists = element < 0
        if NEED_LINEAR:
            exists = exists | in_weight | in_bias
        if NEED_SCALE and SCALE == "feature":
            exists = exists | in_scale
        total = _sum_of_pieces(
            feature_pieces_ptr, element, exists, num_programs, size, BLOCK_PIECES, BLOCK
        )
        if NEED_LINEAR:
            _add_to(grad_weight_ptr, element, total, in_weight, ADD)
            if HAS_BIAS:
                _add_to(grad_bias_ptr, element - weights, total, in_bias, ADD)
        if NEED_SCALE and SCALE == "feature":
            _add_to(grad_scale_ptr, element - weights - num_features, total, in_scale, ADD)
    elif NEED_SCALE and SCALE == "scalar":
        element = tl.arange(0, BLOCK)
        count = num_tiles * num_programs
        pieces = (count + BLOCK - 1) // BLOCK
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for piece in range(pieces):
            number = piece * BLOCK + element
            total += tl.load(scale_pieces_ptr + number, mask=number < count, other=0.0)
        value = tl.sum(total, axis=0)
        if ADD:
            value += tl.load(grad_scale_ptr)
        tl.store(grad_scale_ptr, value)


def _tile(hidden_dim: int) -> dict[str, int]:
    """Tile shapes and warps: what compiles without spills, see the tests of the machine code."""
    block = block_of(hidden_dim)
    features, warps = {16: (64, 4), 32: (64, 4), 64: (64, 8), 128: (32, 8), 256: (32, 8)}[block]
    return {"BLOCK_B": 32, "BLOCK_D": features, "BLOCK_H": block, "num_warps": warps}


def _prepared(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> tuple[dict[str, Tensor], dict[str, object]] | None:
    """Contiguous inputs by name and the constants of both kernels; None for what they leave out."""
    if hidden.dtype == torch.float64 or weight.dtype == torch.float64:
        return None
    if hidden.shape[-1] > LARGEST_HIDDEN:
        return None
    tensors = {
        "hidden_ptr": hidden.contiguous(),
        "weight_ptr": weight.contiguous(),
        "bias_ptr": weight if bias is None else bias.contiguous(),
        "x_ptr": x.contiguous(),
        "scale_ptr": scale.contiguous(),
        "mask_ptr": x if mask is None else mask.contiguous(),
    }
    if mask is not None and mask.dtype == torch.bool:
        tensors["mask_ptr"] = tensors["mask_ptr"].view(torch.uint8)
    per_one = scale.dim() == 0 or scale.shape == (1,)
    constants = {
        "HIDDEN_DIM": hidden.shape[-1],
        "HAS_BIAS": bias is not None,
        "SCALE": "scalar" if per_one else ("feature", "entry")[scale.dim() - 1],
        "MASK": "nan" if mask is None else "bool" if mask.dtype == torch.bool else "bits",
    }
    return tensors, constants


def linear_gaussian_log_likelihood_fwd(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """`reference.linear_gaussian_log_likelihood_fwd`."""
    prepared = _prepared(hidden, weight, bias, x, scale, mask)
    if prepared is None:
        return NotImplemented
    tensors, constants = prepared
    num_samples, batch, hidden_dim = hidden.shape
    log_prob = hidden.new_empty((num_samples, batch), dtype=torch.float32)
    if log_prob.numel() == 0:
        return log_prob
    tile = _tile(hidden_dim)
    _linear_gaussian_log_likelihood_fwd_kernel[(triton.cdiv(batch, tile["BLOCK_B"]), num_samples)](
        **tensors,
        log_prob_ptr=log_prob,
        batch=batch,
        num_features=x.shape[1],
        **constants,
        PRECISION=input_precision(),
        **tile,
        enable_fp_fusion=True,
    )
    return log_prob


def linear_gaussian_log_likelihood_bwd(
    grad_log_prob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    need_hidden: bool,
    need_linear: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.linear_gaussian_log_likelihood_bwd`."""
    prepared = _prepared(hidden, weight, bias, x, scale, mask)
    if prepared is None:
        return NotImplemented
    tensors, constants = prepared
    num_samples, batch, hidden_dim = hidden.shape
    num_features = x.shape[1]
    some_bias = weight if bias is None else bias
    shapes = (
        hidden.shape if need_hidden else (0,),
        weight.shape if need_linear else (0,),
        (num_features,) if need_linear and bias is not None else (0,),
        scale.shape if need_scale else (0,),
    )
    # pieces are added up in float32, whatever the inputs are
    make = hidden.new_empty if hidden.numel() and num_features else hidden.new_zeros
    log_prob = make((num_samples, batch), dtype=torch.float32)
    gradients = [make(shape, dtype=torch.float32) for shape in shapes]
    if hidden.numel() and num_features:
        needs = {
            "NEED_HIDDEN": need_hidden,
            "NEED_LINEAR": need_linear,
            "NEED_SCALE": need_scale,
        }
        _backward(
            grad_log_prob.contiguous(),
            tensors,
            constants | needs,
            hidden.shape,
            log_prob,
            gradients,
        )
    grad_hidden, grad_weight, grad_bias, grad_scale = gradients
    return (
        log_prob,
        grad_hidden.to(hidden.dtype),
        grad_weight.to(weight.dtype),
        grad_bias.to(some_bias.dtype),
        grad_scale.to(scale.dtype),
    )


def _backward(
    grad_log_prob: Tensor,
    tensors: dict[str, Tensor],
    constants: dict[str, object],
    shape: torch.Size,
    log_prob: Tensor,
    gradients: list[Tensor],
) -> None:
    """Fills `log_prob` and `gradients`, one chunk of the batch after the other."""
    num_samples, batch, hidden_dim = shape
    num_features = tensors["x_ptr"].shape[1]
    tile = _tile(hidden_dim)
    block_rows = tile["BLOCK_B"]
    num_tiles = triton.cdiv(num_features, tile["BLOCK_D"])
    row_elements = num_samples * (hidden_dim + 1)
    most_blocks = max(1, CHUNK_ELEMENTS // (num_tiles * row_elements * block_rows))
    blocks = min(most_blocks, triton.cdiv(batch, block_rows))
    program_blocks = triton.cdiv(blocks, max(1, PROGRAMS // num_tiles))
    programs = triton.cdiv(blocks, program_blocks)

    pieces = {
        name: log_prob.new_empty(size)
        for name, size in (
            ("row_pieces_ptr", num_tiles * min(blocks * block_rows, batch) * row_elements),
            ("feature_pieces_ptr", programs * num_features * (hidden_dim + 2)),
            ("scale_pieces_ptr", programs * num_tiles),
        )
    }
    for first in range(0, batch, blocks * block_rows):
        rows = min(blocks * block_rows, batch - first)
        chunk = {"chunk_first": first, "chunk_rows": rows, "outputs": num_samples * rows}
        _linear_gaussian_log_likelihood_bwd_kernel[(num_tiles, programs)](
            grad_log_prob_ptr=grad_log_prob,
            **tensors,
            **pieces,
            grad_scale_ptr=gradients[3],
            **chunk,
            program_blocks=program_blocks,
            num_samples=num_samples,
            batch=batch,
            num_features=num_features,
            **constants,
            PRECISION=input_precision(),
            **tile,
            enable_fp_fusion=True,
        )
        row_programs = triton.cdiv(rows * row_elements, REDUCED_ELEMENTS)
        feature_programs = triton.cdiv(num_features * (hidden_dim + 2), REDUCED_ELEMENTS)
        _linear_gaussian_log_likelihood_sum_kernel[(row_programs + feature_programs + 1,)](
            **pieces,
            log_prob_ptr=log_prob,
            grad_hidden_ptr=gradients[0],
            grad_weight_ptr=gradients[1],
            grad_bias_ptr=gradients[2],
            grad_scale_ptr=gradients[3],
            num_tiles=num_tiles,
            num_programs=programs,
            **chunk,
            row_programs=row_programs,
            feature_programs=feature_programs,
            batch=batch,
            num_features=num_features,
            **{name: value for name, value in constants.items() if name != "MASK"},
            ADD=first > 0,
            BLOCK_PIECES=REDUCED_PIECES,
            BLOCK=REDUCED_ELEMENTS,
            num_warps=4,
            enable_fp_fusion=True,
        )
