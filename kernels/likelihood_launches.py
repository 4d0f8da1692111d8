"""Launches of the two walks of `likelihood_walks`, for a batch or for rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import likelihood_walks as walks
from ._common import input_precision, launch, row_error
from .data import kind_of_mask, kind_of_scale, marks_of
from .pieces import share
from .weights import FEATURES_TILES, ROWS_TILES, tile_of


class Inputs(NamedTuple):
    """What both kernels are given by name: tensors, and constants."""

    tensors: dict[str, Any]
    constants: dict[str, Any]


def inputs_of(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    index: Tensor | None,
    scale: Tensor | None,
    mask: Tensor | None,
    law: str,
) -> Inputs:
    """Inputs from hidden [S, B, H] and weight [D, H]; with an index those of rows of tables."""
    error, num_data = (None, None) if index is None else (row_error(x.device), len(x))
    tensors = {
        "hidden_ptr": hidden.contiguous(),
        "weight_ptr": weight.contiguous(),
        "bias_ptr": weight if bias is None else bias.contiguous(),
        "x_ptr": x.contiguous(),
        # what is not read is any tensor: helpers of Triton 3.6 cannot return an argument that is None
        "scale_ptr": weight if scale is None else scale.contiguous(),
        "mask_ptr": x if mask is None else marks_of(mask),
        "index_ptr": index,
        "error_ptr": error,
        "num_data": num_data,
    }
    constants = {
        "LAW": law,
        "HIDDEN_DIM": hidden.shape[-1],
        "HAS_BIAS": bias is not None,
        "SCALE": kind_of_scale(scale),
        "LOG_SCALE": index is not None and scale is not None,
        "MASK": kind_of_mask(mask),
        "PRECISION": input_precision(),
    }
    return Inputs(tensors, constants)


def _gradient(grad: Tensor | float) -> dict[str, Any]:
    own = grad if isinstance(grad, Tensor) else None
    return {"grad_log_prob_ptr": own, "grad_of_all": grad if own is None else None}


def over_features(grad: Tensor | float | None, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Pieces of log_prob [p, S, B] and grad_hidden [p, S, B, H]; float32.

    Args:
        grad: gradient of log_prob, [S, B] or one number; without one there is no grad_hidden.
        inputs: from `inputs_of`, of at least one row and one feature.
    """
    hidden, num_features = inputs.tensors["hidden_ptr"], len(inputs.tensors["weight_ptr"])
    num_samples, batch, hidden_dim = hidden.shape
    tile = tile_of(ROWS_TILES, hidden_dim, inputs.constants["LAW"])
    blocks, tiles = triton.cdiv(batch, tile["BLOCK_B"]), triton.cdiv(num_features, tile["BLOCK_D"])
    program_tiles = share(tiles, blocks * num_samples)
    pieces = triton.cdiv(tiles, program_tiles)
    log_prob = hidden.new_empty((pieces, num_samples, batch), dtype=torch.float32)
    shape = (pieces, *hidden.shape) if grad is not None else (1, 0)
    grad_hidden = hidden.new_empty(shape, dtype=torch.float32)
    launch(walks._linear_log_likelihood_rows_kernel, (blocks, pieces, num_samples))(
        # what is not read is any tensor
        **_gradient(log_prob if grad is None else grad),
        **inputs.tensors,
        log_prob_ptr=log_prob,
        grad_hidden_ptr=grad_hidden,
        program_tiles=program_tiles,
        outputs=num_samples * batch,
        batch=batch,
        num_features=num_features,
        **inputs.constants,
        NEED_HIDDEN=grad is not None,
        **tile,
        num_stages=2,
        enable_fp_fusion=True,
    )
    return log_prob, grad_hidden


class Walk(NamedTuple):
    """How the kernel that owns features is launched: pieces of each sum, and programs of a piece."""

    pieces: int
    programs: int
    program_blocks: int
    tile: dict[str, int]


def walk_over_rows(
    batch: int, num_features: int, hidden_dim: int, law: str, most: int | None = None
) -> Walk:
    """As many pieces as it takes to fill a GPU, but no more than `most`."""
    tile = tile_of(FEATURES_TILES, hidden_dim, law)
    blocks = triton.cdiv(batch, tile["BLOCK_B"])
    programs = triton.cdiv(num_features, tile["BLOCK_D"])
    program_blocks = max(share(blocks, programs), triton.cdiv(blocks, most or blocks))
    return Walk(triton.cdiv(blocks, program_blocks), programs, program_blocks, tile)


def over_rows(
    walk: Walk,
    grad: Tensor | float,
    inputs: Inputs,
    outputs: Sequence[Tensor | None],
    piece_stride: int | None,
) -> None:
    """Writes pieces of the gradients of weight [D, H], bias [D] and scale, float32.

    That of the scale is [D], or one number for each program, or the result itself where the scale is
    entry-wise.

    Args:
        walk: from `walk_over_rows`.
        grad, inputs: as in `over_features`.
        outputs: where the three begin; None for what is not needed.
        piece_stride: elements between pieces, of which the numbers of programs then fill
            `SHARED_BLOCK` elements each; None where pieces lie one behind another.
    """
    hidden, weight = inputs.tensors["hidden_ptr"], inputs.tensors["weight_ptr"]
    grad_weight, grad_bias, grad_scale = outputs
    launch(walks._linear_log_likelihood_features_kernel, (walk.programs, walk.pieces))(
        **_gradient(grad),
        **inputs.tensors,
        grad_weight_ptr=grad_weight,
        grad_bias_ptr=grad_bias,
        grad_scale_ptr=grad_scale,
        piece_stride=piece_stride,
        program_blocks=walk.program_blocks,
        num_samples=hidden.shape[0],
        batch=hidden.shape[1],
        num_features=len(weight),
        **inputs.constants,
        NEED_LINEAR=grad_weight is not None or grad_bias is not None,
        NEED_SCALE=grad_scale is not None,
        **walk.tile,
        # registers are short for what would be loaded ahead of a product
        num_stages=1 + (hidden.shape[2] > 64),
        enable_fp_fusion=True,
    )
