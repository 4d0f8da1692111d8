"""Adam for the parameters that all rows share: relays, decoder, scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..ops import ops

# elements: parameters begin where vectors, and Triton's wide loads, like them to
_ALIGNMENT = 32


def shared_adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam for {"params": ..., "lr": ...} of each learning rate: `SharedAdam` where it can."""
    groups = [group for group in groups if group["params"]]
    parameters = [parameter for group in groups for parameter in group["params"]]
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    if len(kinds) == 1 and parameters[0].dtype in (torch.float32, torch.float64):
        return SharedAdam(groups)
    capturable = all(device.type == "cuda" for _, device in kinds)
    return torch.optim.Adam(groups, fused=True, capturable=capturable)


class SharedAdam(torch.optim.Optimizer):
    """`torch.optim.Adam`, in one launch for each learning rate.

    The parameters of a group lie in one buffer until `detach`, and so do their gradients and moments.

    Args:
        groups: {"params": ..., "lr": ...} for each learning rate.
        betas, eps: as in torch.

    Note:
        A parameter without a gradient is stepped as if it were zero.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps})
        self._buffers = [_Buffers(group["params"]) for group in self.param_groups]
        for buffers in self._buffers:
            self.state.update(buffers.states())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the gradients there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, buffers in zip(self.param_groups, self._buffers, strict=True):
            buffers.collect()
            captured = buffers.lr.is_cuda and torch.cuda.is_current_stream_capturing()
            if not captured:  # a graph would keep the learning rate of its capture
                buffers.lr.fill_(group["lr"])
            ops.adam_step(
                buffers.values,
                buffers.exp_avg,
                buffers.exp_avg_sq,
                buffers.grad[None],
                buffers.step,
                buffers.lr,
                *group["betas"],
                group["eps"],
                0.0,
            )
        return loss

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads in place; learning rates, betas and eps stay.

        Raises:
            ValueError, KeyError: other shapes or missing entries.
        """
        entries = state_dict["state"]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for position, parameter in enumerate(parameters):
            for name, value in self.state[parameter].items():
                _checks.check_shape(name, entries[position][name], tuple(value.shape))
        for position, parameter in enumerate(parameters):
            for name, value in self.state[parameter].items():
                value.copy_(entries[position][name])

    def detach(self) -> None:
        """Puts the parameters back where they were; the optimiser is of no use afterwards."""
        for buffers in self._buffers:
            buffers.detach()


class _Buffers:
    """Parameters, gradients and moments of one group, each in one piece."""

    @torch.no_grad()
    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.originals = [parameter.detach() for parameter in parameters]
        sizes = [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]
        like = parameters[0]

        def make() -> tuple[Tensor, list[Tensor]]:
            whole = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device)
            parts = whole.split(sizes)
            return whole, [
                part.narrow(0, 0, parameter.numel()).view(parameter.shape)
                for part, parameter in zip(parts, parameters, strict=True)
            ]

        self.values, self._values = make()
        self.grad, self._grads = make()
        self.exp_avg, self._exp_avgs = make()
        self.exp_avg_sq, self._exp_avg_sqs = make()
        self.step = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.lr = torch.zeros((), dtype=torch.float64, device=like.device)
        for parameter, value in zip(parameters, self._values, strict=True):
            value.copy_(parameter.detach())
            parameter.data = value

    def states(self) -> dict[Tensor, dict[str, Tensor]]:
        moments = zip(self.parameters, self._exp_avgs, self._exp_avg_sqs, strict=True)
        return {p: {"step": self.step, "exp_avg": m, "exp_avg_sq": v} for p, m, v in moments}

    def collect(self) -> None:
        """Copies the parameters' gradients to where the op reads them."""
        grads = [parameter.grad for parameter in self.parameters]
        for own, grad in zip(self._grads, grads, strict=True):
            if grad is None:
                own.zero_()
        pairs = [(o, g) for o, g in zip(self._grads, grads, strict=True) if g is not None]
        if pairs:
            torch._foreach_copy_([own for own, _ in pairs], [grad for _, grad in pairs])

    def detach(self) -> None:
        for parameter, original, value in zip(
            self.parameters, self.originals, self._values, strict=True
        ):
            original.copy_(value)
            parameter.data = original
