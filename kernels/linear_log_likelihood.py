"""Log-likelihood of a batch given the output of a linear layer, never written down.

Math:
    forward     o_b = W h_b + bias,   log p(x_b) = sum_{d observed} entry(x_bd, o_bd, s), see `laws`
    backward    E = slope factor where observed, else 0:
                grad_h = E W,   grad_W = E^T h,   grad_bias = sum_b E_b,   grad_s = sum factor scale_term
    `x` and what is observed are constants.

Shapes:
    hidden [S, B, H] and weight [D, H], H up to 256, bias [D] or None: float32, float16 or bfloat16;
    x [B, D] uint8 (counts as x / 255), float16, bfloat16, float32 or float64; scale [], [1], [D] or
    [B, D]; mask None (NaN in x marks what is missing), bool [B, D], or int32 [B, ceil(D / 32)] with
    entry d in bit d % 32 of word d // 32. log_prob [S, B] float32.

Saved:
    The inputs alone. The output is computed again by each kernel of the backward pass: four products.

Traffic:
    Two kernels, each a walk as attention's: the first owns rows and walks over the features (log_prob,
    grad_hidden; alone it is the forward pass), the second owns features and walks over the rows
    (grad_weight, grad_bias, grad_scale). Bytes: x, mask and an entry-wise scale once in each, weight and
    hidden once, outputs once. Out of the cache, per row: 4 D H / BLOCK_B of the weight in the first,
    4 H D / BLOCK_D of hidden in the second. FLOP per row: 8 D H backward, 2 D H forward.
    One kernel for all would read x once and take 6 D H, but has to add up grad_hidden over the tiles of
    features (or grad_weight over those of rows) in memory, 12 H D / BLOCK_D bytes a row: 19.6 kB at
    D = 784 and H = 64 with the tiles of 32 by 32 that its three products leave registers for. The two
    take 12.5 kB, x again (3.1 kB) and a third more FLOP, and put nothing as large as x in memory.

Limits:
    A NaN in x where the mask says observed gives NaN; what stands at missing entries is never used. A
    row with nothing observed has 0. Sums are float32 in an order that depends on B, D, H, S, the law and
    whether the device multiplies in groups of warps (`weights.tile_of`).
    float64 layers, and H above 256, are left to the reference.

Source:
    `rvi_fast.reference.linear_log_likelihood_fwd` and `_bwd`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._op_checks import checked
from .likelihood_launches import Inputs, inputs_of, over_features, over_rows, walk_over_rows
from .pieces import add_up

LARGEST_HIDDEN = 256


def _covered(hidden: Tensor, weight: Tensor, x: Tensor) -> bool:
    """Whether the kernels can compute it."""
    double = torch.float64 in (hidden.dtype, weight.dtype)
    # rows within a tile fit 32 bits
    return not double and hidden.shape[-1] <= LARGEST_HIDDEN and x.shape[1] < 2**25


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
    """`reference.linear_log_likelihood_fwd`."""
    if not _covered(hidden, weight, x):
        return NotImplemented
    return _over_features(None, inputs_of(hidden, weight, bias, x, None, scale, mask, law))[0]


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
    """`reference.linear_log_likelihood_bwd`."""
    if not _covered(hidden, weight, x):
        return NotImplemented
    inputs = inputs_of(hidden, weight, bias, x, None, scale, mask, law)
    grad_log_prob = grad_log_prob.contiguous()
    log_prob, grad_hidden = _over_features(grad_log_prob if need_hidden else None, inputs)
    shapes = (
        weight.shape if need_linear else None,
        bias.shape if need_linear and bias is not None else None,
        scale.shape if need_scale and scale is not None else None,
    )
    grad_weight, grad_bias, grad_scale = _over_rows(grad_log_prob, inputs, shapes)
    return (
        log_prob,
        grad_hidden.to(hidden.dtype),
        grad_weight.to(weight.dtype),
        grad_bias.to(weight.dtype if bias is None else bias.dtype),
        grad_scale if scale is None else grad_scale.to(scale.dtype),
    )


def _over_features(grad_log_prob: Tensor | None, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """log_prob [S, B] and, with grad_log_prob, grad_hidden [S, B, H]; float32."""
    hidden = inputs.tensors["hidden_ptr"]
    if hidden.shape[:2].numel() == 0 or len(inputs.tensors["weight_ptr"]) == 0:
        shape = hidden.shape if grad_log_prob is not None else 0
        log_prob = hidden.new_zeros(hidden.shape[:2], dtype=torch.float32)
        return log_prob, hidden.new_zeros(shape, dtype=torch.float32)
    log_prob, grad_hidden = over_features(grad_log_prob, inputs)
    return add_up(log_prob), add_up(grad_hidden)


def _over_rows(
    grad_log_prob: Tensor, inputs: Inputs, shapes: tuple[torch.Size | None, ...]
) -> list[Tensor]:
    """Gradients of weight, bias and scale in float32; one without a shape has 0 elements."""
    hidden, num_features = inputs.tensors["hidden_ptr"], len(inputs.tensors["weight_ptr"])
    if hidden.numel() == 0 or num_features == 0 or shapes == (None, None, None):
        sizes = [0 if shape is None else shape for shape in shapes]
        return [hidden.new_zeros(size, dtype=torch.float32) for size in sizes]
    kind = inputs.constants["SCALE"]
    law = inputs.constants["LAW"]
    walk = walk_over_rows(hidden.shape[1], num_features, hidden.shape[2], law)
    counts = [walk.pieces] * 3
    if kind != "feature":
        counts[2] = 1 if kind == "entry" else walk.pieces * walk.programs
    parts = [
        None if shape is None else hidden.new_empty((count, *shape), dtype=torch.float32)
        for count, shape in zip(counts, shapes, strict=True)
    ]
    over_rows(walk, grad_log_prob, inputs, parts, piece_stride=None)
    return [
        hidden.new_empty(0, dtype=torch.float32) if part is None else add_up(part) for part in parts
    ]
