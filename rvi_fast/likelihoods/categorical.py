"""One of some classes, written as a code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .. import _checks
from .base import Likelihood, wide
from .quantiles import uniform


class Categorical(Likelihood, law="categorical"):
    """Columns of codes 0, 1, ..., k - 1; the decoder puts out k logits for a column of k classes.

        log p(x_b) = sum_{d observed} (o_bd[x_bd] - log sum_j exp(o_bd[j]))

    where o_bd are the outputs of column d: those of column 0 come first, then those of column 1. x holds
    the codes as floating point, NaN = missing; uint8 would be pixels and is refused.

    Shapes and errors are those of `Likelihood.forward`; gradient to the outputs, twice differentiable,
    0 where missing. Gives NaN where an observed x is no code.

    A class has no mean: `mean` and `mode` are the code of the most probable class, `probabilities` says
    more. The elastic error of an entry is that of 1 and the probability of the class that was observed.

    Args:
        num_features: D.
        num_classes: k, at least 2: one for all columns, or one for each.

    Source:
        `torch.distributions.Categorical(logits=outputs)`.

    Example:
        >>> import torch
        >>> law = Categorical(2, num_classes=[3, 2])
        >>> law.num_outputs
        5
        >>> outputs = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
        >>> law(torch.tensor([[2.0, torch.nan]]), outputs), law.mode(outputs)
        (tensor([-1.0986]), tensor([[0., 1.]]))
    """

    estimated = "mode"
    step_tensors = 5.0

    def __init__(self, num_features: int, num_classes: int | Sequence[int]) -> None:
        super().__init__(num_features)
        one = not isinstance(num_classes, Sequence)
        given = [num_classes] * self.num_features if one else list(num_classes)  # type: ignore[arg-type]
        if len(given) != self.num_features:
            raise ValueError(
                f"num_classes: expected a number, or {self.num_features} numbers, got {len(given)}"
            )
        self.num_classes = [_checks.check_positive_int("num_classes", k) for k in given]
        if min(self.num_classes) < 2:
            raise ValueError(f"num_classes: expected at least 2, got {num_classes!r}")
        # for each column and code the output, where there is such a code
        most = max(self.num_classes)
        sizes, codes = torch.tensor(self.num_classes), torch.arange(most)
        first = sizes.cumsum(0) - sizes
        absent = codes >= sizes[:, None]
        place = torch.where(absent, 0, first[:, None] + codes)
        self.register_buffer("_absent", absent, persistent=False)
        self.register_buffer("_place", place.reshape(-1), persistent=False)

    _absent: Tensor
    _place: Tensor

    @property
    def num_outputs(self) -> int:
        """The sum of k over all columns."""
        return sum(self.num_classes)

    @property
    def numeric(self) -> list[bool]:
        """Columns of numbers: none, as classes have no order."""
        return [False] * self.num_features

    @property
    def classes(self) -> list[int]:
        """The number of classes of each column."""
        return list(self.num_classes)

    @property
    def widths(self) -> list[int]:
        """An output for each class, see `Likelihood.widths`."""
        return list(self.num_classes)

    @classmethod
    def made(cls, num_features: int, arguments: dict[str, Any]) -> Self:
        """The law of some arguments, see `Likelihood.made`."""
        if "num_classes" not in arguments:
            raise ValueError(
                "likelihood: expected ('categorical', k) with k classes, got 'categorical'"
            )
        return cls(num_features, **arguments)

    def arguments(self) -> dict[str, Any]:
        """What it is made of, for a config, see `Likelihood.arguments`."""
        one = len(set(self.num_classes)) == 1
        return {"num_classes": self.num_classes[0] if one else self.num_classes}

    def forward(self, x: Tensor, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-likelihood of the observed entries of each row, see `Likelihood.forward`."""
        values, outputs, observed = self._entries(x, outputs, mask)
        logits = torch.where(observed[:, :, None], self._logits(outputs), 0.0)
        entries = self._chosen(values, self._log_probabilities(logits))
        return torch.where(observed, entries, 0.0).sum(-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Of each class, [..., D, k]; of columns with fewer classes than others, 0 for the rest."""
        return self._log_probabilities(self._logits(outputs)).exp()

    def expected(self, outputs: Tensor) -> Tensor:
        """The probability of each class of each column [..., K], see `Likelihood.expected`."""
        return self.probabilities(outputs)[..., ~self._absent]

    def outputs_of(self, expected: Tensor) -> Tensor:
        """The logarithms [..., K] of probabilities, see `Likelihood.outputs_of`."""
        return expected.log()

    def mean(self, outputs: Tensor) -> Tensor:
        """The code of the most probable class [..., D], as `mode`: codes have no mean."""
        return self.mode(outputs)

    def mode(self, outputs: Tensor) -> Tensor:
        """The code of the most probable class [..., D]; the lowest of several."""
        return self.probabilities(outputs).argmax(-1).to(outputs.dtype)

    def sample(
        self,
        outputs: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws codes [..., D], see `Likelihood.sample`."""
        below = uniform(self._noise(outputs, noise, generator))
        passed = self.probabilities(wide(outputs)).cumsum(-1) < below[..., None]
        last = torch.tensor(self.num_classes, device=outputs.device) - 1
        return torch.minimum(passed.sum(-1), last).to(outputs.dtype)

    def scored(self, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """1, NaN where x is missing, and the probability of the class that was observed, [B, D]."""
        found = self._chosen(x.nan_to_num(0.0), self._log_probabilities(self._logits(outputs)))
        return torch.where(torch.isnan(x), torch.nan, torch.ones_like(x)), found.exp()

    def totals(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Entries of each class, and of its column, see `Likelihood.totals`."""
        values, observed = self._observed(x, mask)
        codes = torch.arange(self._absent.shape[1], device=x.device)
        found = ((values[:, :, None] == codes) & observed[:, :, None]).sum(0)
        present = ~self._absent.to(x.device)
        both = torch.stack((found, observed.sum(0)[:, None].expand_as(found)))
        return both[:, present].to(values.dtype)

    def initial_outputs(self, totals: Tensor) -> Tensor:
        """The logarithm of each class's share, see `Likelihood.initial_outputs`."""
        entries, of_column = totals
        return ((entries + 0.5) / (of_column + 0.5)).log()

    def legal(self, values: Tensor) -> Tensor:
        """The codes of each column."""
        sizes = torch.tensor(self.num_classes, device=values.device)
        return (values >= 0) & (values < sizes) & (values == values.floor())

    def support(self, column: int) -> str:
        """What the entries of each column may be, see `Likelihood.support`."""
        return f"a code 0 to {self.num_classes[column] - 1}"

    def _logits(self, outputs: Tensor) -> Tensor:
        """[..., D, k] of outputs [..., K], those of absent classes being some others'."""
        shape = (*outputs.shape[:-1], *self._absent.shape)
        if len(set(self.num_classes)) == 1:
            return outputs.reshape(shape)
        return outputs.index_select(-1, self._place).reshape(shape)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        if len(set(self.num_classes)) > 1:
            logits = logits.masked_fill(self._absent, -torch.inf)
        return logits.log_softmax(-1)

    def _chosen(self, values: Tensor, log_probabilities: Tensor) -> Tensor:
        """Those of codes [B, D]; NaN for what is no code."""
        codes = values.nan_to_num(0.0, 0.0, 0.0).to(torch.int64)
        codes = codes.clamp(0, log_probabilities.shape[-1] - 1)
        places = codes.expand(log_probabilities.shape[:-1])[..., None]
        chosen = log_probabilities.gather(-1, places)[..., 0]
        right = (codes == values) & ~self._absent.expand(*codes.shape, -1).gather(
            -1, codes[..., None]
        ).squeeze(-1)
        return torch.where(right, chosen, torch.nan)
