"""Log-likelihoods: documentation, argument checks, call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks, ops, reference
from ..layout import BITS_PER_WORD
from ..reference.laws import LAWS


def gaussian_log_likelihood(
    x: Tensor,
    mean: Tensor,
    scale: Tensor | float,
    mask: Tensor | None = None,
    *,
    checked: bool = False,
) -> Tensor:
    """Log-likelihood of the observed entries of each row under independent Gaussians, in nats.

        log p(x_b) = sum_{d observed} (-1/2 ((x_bd - mean_bd) / s)^2 - log s - 1/2 log 2 pi)

    Args:
        x: data [B, D]: float32, float64, float16, bfloat16, or uint8 pixels, which count as x / 255.
        mean: [B, D] or [S, B, D], floating point.
        scale: standard deviation s > 0: a number, or a tensor [], [D] or [B, D].
        mask: bool [B, D], true = observed, or the bits of such a mask, int32 [B, ceil(D / 32)], as
            `pack_mask` makes them. Without it NaN in x marks what is missing.
        checked: refuse NaN where the mask says observed, and a scale that is not positive, at the
            cost of a pass over both (and a synchronisation on a GPU).

    Returns:
        [B] or [S, B], at least float32. A row with nothing observed has 0.

    Gradient:
        To `mean`, to `scale` where it is a tensor, and to `x` where it is floating point; once and
        twice differentiable. Missing entries give 0.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or a scale that do not fit.

    Note:
        A NaN where the mask says observed gives NaN unless `checked`. The result is deterministic.

    Source:
        `rvi_fast.reference.gaussian_log_likelihood`.

    Example:
        >>> import math, torch, rvi_fast
        >>> x = torch.tensor([[1.0, math.nan], [math.nan, math.nan]])
        >>> rvi_fast.gaussian_log_likelihood(x, torch.zeros(2, 2), 1.0)
        tensor([-1.4189,  0.0000])
    """
    return _log_likelihood("gaussian", "mean", x, mean, scale, mask, checked)


def bernoulli_log_likelihood(x: Tensor, logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-likelihood of the observed zeros and ones of each row, given logits, in nats.

        log p(x_b) = sum_{d observed} (x_bd l_bd - log(1 + exp(l_bd)))

    Args:
        x: data [B, D], 0 and 1, or numbers between them, which are not looked at: float32, float64,
            float16, bfloat16, or uint8 pixels, which count as x / 255.
        logits: l = log(p / (1 - p)), [B, D] or [S, B, D], floating point.
        mask: bool [B, D], true = observed, or the bits of such a mask, int32 [B, ceil(D / 32)], as
            `pack_mask` makes them. Without it NaN in x marks what is missing.

    Returns:
        [B] or [S, B], at least float32. A row with nothing observed has 0.

    Gradient:
        To `logits`, and to `x` where it is floating point; once and twice differentiable. Missing
        entries give 0.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit.

    Note:
        A NaN where the mask says observed gives NaN. The result is deterministic.

    Source:
        `rvi_fast.reference.laws.BernoulliEntries`.

    Example:
        >>> import math, torch, rvi_fast
        >>> x = torch.tensor([[1.0, math.nan], [0.0, 1.0]])
        >>> rvi_fast.bernoulli_log_likelihood(x, torch.zeros(2, 2))
        tensor([-0.6931, -1.3863])
    """
    return _log_likelihood("bernoulli", "logits", x, logits, None, mask)


def laplace_log_likelihood(
    x: Tensor,
    location: Tensor,
    scale: Tensor | float,
    mask: Tensor | None = None,
    *,
    checked: bool = False,
) -> Tensor:
    """Log-likelihood of the observed entries of each row under independent Laplace laws, in nats.

        log p(x_b) = sum_{d observed} (-|x_bd - location_bd| / s - log 2 s)

    Args:
        x, mask, checked: as in `gaussian_log_likelihood`.
        location: mean, mode and median, [B, D] or [S, B, D], floating point.
        scale: mean absolute deviation s > 0: a number, or a tensor [], [D] or [B, D].

    Returns:
        [B] or [S, B], at least float32. A row with nothing observed has 0.

    Gradient:
        To `location`, to `scale` where it is a tensor, and to `x` where it is floating point; once and
        twice differentiable. Missing entries give 0, and so do those at the kink, where x equals its
        location, to both.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or a scale that do not fit.

    Note:
        A NaN where the mask says observed gives NaN unless `checked`. The result is deterministic.

    Source:
        `rvi_fast.reference.laws.LaplaceEntries`.

    Example:
        >>> import math, torch, rvi_fast
        >>> x = torch.tensor([[1.0, math.nan], [math.nan, math.nan]])
        >>> rvi_fast.laplace_log_likelihood(x, torch.zeros(2, 2), 1.0)
        tensor([-1.6931,  0.0000])
    """
    return _log_likelihood("laplace", "location", x, location, scale, mask, checked)


