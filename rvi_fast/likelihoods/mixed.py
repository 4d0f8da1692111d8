"""A law for each column of a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from .base import LAWS, Likelihood, observed_of, view
from .named import described, is_named, make

# tensors [batch, outputs] of a step: outputs, x and mask by law, and gradients on the way back
_GATHERED = 3.0


class Mixed(Likelihood, law="mixed"):
    """A table whose columns have laws of their own: numbers, yes/no, classes and counts in one model.

        log p(x_b) = sum of the laws' log p of their columns of row b

    The decoder's outputs stand in the order of the columns, as many for each as its law takes: k for a
    categorical column of k classes, 1 for all others. Columns of one kind are computed together, so that
    the cost is that of a law for each kind. Numbers that a named law learns (scale, degrees of freedom,
    dispersion) are learned for each column.

    Shapes, gradient and errors are those of `Likelihood.forward` and of the laws. uint8 is refused
    unless all laws take pixels.

    Args:
        columns: for each column a name in `LAWS`, ("categorical", k), or a `Likelihood` of one feature,
            for instance `StudentT(1, df="fixed")`; an instance stands in one column only.

    Attributes:
        parts: the laws, one for each kind and one for each instance, in the order of first use.
        columns: what each column was given, for JSON; None for a law without a name.

    Example:
        >>> import torch
        >>> law = Mixed(["gaussian", "bernoulli", ("categorical", 3), "gaussian"])
        >>> law.num_features, law.num_outputs, len(law.parts)
        (4, 6, 3)
        >>> x = torch.tensor([[0.5, 1.0, 2.0, torch.nan]])
        >>> law(x, torch.zeros(1, 6)).tolist()
        [-2.835...]
        >>> law.mode(torch.tensor([[0.5, 2.0, 0.0, 1.0, 0.0, -1.0]]))
        tensor([[ 0.5000,  1.0000,  1.0000, -1.0000]])
    """

    def __init__(self, columns: Sequence[Any]) -> None:
        if not isinstance(columns, Sequence) or isinstance(columns, str) or not len(columns):
            raise ValueError(f"columns: expected a law for each column, got {columns!r}")
        super().__init__(len(columns))
        grouped: dict[Any, list[int]] = {}
        for column, spec in enumerate(columns):
            grouped.setdefault(_kind(column, spec), []).append(column)
        # on the meta device there are no numbers to read back: places are counted in Python
        parts = [_part(kind, [columns[c] for c in own]) for kind, own in grouped.items()]
        self.parts = nn.ModuleList(parts)
        # columns of each part, and outputs of each part, by their places in x and outputs
        self._columns = list(grouped.values())
        widths = [0] * len(columns)
        for part, own in zip(parts, self._columns, strict=True):
            one = (part.num_outputs or len(own)) // len(own)
            each = getattr(part, "num_classes", None) or [one] * len(own)
            for column, width in zip(own, each, strict=True):
                widths[column] = width
        ends = list(itertools.accumulate(widths))
        self._width, self._widths = ends[-1], widths
        for number, own in enumerate(self._columns):
            places = [range(ends[c] - widths[c], ends[c]) for c in own]
            outputs = [place for each in places for place in each]
            self.register_buffer(f"_x{number}", torch.tensor(own), persistent=False)
            self.register_buffer(f"_outputs{number}", torch.tensor(outputs), persistent=False)
        order = [column for own in self._columns for column in own]
        back = sorted(range(len(order)), key=order.__getitem__)
        self.register_buffer("_back", torch.tensor(back), persistent=False)
        self.columns = [_written(spec) for spec in columns]

    _back: Tensor

    @property
    def columns_of_parts(self) -> list[list[int]]:
        """The columns of each of `parts`."""
        return self._columns

    @property
    def num_outputs(self) -> int:
        """The sum of what all columns take."""
        return self._width

    @property
    def pixels(self) -> bool:  # type: ignore[override]
        """Whether all laws take them."""
        return all(part.pixels for part in self._laws())

    @property
    def step_tensors(self) -> float:  # type: ignore[override]
        """That of the laws, by the outputs they take, and what is gathered for them."""
        parts = [part.step_tensors * (part.num_outputs or 1) for part in self._laws()]
        return sum(parts) / self._width + _GATHERED

    @property
    def standardizable(self) -> list[bool]:
        """Which columns may be shifted and scaled, see `Likelihood.standardizable`."""
        return self._by_column([part.standardizable for part in self._laws()])

    @property
    def numeric(self) -> list[bool]:
        """Which columns have numbers for entries, see `Likelihood.numeric`."""
        return self._by_column([part.numeric for part in self._laws()])

    @property
    def classes(self) -> list[int]:
        """Of how many classes each column holds codes, see `Likelihood.classes`."""
        return self._by_column([part.classes for part in self._laws()])

    @property
    def widths(self) -> list[int]:
        """Outputs of each column, see `Likelihood.widths`."""
        return list(self._widths)

    @property
    def num_noise(self) -> int:
        """The sum of what the laws take."""
        return sum(part.num_noise for part in self._laws())

    def arguments(self) -> dict[str, Any] | None:
        """What it is made of, for a config, see `Likelihood.arguments`."""
        return None if None in self.columns else {"columns": self.columns}

    @classmethod
    def made(cls, num_features: int, arguments: dict[str, Any]) -> Self:
        """The law of some arguments, see `Likelihood.made`."""
        return cls(**arguments)

    def forward(self, x: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-likelihood of the observed entries of each row, see `Likelihood.forward`."""
        self._entries(x, outputs, mask)
        mask = observed_of(x, mask)
        total = None
        for number, part in enumerate(self._laws()):
            columns = self._of_x(number)
            own = part(
                x.index_select(-1, columns),
                self._of_outputs(number, outputs),
                mask.index_select(-1, columns),
            )
            total = own if total is None else total + own
        assert total is not None
        return total

    def mean(self, outputs: Tensor) -> Tensor:
        """The mean of each column [..., D]: a probability of 1 for yes/no; of a class, its mode."""
        return self._together(
            part.mean(self._of_outputs(i, outputs)) for i, part in enumerate(self._laws())
        )

    def expected(self, outputs: Tensor) -> Tensor:
        """What x is on average [..., K], see `Likelihood.expected`."""
        return self._by_outputs(
            part.expected(self._of_outputs(i, outputs)) for i, part in enumerate(self._laws())
        )

    def outputs_of(self, expected: Tensor) -> Tensor:
        """Outputs of which `expected` gives these numbers, see `Likelihood.outputs_of`."""
        return self._by_outputs(
            part.outputs_of(self._of_outputs(i, expected)) for i, part in enumerate(self._laws())
        )

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable entry of each column [..., D]."""
        return self._together(
            part.mode(self._of_outputs(i, outputs)) for i, part in enumerate(self._laws())
        )

    def estimate(self, outputs: Tensor, kind: str | None = None) -> Tensor:
        """See `Likelihood.estimate`: without a kind, each law's own."""
        return self._together(
            part.estimate(self._of_outputs(i, outputs), kind) for i, part in enumerate(self._laws())
        )

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws x [..., D], see `Likelihood.sample`."""
        noise = self._noise(outputs, noise, generator)
        noises = noise.split([part.num_noise for part in self._laws()], -1)
        return self._together(
            part.sample(self._of_outputs(i, outputs), noise=noises[i])
            for i, part in enumerate(self._laws())
        )

    def scored(self, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """See `Likelihood.scored`: of each column what its law compares."""
        values = x.to(torch.float64) / 255 if x.dtype == torch.uint8 else x
        pairs = [
            part.scored(values.index_select(-1, self._of_x(i)), self._of_outputs(i, outputs))
            for i, part in enumerate(self._laws())
        ]
        return self._together(x for x, _ in pairs), self._together(found for _, found in pairs)

    def totals(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `Likelihood.totals`: those of all laws, in the order of the outputs."""
        mask, found = observed_of(x, mask), None
        for number, part in enumerate(self._laws()):
            columns = self._of_x(number).to(x.device)
            own = part.totals(x.index_select(-1, columns), mask.index_select(-1, columns))
            found = own.new_zeros(2, self._width) if found is None else found.to(own.dtype)
            found[:, self._outputs_of(number, x)] = own
        assert found is not None
        return found

    def initial_outputs(self, totals: Tensor) -> Tensor:
        """See `Likelihood.initial_outputs`: those of all laws, in the order of the outputs."""
        found = torch.empty_like(totals[0])
        for number, part in enumerate(self._laws()):
            places = self._outputs_of(number, totals)
            found[places] = part.initial_outputs(totals[:, places])
        return found

    def of_rows(self, x: Tensor, mask: Tensor | None = None) -> Likelihood:
        """A view for rows whose sizes some of the laws take from x, see `Likelihood.of_rows`."""
        mask = observed_of(x, mask)
        parts = [
            part.of_rows(x.index_select(-1, columns), mask.index_select(-1, columns))
            for part, columns in ((part, self._of_x(i)) for i, part in enumerate(self._laws()))
        ]
        return self._with(parts)

    def widened(self, factor: float) -> Likelihood:
        """A view with a scale `factor` times as large in all columns that have one.

        Raises:
            ValueError: no column has a scale.
        """
        parts: list[Likelihood] = []
        for part in self._laws():
            try:
                parts.append(part.widened(factor))
            except ValueError:
                parts.append(part)
        if all(new is part for new, part in zip(parts, self._laws(), strict=True)):
            return super().widened(factor)
        return self._with(parts)

    def check(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        rows: Any = None,
        columns: Sequence[int | str] | None = None,
    ) -> None:
        """Refuses data that a column's law cannot give, see `Likelihood.check`."""
        for part, own in zip(self._laws(), self._columns, strict=True):
            seen = None if mask is None else mask[:, own]
            names = own if columns is None else [columns[column] for column in own]
            part.check(x[:, own], seen, rows=rows, columns=names)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}"

    def _laws(self) -> list[Any]:
        return list(self.parts)

    def _with(self, parts: list[Likelihood]) -> Likelihood:
        if all(new is old for new, old in zip(parts, self.parts, strict=True)):
            return self
        other = view(self)
        other._modules["parts"] = nn.ModuleList(parts).train(self.training)
        return other

    def _of_x(self, number: int) -> Tensor:
        return self._buffers[f"_x{number}"]  # type: ignore[return-value]

    def _of_outputs(self, number: int, outputs: Tensor) -> Tensor:
        return outputs.index_select(-1, self._buffers[f"_outputs{number}"])  # type: ignore[arg-type]

    def _outputs_of(self, number: int, like: Tensor) -> Tensor:
        """The places of a part's outputs, on the device of a tensor."""
        return self._buffers[f"_outputs{number}"].to(like.device)  # type: ignore[union-attr]

    def _together(self, parts: Any) -> Tensor:
        """Columns of all parts [..., D], in the order of x."""
        return torch.cat(list(parts), -1).index_select(-1, self._back)

    def _by_outputs(self, parts: Iterable[Tensor]) -> Tensor:
        """Numbers of all parts [..., K], in the order of the outputs."""
        places = [self._buffers[f"_outputs{i}"] for i in range(len(self.parts))]
        return torch.cat(list(parts), -1).index_select(-1, torch.cat(places).argsort())  # type: ignore[arg-type]

    def _by_column(self, parts: list[list[Any]]) -> list[Any]:
        found: list[Any] = [None] * self.num_features
        for own, values in zip(self._columns, parts, strict=True):
            for column, value in zip(own, values, strict=True):
                found[column] = value
        return found


