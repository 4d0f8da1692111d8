"""Adam for the parameters that all rows share: relays, decoder, scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._devices import beside, capturing
from ..ops import ops
from ..reference.fused_step import SHARED_BLOCK
from .residual_scale import ResidualScale

# elements: parameters begin where vectors, Triton's wide loads and `finish_step` like them to
_ALIGNMENT = SHARED_BLOCK


def shared_adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam for {"params": ..., "lr": ...} of each learning rate: `SharedAdam` where it can.

    A group may have a "weight_decay" too, which is decoupled; or a "residual_scale" beside logarithms of
    scales, which are then driven by that `ResidualScale`.

    Raises:
        ValueError: there is a "residual_scale" beside parameters of several dtypes or devices.
    """
    groups = [group for group in groups if group["params"]]
    parameters = [parameter for group in groups for parameter in group["params"]]
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    if len(kinds) == 1 and parameters[0].dtype in (torch.float32, torch.float64):
        return SharedAdam(groups)
    if any("residual_scale" in group for group in groups):
        raise ValueError(
            "scale_update: expected 'adam' where relays, decoder and scale are not all float32 or all "
            "float64 on one device, got 'closed-form'"
        )
    capturable = all(device.type == "cuda" for _, device in kinds)
    if any(group.get("weight_decay") for group in groups):
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=True, capturable=capturable)
    return torch.optim.Adam(groups, fused=True, capturable=capturable)


class SharedAdam(torch.optim.Optimizer):
    """`torch.optim.Adam`, in one launch for each learning rate.

    The parameters of all groups lie in one buffer until `detach`, and so do their moments and their
    gradients.

    Args:
        groups: {"params": ..., "lr": ...} for each learning rate; and a "weight_decay" where it is not
            0: decoupled, as in `torch.optim.AdamW`, a step takes lr weight_decay of each number off it.
            One with a "residual_scale", a `ResidualScale`, is left to that.
        betas, eps: as in torch.

    Attributes:
        reduce: called with all gradients [P] before each step; begins to add them up over processes, in
            place, and returns what waits for that.
        values, exp_avg, exp_avg_sq: parameters and moments [P]; each begins at a multiple of 32.
        group: int32 [P / 32], the group that each 32 elements belong to.
        steps: int64 [G], steps taken by each group.
        lr: float64 [G], the learning rates as the device knows them, see `set_lr`.
        weight_decay: float64 [G], the decay of each group; None where no group has any.

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
        groups = [dict(group) for group in groups]
        # of each group
        self.scales: list[ResidualScale | None] = [g.pop("residual_scale", None) for g in groups]
        super().__init__(groups, {"betas": betas, "eps": eps, "weight_decay": 0.0})
        like = self.param_groups[0]["params"][0].detach()
        counts = [sum(_padded(group["params"])) for group in self.param_groups]
        buffers = [like.new_zeros(sum(counts)) for _ in range(4)]
        self.values, self.exp_avg, self.exp_avg_sq, self._grad = buffers
        numbers = [
            number for number, count in enumerate(counts) for _ in range(count // _ALIGNMENT)
        ]
        self.group = torch.tensor(numbers, dtype=torch.int32, device=like.device)
        device = beside(like.device)
        self.steps = torch.zeros(len(counts), dtype=torch.int64, device=device)
        self.lr = torch.zeros(len(counts), dtype=torch.float64, device=device)
        decays = [group["weight_decay"] for group in self.param_groups]
        self.weight_decay: Tensor | None = None
        if any(decays):
            self.weight_decay = torch.tensor(decays, dtype=torch.float64, device=device)
        # the numbers that are in `lr`
        self._lr_set: list[Any] = [None] * len(counts)
        parts = zip(*(buffer.split(counts) for buffer in buffers), strict=True)
        counters = zip(self.steps.split(1), self.lr.unbind(), strict=True)
        self._parts = [
            _Part(group["params"], own, *counter)
            for group, own, counter in zip(self.param_groups, parts, counters, strict=True)
        ]
        for part in self._parts:
            self.state.update(part.states())
        self.reduce: Callable[[Tensor], Callable[[], None]] | None = None
        # what waits for the sums that `begin` has begun
        self._begun: Callable[[], None] | None = None
        # the last thing that is done: until then the parameters are where they were
        for part in self._parts:
            part.take_over()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step from the gradients there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        begun, self._begun = self._begun or self._collected(), None
        begun()
        captured = capturing(self.lr)
        if not captured:  # a graph would keep the learning rate of its capture
            self.set_lr()
        for group, part, scale in zip(self.param_groups, self._parts, self.scales, strict=True):
            if scale is not None:
                scale.step(*part.each(), part.step)
                continue
            ops.adam_step(
                part.values,
                part.exp_avg,
                part.exp_avg_sq,
                part.grad[None],
                part.step,
                part.lr,
                *group["betas"],
                group["eps"],
                group["weight_decay"],
            )
        return loss

    @torch.no_grad()
    def begin(self) -> None:
        """Where processes sum gradients, takes those there are: the sums are under way until `step`."""
        if self.reduce is not None:
            self._begun = self._collected()

    def _collected(self) -> Callable[[], None]:
        """Takes the gradients; what waits for their sums."""
        for part in self._parts:
            part.collect()
        return _nothing if self.reduce is None else self.reduce(self._grad)

    @torch.no_grad()
    def set_lr(self) -> None:
        """Brings learning rates that have changed in the groups to the device."""
        for number, group in enumerate(self.param_groups):
            lr = group["lr"]
            if isinstance(lr, Tensor) or lr != self._lr_set[number]:
                self._parts[number].lr.fill_(lr)
                self._lr_set[number] = lr

    def place(self, parameter: Tensor) -> int | None:
        """The element of the buffers at which a parameter begins; None if it has none there."""
        start = 0
        for group in self.param_groups:
            for own, size in zip(group["params"], _padded(group["params"]), strict=True):
                if own is parameter:
                    return start if size else None
                start += size
        return None

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads in place; learning rates, betas, eps and weight decay stay.

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
        for part in self._parts:
            part.detach()


def _nothing() -> None:
    pass


def _padded(parameters: list[torch.nn.Parameter]) -> list[int]:
    """Elements that each parameter takes in a buffer."""
    return [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]


class _Part:
    """What the buffers hold of one group."""

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        buffers: Sequence[Tensor],
        step: Tensor,
        lr: Tensor,
    ) -> None:
        self.parameters = parameters
        self.originals = [parameter.detach() for parameter in parameters]
        sizes = _padded(parameters)

        def parts(whole: Tensor) -> list[Tensor]:
            return [
                part.narrow(0, 0, parameter.numel()).view(parameter.shape)
                for part, parameter in zip(whole.split(sizes), parameters, strict=True)
            ]

        self.values, self.exp_avg, self.exp_avg_sq, self.grad = buffers
        self._values, self._exp_avgs, self._exp_avg_sqs, self._grads = map(parts, buffers)
        self.step, self.lr = step, lr

    @torch.no_grad()
    def take_over(self) -> None:
        """From now on the parameters lie in the buffer."""
        for parameter, value in zip(self.parameters, self._values, strict=True):
            value.copy_(parameter.detach())
            parameter.data = value

    def states(self) -> dict[Tensor, dict[str, Tensor]]:
        moments = zip(self.parameters, self._exp_avgs, self._exp_avg_sqs, strict=True)
        return {p: {"step": self.step, "exp_avg": m, "exp_avg_sq": v} for p, m, v in moments}

    def each(self) -> tuple[list[Tensor], list[Tensor]]:
        """Each parameter and its gradient, without what lies between them."""
        return self._values, self._grads

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