def linear_gaussian_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | float,
    mask: Tensor | None = None,
    *,
    checked: bool = False,
) -> Tensor:
    """`gaussian_log_likelihood` around the output of a linear layer, which is never written down.

        mean_b = W hidden_b + bias
        log p(x_b) = sum_{d observed} (-1/2 ((x_bd - mean_bd) / s)^2 - log s - 1/2 log 2 pi)

    Equals `gaussian_log_likelihood(x, torch.nn.functional.linear(hidden, weight, bias), scale, mask)`
    to rounding; nothing of size B x D is allocated, in the backward pass neither.

    Args:
        hidden: input of the layer, [B, H] or [S, B, H], floating point.
        weight: [D, H], floating point.
        bias: [D] in the dtype of `weight`, or None.
        x: data [B, D]: float32, float64, float16, bfloat16, or uint8 pixels, which count as x / 255.
        scale: standard deviation s > 0: a number, or a tensor [], [D] or [B, D].
        mask: bool [B, D], true = observed. Without it NaN in x marks what is missing.
        checked: as in `gaussian_log_likelihood`.

    Returns:
        [B] or [S, B] in the wider dtype of `hidden` and `weight`, at least float32. A row with
        nothing observed has 0.

    Gradient:
        To `hidden`, `weight`, `bias`, to `scale` where it is a tensor, and to `x` where it is
        floating point (that one is as large as x); once and twice differentiable.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or a scale that do not fit.

    Note:
        Products and sums are float32 or wider, under autocast too. A NaN where the mask says
        observed gives NaN unless `checked`. The result is deterministic.

    Source:
        `rvi_fast.reference.linear_gaussian_log_likelihood`.

    Example:
        >>> import math, torch, rvi_fast
        >>> x = torch.tensor([[1.0, math.nan], [3.0, 2.0]])
        >>> hidden, weight = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]])
        >>> rvi_fast.linear_gaussian_log_likelihood(hidden, weight, None, x, 1.0)
        tensor([-0.9189, -4.3379])
    """
    return _linear("gaussian", hidden, weight, bias, x, scale, mask, checked)


def linear_bernoulli_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """`bernoulli_log_likelihood` given the output of a linear layer, which is never written down.

    Equals `bernoulli_log_likelihood(x, torch.nn.functional.linear(hidden, weight, bias), mask)` to
    rounding.

    Args:
        hidden, weight, bias: the layer and its input, as in `linear_gaussian_log_likelihood`.
        x, mask: as in `bernoulli_log_likelihood`.

    Returns:
        [B] or [S, B] in the wider dtype of `hidden` and `weight`, at least float32.

    Gradient:
        To `hidden`, `weight`, `bias`, and to `x` where it is floating point; once and twice
        differentiable.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit.

    Source:
        `rvi_fast.reference.linear_log_likelihood`.

    Example:
        >>> import torch, rvi_fast
        >>> x, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]])
        >>> rvi_fast.linear_bernoulli_log_likelihood(torch.ones(1, 1), weight, None, x)
        tensor([-2.0064])
    """
    return _linear("bernoulli", hidden, weight, bias, x, None, mask)


def linear_laplace_log_likelihood(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | float,
    mask: Tensor | None = None,
    *,
    checked: bool = False,
) -> Tensor:
    """`laplace_log_likelihood` around the output of a linear layer, which is never written down.

    Args, returns, gradient and errors: `linear_gaussian_log_likelihood`, with 0 at the kink.

    Source:
        `rvi_fast.reference.linear_log_likelihood`.

    Example:
        >>> import torch, rvi_fast
        >>> x, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]])
        >>> rvi_fast.linear_laplace_log_likelihood(torch.ones(1, 1), weight, None, x, 1.0)
        tensor([-3.3863])
    """
    return _linear("laplace", hidden, weight, bias, x, scale, mask, checked)


def _log_likelihood(
    law: str,
    name: str,
    x: Tensor,
    output: Tensor,
    scale: Tensor | float | None,
    mask: Tensor | None,
    checked: bool = False,
) -> Tensor:
    """The op of a law, whose output has a name of its own in errors, with the checks in front."""
    _checks.check_tensor(name, output)
    if not output.is_floating_point():
        raise TypeError(f"{name}: expected floating point, got {output.dtype}")
    batch, sampled = _check_data(x, output), output.dim() == 3
    _checks.check_shape(name, output, (*output.shape[:-2], *batch) if sampled else batch)
    scales = _check_scale(x, scale, output, checked) if LAWS[law].scaled else None
    _check_mask(x, mask, output, checked)
    log_prob = ops.log_likelihood(x, output if sampled else output[None], scales, mask, law)
    return log_prob if sampled else log_prob[0]


