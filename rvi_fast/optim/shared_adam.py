"""Adam for the parameters that all rows share: relays, decoder, scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._devices import beside
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

    The parameters of a group lie in one buffer until `detach`, and so do their moments; the gradients of
    all groups lie in one.

    Args:
        groups: {"params": ..., "lr": ...} for each learning rate.
        betas, eps: as in torch.

    Attributes:
        reduce: called with all gradients [n] before each step, to change them in place.

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
        like = self.param_groups[0]["params"][0]
        sizes = [sum(_padded(group["params"])) for group in self.param_groups]
        self._grad = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device)
        self._buffers = [
            _Buffers(group["params"], grad)
            for group, grad in zip(self.param_groups, self._grad.split(sizes), strict=True)
        ]
        for buffers in self._buffers:
            self.state.update(buffers.states())
        self.reduce: Callable[[Tensor], None] | None = None
        # the last thing that is done: until then the parameters are where they were
        for buffers in self._buffers:
            buffers.take_over()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the gradients there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for buffers in self._buffers:
            buffers.collect()
        if self.reduce is not None:
            self.reduce(self._grad)
        for group, buffers in zip(self.param_groups, self._buffers, strict=True):
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


def _padded(parameters: list[torch.nn.Parameter]) -> list[int]:
    """Elements that each parameter takes in a buffer."""
    return [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]


class _Buffers:
    """Parameters, gradients and moments of one group, each in one piece; that of `grad` is given."""

    @torch.no_grad()
    def __init__(self, parameters: list[torch.nn.Parameter], grad: Tensor) -> None:
        self.parameters = parameters
        self.originals = [parameter.detach() for parameter in parameters]
        sizes, like = _padded(parameters), parameters[0]

        def parts(whole: Tensor) -> list[Tensor]:
            return [
                part.narrow(0, 0, parameter.numel()).view(parameter.shape)
                for part, parameter in zip(whole.split(sizes), parameters, strict=True)
            ]

        self.grad, self._grads = grad, parts(grad)
        self.values, self.exp_avg, self.exp_avg_sq = (torch.zeros_like(grad) for _ in range(3))
        self._values, self._exp_avgs = parts(self.values), parts(self.exp_avg)
        self._exp_avg_sqs = parts(self.exp_avg_sq)
        device = beside(like.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.lr = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def take_over(self) -> None:
        """From now on the parameters lie in the buffer."""
        for parameter, value in zip(self.parameters, self._values, strict=True):
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
