"""A way around hidden layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Skip(nn.Module):
    """What layers give, and beside it what they were given: [..., I] -> [..., H + I].

    Before a linear layer it makes the inputs' own share of the outputs linear, and the layers' that is
    added to it.

    Args:
        inner: from [..., I] to [..., H].

    Example:
        >>> import torch
        >>> from rvi_fast.models import Skip
        >>> Skip(torch.nn.ReLU())(torch.tensor([-1.0, 2.0])).tolist()
        [0.0, 2.0, -1.0, 2.0]
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., H + I]: the layers' output, then the inputs."""
        return torch.cat((self.inner(inputs), inputs), -1)