def _linear(
    law: str,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    scale: Tensor | float | None,
    mask: Tensor | None,
    checked: bool = False,
) -> Tensor:
    """The op of the last layer and a law, with the checks in front."""
    _check_layer(hidden, weight, bias, x)
    scales = _check_scale(x, scale, weight, checked) if LAWS[law].scaled else None
    _check_mask(x, mask, weight, checked)
    inputs = weight, bias, x, scales, mask, law
    if hidden.dim() == 3:
        return ops.linear_log_likelihood(hidden, *inputs)
    return ops.linear_log_likelihood(hidden[None], *inputs)[0]


def _check_layer(hidden: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> None:
    _checks.check_tensor("hidden", hidden)
    _checks.check_tensor("weight", weight)
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected floating point, got {tensor.dtype}")
    if hidden.dim() not in (2, 3):
        raise ValueError(
            f"hidden: expected shape [B, H] or [S, B, H], got {_checks.shape_of(hidden)}"
        )
    batch = _check_data(x, hidden)
    _checks.check_shape("hidden", hidden, (*hidden.shape[:-2], batch[0], hidden.shape[-1]))
    _checks.check_shape("weight", weight, (batch[1], hidden.shape[-1]))
    _checks.check_same_device("weight", weight, hidden.device)
    if bias is not None:
        _checks.check_tensor("bias", bias)
        _checks.check_shape("bias", bias, batch[1:])
        if bias.dtype != weight.dtype:
            raise TypeError(f"bias: expected the dtype of weight, {weight.dtype}, got {bias.dtype}")
        _checks.check_same_device("bias", bias, hidden.device)


def _check_data(x: Tensor, like: Tensor) -> tuple[int, ...]:
    """The shape of x, [B, D]."""
    _checks.check_tensor("x", x)
    if x.dtype not in _checks.DATA_DTYPES:
        raise TypeError(f"x: expected floating point or uint8, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"x: expected shape [B, D], got {_checks.shape_of(x)}")
    _checks.check_same_device("x", x, like.device)
    return tuple(x.shape)


def _check_scale(x: Tensor, scale: Any, like: Tensor, checked: bool) -> Tensor:
    """The scale as a tensor, with the dtype of `like` if it was a number."""
    batch = tuple(x.shape)
    if isinstance(scale, Tensor):
        _checks.check_shape("scale", scale, (), (1,), batch[1:], batch)
        _checks.check_same_device("scale", scale, like.device)
        if checked and not bool((scale > 0).all()):
            raise ValueError("scale: expected positive numbers, got one that is not")
    else:
        _checks.check_positive_float("scale", scale)
        scale = torch.full((), scale, dtype=like.dtype, device=like.device)
    return scale


def _check_mask(x: Tensor, mask: Tensor | None, like: Tensor, checked: bool) -> None:
    batch = tuple(x.shape)
    if mask is not None:
        _checks.check_tensor("mask", mask)
        packed = mask.dtype == torch.int32
        if not packed and mask.dtype != torch.bool:
            raise TypeError(f"mask: expected dtype bool, or int32 with its bits, got {mask.dtype}")
        words = (batch[0], -(-batch[1] // BITS_PER_WORD))
        _checks.check_shape("mask", mask, words if packed else batch)
        _checks.check_same_device("mask", mask, like.device)
        if checked and x.is_floating_point():
            observed = reference.unpack_bits(mask, batch[1]) if packed else mask
            if bool((wrong := torch.isnan(x) & observed).any()):
                row, column = _checks.first_entry(wrong)
                raise ValueError(
                    f"x: NaN at row {row}, column {column}, where the mask says observed"
                )


def pack_mask(mask: Tensor) -> Tensor:
    """The bits of a mask, an eighth of its memory, for `gaussian_log_likelihood`.

    Args:
        mask: bool [B, D], true = observed.

    Returns:
        int32 [B, ceil(D / 32)]: entry d is bit d % 32 of word d // 32; bits beyond D are 0.

    Raises:
        TypeError, ValueError: not a bool tensor of two dimensions.

    Source:
        `rvi_fast.reference.pack_bits`.

    Example:
        >>> import torch, rvi_fast
        >>> rvi_fast.pack_mask(torch.tensor([[True, False, True], [False, True, True]]))
        tensor([[5],
                [6]], dtype=torch.int32)
    """
    _checks.check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected dtype bool, got {mask.dtype}")
    if mask.dim() != 2:
        raise ValueError(f"mask: expected shape [B, D], got {_checks.shape_of(mask)}")
    return reference.pack_bits(mask)
