"""Options and state of `RowAdam`: what it takes, from arguments and from files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import _checks

Mode = Literal["dense", "lazy", "row"]
MODES: tuple[Mode, ...] = get_args(Mode)
OPTIONS = ("lr", "betas", "eps", "weight_decay", "mode")
# steps are counted in tables of int32
MAX_STEPS = 2**31 - 1


class Loaded(NamedTuple):
    """What a state_dict holds, checked."""

    options: dict[str, Any]
    # None: an optimiser that has not stepped
    entries: dict[str, Tensor] | None
    num_steps: int


class Stepped(NamedTuple):
    """What a step of dense mode reads and writes, for code that takes it itself.

    Attributes:
        tables: rows, both moments and the step that each row is up to date with, [N, ...].
        clock, history: as in `reference.row_adam_step`.
        lr: float64, one element.
        options: beta 1, beta 2 and eps.
        weight_decay: decoupled.
    """

    tables: tuple[Tensor, Tensor, Tensor, Tensor]
    clock: Tensor
    history: Tensor
    lr: Tensor
    options: tuple[float, float, float]
    weight_decay: float


def check_options(options: Mapping[str, Any]) -> None:
    """lr, betas, eps, weight_decay and mode; reads an lr back that lies on a device."""
    mode, lr, weight_decay = options["mode"], options["lr"], options["weight_decay"]
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    check_betas(options["betas"], mode)
    _checks.check_positive_float("eps", options["eps"])
    if _checks.check_non_negative("weight_decay", weight_decay) > 0 and mode != "dense":
        raise ValueError(f"weight_decay: expected 0 in mode {mode!r}, got {weight_decay!r}")
    if isinstance(lr, Tensor):
        if lr.numel() != 1 or not lr.is_floating_point():
            raise ValueError(
                f"lr: expected a floating point tensor of one element, got {lr.dtype} "
                f"{_checks.shape_of(lr)}"
            )
        lr = lr.item()
    check_lr(lr, weight_decay)


def check_lr(lr: Any, weight_decay: float) -> None:
    """A learning rate, as a number."""
    _checks.check_non_negative("lr", lr)
    if not lr * weight_decay < 1.0:
        raise ValueError(
            f"lr: expected less than 1 / weight_decay = {1 / weight_decay!r}, got {lr!r}: a step would "
            "turn the signs of the rows"
        )


def refused(lr: Tensor, weight_decay: float) -> Tensor:
    """The same of a learning rate on a device, which is not waited for: bool, of the shape of lr."""
    bound = 1.0 / weight_decay if weight_decay > 0 else math.inf
    return ~((lr >= 0.0) & (lr < bound))


def check_betas(betas: Any, mode: str) -> None:
    """Decay rates of the two moments, and that dense mode has a closed form for them."""
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas) or betas[1] == 0.0:
        raise ValueError(f"betas: expected 0 <= beta1 < 1 and 0 < beta2 < 1, got {betas!r}")
    if mode == "dense" and betas[0] > betas[1]:
        # the steps of a resting row go as (b1 / sqrt(b2))^j until sqrt(v) is down at eps, and as b1^j
        # from then on: for b1 <= b2 the first ones are most of the whole wherever that is
        raise ValueError(f"betas: expected beta1 <= beta2 in mode 'dense', got {betas!r}")


def check_state_dict(
    state_dict: Mapping[str, Any], own: Mapping[str, Tensor], options: Mapping[str, Any]
) -> Loaded:
    """Looks at all of a state_dict, and changes nothing.

    Args:
        state_dict: of a RowAdam, of torch's Adam or AdamW for dense mode, of SparseAdam for lazy.
        own: the tensors that entries are to be copied into.
        options: those of the optimiser, for what the state_dict does not say.

    Raises:
        ValueError: it is damaged, or that of another optimiser or another table.
    """
    try:
        group, entries = _parts(state_dict)
        options = _options(group, options)
        if entries is None:
            return Loaded(options, None, 0)
        _check_entries(entries, own)
        num_steps = _count("step", entries["step"])
        if "row_step" in own:
            _check_visits(entries["row_step"], num_steps)
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"state_dict: cannot be read: {type(error).__name__}: {error}") from error
    return Loaded(options, {name: as_tensor(entries[name]) for name in own}, num_steps)


def _parts(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The one group, and the entries of its one parameter."""
    for name in ("param_groups", "state"):
        if name not in state_dict:
            raise ValueError(f"state_dict: expected an entry {name!r}, got {sorted(state_dict)}")
    groups, state = state_dict["param_groups"], state_dict["state"]
    if len(groups) != 1:
        raise ValueError(f"param_groups: expected one group, got {len(groups)}")
    params = groups[0].get("params", [0])
    if len(params) != 1:
        raise ValueError(f"params: expected one parameter, the rows, got {len(params)}: {params}")
    # a number, or the parameter's name where torch.distributed.checkpoint has been at work
    if list(state) not in ([], params):
        raise ValueError(f"state: expected entries of {params[0]!r} alone, got {list(state)}")
    return groups[0], state.get(params[0])


def _options(group: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    # torch's own do not say: Adam has options that SparseAdam has not
    adam = "betas" not in group or "amsgrad" in group or "weight_decay" in group
    mode = group.get("mode", "dense" if adam else "lazy")
    if mode != own["mode"]:
        raise ValueError(f"mode: expected {own['mode']!r}, got {mode!r}")
    for name in ("amsgrad", "maximize"):
        if group.get(name):
            raise ValueError(f"{name}: expected False, got True: RowAdam has no such option")
    if group.get("weight_decay") and not group.get("decoupled_weight_decay", True):
        raise ValueError(
            f"weight_decay: expected decoupled decay, got coupled {group['weight_decay']}"
        )
    options = {name: group[name] for name in own if name in group}
    check_options({**own, **options})
    if "initial_lr" in group:
        _checks.check_non_negative("initial_lr", float(group["initial_lr"]))
        options["initial_lr"] = group["initial_lr"]
    return options


def _check_entries(entries: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    for name, value in own.items():
        if name not in entries:
            raise ValueError(f"state_dict: expected an entry {name!r}, got {sorted(entries)}")
        if name == "step":
            continue
        found = _checks.check_tensor(name, entries[name])
        _checks.check_shape(name, found, tuple(value.shape))
        if found.is_floating_point() != value.is_floating_point():
            raise ValueError(f"{name}: expected {value.dtype}, got {found.dtype}")
        if torch.bfloat16 in (found.dtype, value.dtype) and found.dtype != value.dtype:
            raise ValueError(
                f"{name}: expected {value.dtype}, got {found.dtype}; make the RowAdam with "
                f"moment_dtype={found.dtype}"
            )


def as_tensor(value: Any) -> Tensor:
    """A tensor as it is, a number as a tensor on the CPU, whatever torch's default device is."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")


def _count(name: str, value: Any) -> int:
    number = as_tensor(value)
    if number.numel() != 1:
        raise ValueError(f"{name}: expected one number, got shape {_checks.shape_of(number)}")
    count = number.item()
    if not (0 <= count <= MAX_STEPS and count == int(count)):
        raise ValueError(f"{name}: expected an integer from 0 to {MAX_STEPS}, got {count!r}")
    return int(count)


def _check_visits(visits: Tensor, num_steps: int) -> None:
    low, high = (int(bound) for bound in torch.aminmax(visits))
    if low < 0 or high > num_steps:
        wrong = low if low < 0 else high
        raise ValueError(f"row_step: expected 0 to {num_steps}, the steps taken, got {wrong}")
