"""What of a posterior serves new datapoints: its relays and a mean row, without the table."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..functional import RelaySample
from .relay import RelayPosterior


class RowlessPosterior(RelayPosterior):
    """The relays of a trained posterior, and where rows of new datapoints start; no rows of its own.

    `rvi_fast.load(path, rows=False)` gives a model with one. `infer` and `impute` of new rows find with
    it, bit for bit, what they find with the whole posterior. What asks for its own rows is a ValueError.

    Attributes:
        start: [W], the mean of the rows that were left out.
        num_data: 0.

    Example:
        >>> import torch, rvi_fast
        >>> from rvi_fast.posteriors import RowlessPosterior
        >>> whole = rvi_fast.RelayPosterior(1000, 8, groups=(4, 6))
        >>> small = RowlessPosterior.of(whole)
        >>> torch.equal(small.mean_row(), whole.mean_row()), small.num_data
        (True, 0)
    """

    start: Tensor

    @classmethod
    def of(cls, posterior: RelayPosterior) -> RowlessPosterior:
        """The same relays, the same parameter, with the mean of the rows in their place.

        Args:
            posterior: all rows of a table; it stays as it is.

        Raises:
            ValueError: it holds a shard of its table, of whose rows alone the mean would be.
        """
        if posterior.sharded and posterior.num_data < posterior.table_size:
            raise ValueError(
                f"posterior: expected all {posterior.table_size} rows, got a shard of "
                f"{posterior.num_data}"
            )
        own = cls.__new__(cls)
        nn.Module.__init__(own)
        own.layout, own.sparse = posterior.layout, posterior.sparse
        own._start_at(posterior.initial_log_std, posterior.learn_std)
        start, relays = posterior.mean_row(), posterior.relays
        own._hold(nn.Parameter(start.new_empty((0, len(start))), False), relays)
        own.register_buffer("start", start)
        return own

    def mean_row(self) -> Tensor:
        """The average [W] of the rows that were left out: where rows of new datapoints start."""
        return self.start.clone()

    def check_rows(self) -> NoReturn:
        """Raises: there are none."""
        raise ValueError(
            "model: expected one with the rows of its training data, got one that was written or loaded "
            "with rows=False, which serves new rows alone: pass posterior=infer(model, x), or load the "
            "run directory"
        )

    def forward(self, *_: Any, **__: Any) -> RelaySample:
        """Raises: there are no rows."""
        self.check_rows()

    def draw(self, *_: Any, **__: Any) -> NoReturn:
        """Raises: there are no rows."""
        self.check_rows()

    def _parts(self, index: Tensor | None) -> NoReturn:
        self.check_rows()

    def _read(self, index: Tensor | None, columns: slice) -> NoReturn:
        self.check_rows()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Raises: what is trained needs rows."""
        self.check_rows()
