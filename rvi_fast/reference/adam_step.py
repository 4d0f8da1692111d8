"""`adam_step`: Adam for the parameters that all rows share."""

from __future__ import annotations

import torch
from torch import Tensor

from .._op_checks import checked
from .moments import flushed


@checked
def adam_step(
    params: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grads: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step of torch's Adam for parameters [P] that all rows share, in place.

    The gradient is the sum of `grads` [n, P], one part for each piece of the batch. `step` (int64, one
    element) counts up by one; `lr` is float64, one element. Weight decay is decoupled, as in AdamW.
    """
    step += 1
    # one element each, whatever their dimensions
    count, lr = step.to(torch.float64).reshape(()), lr.to(torch.float64).reshape(())
    grad = grads.to(params.dtype).sum(0)
    moment = flushed(exp_avg + (grad - exp_avg) * (1.0 - beta1), exp_avg.dtype)
    square = flushed(exp_avg_sq * beta2 + grad * grad * (1.0 - beta2), exp_avg.dtype)
    step_size = (lr / (1.0 - beta1**count)).to(params.dtype)
    root_correction = (1.0 - beta2**count).sqrt().to(params.dtype)
    decay = (1.0 - lr * weight_decay).to(params.dtype)
    denominator = square.sqrt() / root_correction + eps
    params.copy_(params * decay - step_size * moment / denominator)
    exp_avg.copy_(moment)
    exp_avg_sq.copy_(square)
