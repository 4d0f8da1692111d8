"""What a model asks of the law of its data, and what every law gets from here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .. import _checks, reference
from .._devices import device_row

LAWS: dict[str, type[Likelihood]] = {}
"""Laws by name: what `likelihood=` in the builders, `Mixed` and checkpoints call them."""


class Likelihood(nn.Module):
    """log p(x | outputs) of the observed entries of rows, and what else a law of data has to say.

    A subclass says how many outputs of a decoder it takes and gives `forward`; all else has a default,
    or says in an error what is missing. Declared with a name, `class Own(Likelihood, law="own")`, it
    is known by that name to the builders and to `rvi_fast.load`; its `forward` must draw nothing then.

    Args:
        num_features: D.

    Attributes:
        num_features: D, the columns of x.
        location_scale: whether data of this law may be shifted and scaled and have this law again, so
            that `fit` may standardise them. Every finite number is possible then.
        pixels: whether x may be uint8, which counts as x / 255.
        estimated: "mean" or "mode": what `impute` fills in where it is not told.
        of_each_column: arguments with which what is learned is learned of each feature, for `Mixed`.
        step_tensors: tensors [batch, `num_outputs`] that log-likelihood and gradient by autograd hold at
            once, at most, for `estimate_memory`; some are float64.

    Example:
        >>> import torch, rvi_fast
        >>> class Logistic(rvi_fast.likelihoods.Elementwise):
        ...     def log_density(self, x, outputs):
        ...         return x - outputs - 2 * torch.nn.functional.softplus(x - outputs)
        >>> Logistic(2)(torch.tensor([[0.0, torch.nan]]), torch.zeros(1, 2))
        tensor([-1.3863])
    """

    law: str | None = None
    location_scale: bool = False
    pixels: bool = False
    estimated: str = "mean"
    step_tensors: float = 24.0
    of_each_column: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, law: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        # a subclass of a law has another one until it gives it a name
        cls.law = law
        if law is not None:
            LAWS[law] = cls

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = _checks.check_positive_int("num_features", num_features)

    @property
    def num_outputs(self) -> int | None:
        """Width of the decoder's output; None for a likelihood that does not say."""
        return self.num_features

    @property
    def standardizable(self) -> list[bool]:
        """For each column whether `fit` may standardise it."""
        return [self.location_scale] * self.num_features

    @property
    def numeric(self) -> list[bool]:
        """For each column whether x is a number there, and not the code of a class."""
        return [True] * self.num_features

    @property
    def classes(self) -> list[int]:
        """For each column of how many classes x is the code, from 0 on; 2 for yes/no, 0 for numbers."""
        return [0] * self.num_features

    @property
    def widths(self) -> list[int]:
        """For each column how many of the `num_outputs` are its own, one column after the other."""
        return [(self.num_outputs or self.num_features) // self.num_features] * self.num_features

    @property
    def restricted(self) -> bool:
        """Whether some finite numbers are no data of this law, so that `check` has to look at them."""
        return not all(self.standardizable)

    @property
    def fused(self) -> bool:
        """Whether `of_linear` and `step_of_linear` stand for a call of this object."""
        return False

    @property
    def num_noise(self) -> int:
        """Standard normal numbers that `sample` takes for a row."""
        return self.num_features

    def arguments(self) -> dict[str, Any] | None:
        """What makes this law again, beside `num_features`, for JSON; None where nothing can say it."""
        return {}

    @classmethod
    def made(cls, num_features: int, arguments: dict[str, Any]) -> Self:
        """The law that `arguments` has described."""
        return cls(num_features, **arguments)

    if TYPE_CHECKING:  # nn.Module says of a call that it gives anything

        def __call__(self, x: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor: ...

    def forward(self, x: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-likelihood of the observed entries of each row, in nats, at least float32.

        Args:
            x: data [B, D], NaN = missing where there is no mask.
            outputs: the decoder's, [B, K] or [S, B, K] with K = `num_outputs`.
            mask: bool [B, D], true = observed.

        Returns:
            [B], or [S, B]; 0 for a row with nothing observed.
        """
        raise NotImplementedError

    def mean(self, outputs: Tensor) -> Tensor:
        """The expected x [..., D], given outputs [..., K]."""
        raise ValueError(lacking(self, "mean"))

    def expected(self, outputs: Tensor) -> Tensor:
        """What x is on average, in as many numbers as there are outputs [..., K].

        Of columns with an output for each class their probabilities, of all others the mean.
        """
        return self.mean(outputs)

    def outputs_of(self, expected: Tensor) -> Tensor:
        """Outputs [..., K] of which `expected` gives these numbers [..., K]."""
        raise ValueError(lacking(self, "outputs_of"))

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable x [..., D], given outputs [..., K]."""
        raise ValueError(lacking(self, "mode"))

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws x [..., D], given outputs [..., K].

        Args:
            outputs: [..., K].
            noise: standard normal draws [..., `num_noise`], of which x is a function: the same noise
                gives the same x.
            generator: what noise is drawn from where there is none; torch's default one if not given.
        """
        raise ValueError(lacking(self, "sample"))

    def estimate(self, outputs: Tensor, kind: str | None = None) -> Tensor:
        """What `impute` fills in [..., D]: the "mean" or the "mode"; `estimated` if not told."""
        kind = self.estimated if kind is None else kind
        return self.mode(outputs) if kind == "mode" else self.mean(outputs)

    def scored(self, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the elastic error compares, both [B, D]: x and its mean, if nothing else means more."""
        return x, self.mean(outputs)

    def totals(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `initial_outputs` has to know of data [B, D], [2, K] float64 where the device has it.

        Sums over the observed entries, so that those of the parts of a table add up.
        """
        return torch.zeros(2, self.num_outputs or self.num_features, device=x.device)

    def initial_outputs(self, totals: Tensor) -> Tensor:
        """Outputs [K] with which every row has the law of its column as a whole; NaN where any will do.

        `fit` starts there, by the bias of the decoder's last layer: a network finds what differs between
        rows, and would take long to find the logarithm of a count in the thousands.

        Args:
            totals: [2, K], see `totals`.
        """
        return torch.full_like(totals[0], torch.nan)

    def of_rows(self, x: Tensor, mask: Tensor | None = None) -> Likelihood:
        """The law of these rows where it depends on what was observed of them; the law itself else.

        Args:
            x: data [B, D], NaN = missing where there is no mask.
            mask: bool [B, D], true = observed.

        Returns:
            A view with the same parameters, for outputs [B, K] and [S, B, K].
        """
        return self

    def widened(self, factor: float) -> Likelihood:
        """A view of this law with a scale `factor` times as large, without gradient to the scale.

        Raises:
            ValueError: the law has no scale.
        """
        raise ValueError(
            f"scale_factor: expected 1 for a {type(self).__name__}, which has no scale, got {factor!r}"
        )

    def check(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        rows: Any = None,
        columns: Sequence[int | str] | None = None,
    ) -> None:
        """Refuses data that this law cannot give. `fit`, `infer` and `impute` ask it of all they read.

        Args:
            x: data [B, D] as a user has them, NaN = missing where there is no mask; or uint8.
            mask: bool [B, D], true = observed.
            rows: their numbers [B], for errors.
            columns: numbers or names of the features, for errors.

        Raises:
            ValueError: names value, row and column.
            TypeError: x is uint8, for a law that pixels cannot have.
        """
        if x.dtype == torch.uint8:
            if not self.pixels:
                raise TypeError(
                    f"x: expected floating point for a {type(self).__name__}, got torch.uint8: pixels, "
                    "which count as x / 255"
                )
            values = x.to(torch.float32) / 255
            observed = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        else:
            values, observed = x, ~torch.isnan(x) if mask is None else mask
        wrong = observed & ~(torch.isfinite(values) & self.legal(values))
        if bool(wrong.any()):
            row, column = _checks.first_entry(wrong)
            value = x[row, column].item()
            expected = self.support(column)
            if x.dtype == torch.uint8:
                expected = f"{expected} as x / 255"
            raise ValueError(
                f"x: expected {expected}, or missing, for a {type(self).__name__}, got {value} at row "
                f"{row if rows is None else int(rows[row])}, column "
                f"{column if columns is None else columns[column]}"
            )

    def legal(self, values: Tensor) -> Tensor:
        """Which finite numbers [B, D] this law can give, bool [B, D]."""
        return torch.ones_like(values, dtype=torch.bool)

    def support(self, column: int) -> str:
        """The data that a feature can hold, in the words of an error."""
        return "finite numbers"

    def of_linear(
        self, x: Tensor, hidden: Tensor, layer: nn.Linear, mask: Tensor | None = None
    ) -> Tensor:
        """`forward` of outputs = layer(hidden), which need not be written down; where `fused`."""
        raise NotImplementedError

    def step_of_linear(
        self,
        grad: Tensor,
        hidden: Tensor,
        layer: nn.Linear,
        x: Tensor,
        mask: Tensor | None,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        """`of_linear` and its gradients in one pass, where `fused`.

        Args:
            grad: of log_prob, [S, B].
            hidden: input of the layer, [S, B, H].
            layer: the decoder's last one.
            x, mask: as in `forward`.
            learn: leave the gradients of the layer's parameters and of the law's own in `.grad`.

        Returns:
            log_prob [S, B], and the gradient of hidden [S, B, H].
        """
        raise NotImplementedError

    def _entries(
        self, x: Tensor, outputs: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x and outputs in the dtype to compute in, and what is observed; 0 in x where it is not."""
        self._check_entries(x, outputs)
        observed = observed_of(x, mask)
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        values = x.to(dtype)
        if x.dtype == torch.uint8:
            values = values / 255
        return torch.where(observed, values, 0.0), outputs.to(dtype), observed

    def _check_entries(self, x: Tensor, outputs: Tensor) -> None:
        """Refuses shapes and dtypes that do not fit."""
        _checks.check_tensor("x", x)
        _checks.check_tensor("outputs", outputs)
        if x.dim() != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"x: expected shape [B, {self.num_features}], got {_checks.shape_of(x)}"
            )
        if x.dtype not in _checks.DATA_DTYPES:
            raise TypeError(f"x: expected floating point or uint8, got {x.dtype}")
        if not outputs.is_floating_point():
            raise TypeError(f"outputs: expected floating point, got {outputs.dtype}")
        shape = (len(x), self.num_outputs)
        if outputs.dim() not in (2, 3) or tuple(outputs.shape[-2:]) != shape:
            wanted = f"[{shape[0]}, {shape[1]}] or [S, {shape[0]}, {shape[1]}]"
            raise ValueError(f"outputs: expected shape {wanted}, got {_checks.shape_of(outputs)}")

    def _observed(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x in a dtype to count in, 0 where it is not observed, and what is observed."""
        outputs = torch.zeros(1, device=x.device).expand(len(x), self.num_outputs or 1)
        values, _, observed = self._entries(x, outputs, mask)
        return wide(values), observed

    def _noise(
        self, outputs: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """The noise that `sample` was given, or new one."""
        shape = (*outputs.shape[:-1], self.num_noise)
        if noise is not None:
            _checks.check_shape("noise", noise, shape)
            return noise
        return torch.randn(shape, generator=generator, dtype=outputs.dtype, device=outputs.device)

    def extra_repr(self) -> str:
        shown = {"num_features": self.num_features} | (self.arguments() or {})
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class Elementwise(Likelihood):
    """A law of independent entries with one output for each feature.

    A subclass gives `log_density(x, outputs)`. What is missing reaches neither it nor the gradient:
    x and outputs are 0 there, whatever stood there.
    """

    def forward(self, x: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-likelihood of the observed entries of each row, see `Likelihood.forward`."""
        values, outputs, observed = self._entries(x, outputs, mask)
        outputs = self._located(torch.where(observed, outputs, 0.0), values, observed)
        entries = self.log_density(values, outputs)
        return torch.where(observed, entries, 0.0).sum(-1).to(values.dtype)

    def log_density(self, x: Tensor, outputs: Tensor) -> Tensor:
        """log p of each entry in nats: x [B, D], outputs [B, D] or [S, B, D], like outputs."""
        raise NotImplementedError

    def _located(self, outputs: Tensor, values: Tensor, observed: Tensor) -> Tensor:
        """Outputs with what rows add to them."""
        return outputs


def lacking(module: nn.Module, name: str) -> str:
    """The error where a likelihood has no such method."""
    return (
        f"likelihood: expected one with a method {name}(outputs), which turns the decoder's outputs "
        f"into data, got {type(module).__name__}"
    )


def view(module: Likelihood) -> Any:
    """A copy that has the same parameters, buffers and modules, in dicts of its own."""
    other = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        other.__dict__[name] = dict(module.__dict__[name])
    return other


def observed_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """bool [B, D]: the mask, which may be packed, or what is not NaN."""
    if mask is None:
        return ~torch.isnan(x) if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)
    if mask.dtype == torch.int32:
        return reference.unpack_bits(mask, x.shape[1])
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected dtype bool, or int32 with its bits, got {mask.dtype}")
    _checks.check_shape("mask", mask, tuple(x.shape))
    return mask


def wide(tensor: Tensor) -> Tensor:
    """float64, on a device that has it."""
    return tensor.to(torch.float64) if device_row(tensor.device.type).has_float64 else tensor