def _kind(column: int, spec: Any) -> Any:
    """What columns that are computed together have in common."""
    if isinstance(spec, nn.Module):
        if not isinstance(spec, Likelihood) or spec.num_features != 1:
            raise ValueError(
                f"columns: expected a Likelihood of one feature in column {column}, got {spec!r}"
            )
        return ("module", id(spec))
    name = spec[0] if is_named(spec) else spec.get("law") if isinstance(spec, dict) else spec
    if not isinstance(name, str) or name not in LAWS or name == "mixed":
        names = ", ".join(name for name in LAWS if name != "mixed")
        raise ValueError(f"columns: expected one of {names} in column {column}, got {spec!r}")
    if isinstance(spec, dict):  # a law of its own, read from a file
        return ("made", column)
    if name == "categorical" and not is_named(spec):
        raise ValueError(
            f"columns: expected ('categorical', k) with k classes in column {column}, got {spec!r}"
        )
    return name


def _part(kind: Any, specs: list[Any]) -> Likelihood:
    """The law of the columns of one kind."""
    made: Any
    if isinstance(kind, tuple):
        if len(specs) > 1:
            raise ValueError(f"columns: expected each instance once, got {specs[0]!r} twice")
        made = make(specs[0], 1)
    elif is_named(specs[0]):
        made = LAWS[kind](len(specs), [spec[1] for spec in specs])  # type: ignore[call-arg]
    else:
        # columns of one table differ, so that what a law learns of a feature is learned of each
        made = LAWS[kind](len(specs), **LAWS[kind].of_each_column)
    return made


def _written(spec: Any) -> Any:
    """One column's law for JSON."""
    if isinstance(spec, nn.Module):
        return described(spec)
    return [spec[0], int(spec[1])] if is_named(spec) else spec
