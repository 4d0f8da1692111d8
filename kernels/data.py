"""Tiles of data: values of x, which of them are observed, and scales.

`rows` and `columns` broadcast to the tile; `inside` says which of its entries exist. Where `rows` count
from the `first` row of a tile, as int64, the pointers are moved there: offsets within a tile fit 32
bits, which take half the registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXEL_SCALE = tl.constexpr(1.0 / 255.0)


@triton.jit
def load_values(pointers, inside):
    """float32; uint8 counts as x / 255."""
    values = tl.load(pointers, mask=inside, other=0)
    if pointers.dtype.element_ty == tl.uint8:
        return values.to(tl.float32) * PIXEL_SCALE
    else:
        return values.to(tl.float32)


@triton.jit
def mask_at_row(mask_ptr, first, num_features, MASK: tl.constexpr):
    """The pointer to the marks of a row."""
    if MASK == "nan":
        return mask_ptr
    elif MASK == "bool":
        return mask_ptr + first * num_features
    else:
        return mask_ptr + first * ((num_features + 31) // 32)


@triton.jit
def load_observed(mask_ptr, values, rows, columns, inside, num_features, MASK: tl.constexpr):
    """Which entries are there."""
    if MASK == "nan":
        return inside & (values == values)
    elif MASK == "bool":
        return tl.load(mask_ptr + rows * num_features + columns, mask=inside, other=0) != 0
    else:
        words = mask_ptr + rows * ((num_features + 31) // 32) + columns // 32
        return ((tl.load(words, mask=inside, other=0) >> (columns % 32)) & 1) != 0


@triton.jit
def scales_of_rows(scale_ptr, first, rows, num_features, SCALE: tl.constexpr):
    """The pointers to the scales of each row."""
    if SCALE == "entry":
        return scale_ptr + first * num_features + rows * num_features
    else:
        return scale_ptr


@triton.jit
def load_scale(scale_ptr, offsets, columns, inside, num_features, SCALE: tl.constexpr):
    """float32, of a shape that broadcasts to the tile; a law without a scale is given 1."""
    if SCALE == "none":
        return 1.0
    elif SCALE == "scalar":
        return tl.load(scale_ptr).to(tl.float32)
    elif SCALE == "feature":
        return tl.load(scale_ptr + columns, mask=columns < num_features, other=1.0).to(tl.float32)
    else:
        return tl.load(scale_ptr + offsets, mask=inside, other=1.0).to(tl.float32)


@triton.jit
def load_tile(
    x_ptr,
    mask_ptr,
    scale_ptr,
    first,
    rows,
    exists,
    start,
    columns,
    inside,
    num_features,
    MASK: tl.constexpr,
    SCALE: tl.constexpr,
    AXIS: tl.constexpr,
):
    """Values, observed and scale of a tile whose rows count from `first`, and its features from `start`.

    Features lie along AXIS, a power of two of them up to 64, and as many before them in whole tiles.
    """
    values = load_values(x_ptr + first * num_features + rows * num_features + columns, inside)
    marks = mask_at_row(mask_ptr, first, num_features, MASK)
    if MASK == "bits":
        # a word or two of each row hold all of the tile, which may lie beyond the last feature
        words = (num_features + 31) // 32
        word = start // 32
        there = tl.expand_dims(exists, AXIS) & (word < words)
        bits = tl.load(marks + rows * words + word, mask=there, other=0)
        if columns.shape[AXIS] > 32:
            tl.static_assert(columns.shape[AXIS] == 64)
            there = there & (word + 1 < words)
            later = tl.load(marks + rows * words + (word + 1), mask=there, other=0)
            bits = tl.where(columns - start < 32, bits, later)
        observed = inside & (((bits >> (columns % 32)) & 1) != 0)
    else:
        observed = load_observed(marks, values, rows, columns, inside, num_features, MASK)
    scales = scales_of_rows(scale_ptr, first, rows, num_features, SCALE)
    return values, observed, load_scale(scales, columns, columns, inside, num_features, SCALE)


def kind_of_scale(scale: Tensor | None) -> str:
    """SCALE of the kernels."""
    if scale is None:
        return "none"
    if scale.dim() == 0 or scale.shape == (1,):
        return "scalar"
    return ("feature", "entry")[scale.dim() - 1]


def kind_of_mask(mask: Tensor | None) -> str:
    """MASK of the kernels."""
    return "nan" if mask is None else "bool" if mask.dtype == torch.bool else "bits"


def marks_of(mask: Tensor | None) -> Tensor | None:
    """The mask as the kernels read it: contiguous, bytes or words."""
    if mask is None:
        return None
    mask = mask.contiguous()
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask
