"""What `fit` is asked for: its arguments beside model and data, their defaults and checks, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import torch

from .. import _checks
from ..optim import MODES, Mode

KLWeight = float | Callable[[int], float]
_Check = Callable[[str, Any], Any]
# what moves the scale of a likelihood
ScaleUpdate = Literal["adam", "closed-form"]
SCALE_UPDATES: tuple[ScaleUpdate, ...] = get_args(ScaleUpdate)


def _unless_none(check: _Check) -> _Check:
    return lambda name, value: None if value is None else check(name, value)


def _check_mode(name: str, value: Any) -> str:
    if value not in MODES:
        raise ValueError(f"{name}: expected one of {', '.join(MODES)}, got {value!r}")
    return str(value)


def _check_scale_update(name: str, value: Any) -> str:
    if value not in SCALE_UPDATES:
        raise ValueError(f"{name}: expected one of {', '.join(SCALE_UPDATES)}, got {value!r}")
    return str(value)


def _check_annealing(name: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name}: expected a factor and a share of the epochs, got {value!r}")
    factor = _checks.check_positive_float(f"{name}[0]", value[0])
    return factor, _checks.check_between(f"{name}[1]", value[1], 0.0, 1.0)


def _check_share(name: str, value: Any) -> float:
    share = _checks.check_non_negative(name, value)
    if share >= 1.0:
        raise ValueError(f"{name}: expected a share below 1, got {value!r}")
    return share


def _check_kl_weight(name: str, value: Any) -> KLWeight:
    return value if callable(value) else _checks.check_non_negative(name, value)


# from name and value to the value as it is kept; raises where it is out of its range
_CHECKS: dict[str, _Check] = {
    "epochs": _checks.check_positive_int,
    "batch_size": _checks.check_positive_int,
    "lr": _checks.check_positive_float,
    "standardize": _checks.check_bool,
    "resume": _checks.check_bool,
    "checkpoint_async": _checks.check_bool,
    "optimizer": _check_mode,
    "kl_weight": _check_kl_weight,
    "decoder_weight_decay": _checks.check_non_negative,
    "scale_update": _check_scale_update,
    "scale_annealing": _check_annealing,
    "eval_every": _checks.check_count,
    "held_out": _check_share,
    "checkpoint_every": _checks.check_non_negative,
    "posterior_lr": _unless_none(_checks.check_positive_float),
    "seed": lambda _, value: _checks.check_seed(value),
    "block_rows": _unless_none(_checks.check_positive_int),
}
# what a resume compares, in the order in which checkpoints hold it
_KEPT = (
    "batch_size",
    "lr",
    "posterior_lr",
    "optimizer",
    "kl_weight",
    "seed",
    "eval_every",
    "block_rows",
    "moment_dtype",
    "standardize",
)
# what a resume compares as well, and their values in checkpoints that do not say so: those hold what
# is not as usual
_ADDED = {
    "decoder_weight_decay": 0.0,
    "scale_update": "adam",
    "scale_annealing": None,
    "held_out": 0.0,
}
# what the command line says of those that are its options
_TEXTS = {
    "epochs": "passes over the data",
    "batch_size": "rows per step",
    "lr": "learning rate",
    "posterior_lr": "learning rate of the posteriors and relays",
    "kl_weight": "factor of the KL divergence",
    "decoder_weight_decay": "share of the decoder's weights that is taken off at a step, over --lr",
    "scale_update": "what moves the scale of a Gaussian likelihood: adam, as in the paper, or "
    "closed-form, the root mean square of recent residuals",
    "optimizer": "what happens to rows outside the batch: dense equals torch's Adam on all rows, lazy "
    "leaves them alone, row corrects by each row's own visits",
    "checkpoint_every": "time between checkpoints, which follow an epoch; 0: after each",
    "seed": "of everything random",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `fit` beside model and data, checked; `fit` says what they mean.

    Raises:
        ValueError, TypeError: an argument is out of its range.

    Example:
        >>> from rvi_fast.training.settings import Settings
        >>> Settings(lr=0.01).inference_lr
        0.01
        >>> Settings(optimizer="sgd")
        Traceback (most recent call last):
        ...
        ValueError: optimizer: expected one of dense, lazy, row, got 'sgd'
    """

    standardize: bool = True
    epochs: int = 250
    batch_size: int = 256
    lr: float = 1e-3
    posterior_lr: float | None = None
    optimizer: Mode = "dense"
    kl_weight: KLWeight = 1.0
    decoder_weight_decay: float = 0.0
    scale_update: ScaleUpdate = "adam"
    scale_annealing: Sequence[float] | None = None
    seed: int = 0
    device: torch.device | str | None = None
    progress: bool = True
    eval_every: int = 1
    held_out: float = 0.0
    callbacks: Sequence[Callable[..., bool | None]] = ()
    run_dir: str | os.PathLike[str] | None = None
    resume: bool = False
    checkpoint_every: float = 30.0
    checkpoint_async: bool = False
    capture: bool = True
    block_rows: int | None = None
    moment_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.resume and self.run_dir is None:
            raise ValueError("run_dir: expected a directory to resume from, got None")
        if self.held_out and not self.eval_every:
            raise ValueError(
                f"eval_every: expected at least 1 with held_out={self.held_out}, got 0"
            )
        if self.lr * self.decoder_weight_decay >= 1.0:
            raise ValueError(
                f"decoder_weight_decay: expected less than 1 / lr = {1.0 / self.lr:g}, got "
                f"{self.decoder_weight_decay!r}"
            )

    @property
    def inference_lr(self) -> float:
        """The learning rate of rows and relays, or of an encoder."""
        return self.lr if self.posterior_lr is None else self.posterior_lr

    @property
    def directory(self) -> Path | None:
        """`run_dir` as a path."""
        return None if self.run_dir is None else Path(self.run_dir)

    def kl_weight_in(self, epoch: int) -> float:
        """The factor of the KL divergence in an epoch, counted from 0, annealed."""
        weight = self.kl_weight(epoch) if callable(self.kl_weight) else self.kl_weight
        if self.scale_annealing is None:
            return weight
        # of a Gaussian whose scale is f s, over that of s: the squares of residuals count 1 / f^2
        factor, share = self.scale_annealing
        left = max(0.0, 1.0 - epoch / (share * self.epochs)) if share else 0.0
        return weight * factor ** (2.0 * left)

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds of them, as JSON knows it: what a resume must have in common."""
        values = {name: getattr(self, name) for name in _KEPT}
        values["posterior_lr"] = self.inference_lr
        if callable(self.kl_weight):
            values["kl_weight"] = "function"
        values["moment_dtype"] = name_of(self.moment_dtype)
        added = {name: getattr(self, name) for name in _ADDED}
        if self.scale_annealing is not None:
            factor, share = self.scale_annealing
            # the epoch in which it ends, which must not move when more are asked for
            added["scale_annealing"] = [factor, share * self.epochs]
        return values | {n: value for n, value in added.items() if value != _ADDED[n]}

    def called(self) -> dict[str, Any]:
        """What processes that train together must have in common."""
        given = self.run_dir is not None
        return {
            **_ADDED,
            **self.kept(),
            "epochs": self.epochs,
            "resume": self.resume,
            "checkpoint_async": self.checkpoint_async,
            "run_dir given": given,
        }

    @classmethod
    def of_rows(cls, kept: Mapping[str, Any]) -> Self:
        """Those that the optimiser of rows is made with, from what a checkpoint holds of them.

        Raises:
            KeyError, ValueError, TypeError: it does not hold them, or others.
        """
        narrow = kept.get("moment_dtype") == name_of(torch.bfloat16)
        return cls(
            posterior_lr=kept["posterior_lr"],
            optimizer=kept["optimizer"],
            block_rows=kept["block_rows"],
            moment_dtype=torch.bfloat16 if narrow else None,
        )

    def check_same(self, kept: Mapping[str, Any], source: object) -> None:
        """Compares them with those that a checkpoint holds.

        Args:
            kept: what `kept` was when it was written.
            source: where, for the error.

        Raises:
            ValueError: names the first that differs.
        """
        kept = {**_ADDED, **kept}
        for name, value in {**_ADDED, **self.kept()}.items():
            if kept.get(name) != value:
                raise ValueError(
                    f"{name}: expected {kept.get(name)!r} as in {source}, got {value!r}"
                )

    @classmethod
    def option(cls, name: str) -> tuple[type, Any, str]:
        """Type, default and help of one of them, for a command line."""
        hint = get_type_hints(cls)[name]
        if get_origin(hint) is Literal:
            return str, getattr(cls, name), _TEXTS[name]
        kind = next(k for k in get_args(hint) or (hint,) if k in (int, float, str))
        return kind, getattr(cls, name), _TEXTS[name]


def name_of(dtype: torch.dtype | None) -> str | None:
    """A dtype as checkpoints name it."""
    return None if dtype is None else str(dtype).removeprefix("torch.")
