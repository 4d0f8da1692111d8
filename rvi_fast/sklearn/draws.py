"""Intervals and draws of what an imputer fills in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from .. import _checks
from ..training.impute import impute
from .blended import BlendedEstimator
from .framed import framed, ordered_of
from .members import Blend
from .precision import full_precision
from .tables import holed

# of intervals, the largest coverage: some hundred held-out errors do not tell what is rarer
_WIDEST = 0.99


class DrawingEstimator(BlendedEstimator):
    """Finds missing entries, and says how they are distributed: in intervals, and in draws."""

    # which columns of `fit` are text; pickles of versions without it have none
    _text: np.ndarray = np.zeros(1, bool)

    # bounds of what is filled in, and which columns of `fit` come back
    _low: np.ndarray
    _high: np.ndarray
    _kept: np.ndarray

    def impute_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """Bounds between which each missing entry of X lies with the probability `coverage`.

        Their widths come from the entries that `fit` held out: a bound is a quantile of the errors
        there, in units of the standard deviation that the linear member predicts for an entry given what
        its row shows. Of yes/no and classes they are the codes at both ends of so much of what the
        members together say. Without members beside the relay model they are quantiles of 200 draws, see
        `sample`.

        Args:
            X: array, masked array or DataFrame [N, D], N as you like.
            coverage: above 0, and 0.99 at most: errors that are rarer are not seen often enough.

        Returns:
            Lower and upper bounds [N, D] in X's units, DataFrames for one that is not all numbers; both
            are the entry itself where it is observed. Yes/no and classes of such have none.
        """
        if _checks.check_positive_float("coverage", coverage) > _WIDEST:
            raise ValueError(f"coverage: expected a number up to {_WIDEST}, got {coverage!r}")
        check_is_fitted(self)

        def bounds(rows: np.ndarray) -> np.ndarray:
            if (blend := self.blend_) is None:
                return self._around(rows, interval=coverage)
            return self._in_data(
                np.stack(blend.interval(rows, self._blended(rows, blend), coverage))
            )

        def numbers(rows: np.ndarray) -> np.ndarray:
            # between classes there is nothing
            return np.where(ordered_of(self.encoder_, len(self._kept)), bounds(rows), np.nan)

        low, high = self._filled(X, 2, numbers)
        return low, high

    def sample(self, X: Any, n_draws: int = 10, *, random_state: Any = None) -> Any:
        """Draws tables in which the missing entries of X are drawn from their predictive distribution.

        For multiple imputation: what an analysis of the tables finds differs by what is not known of the
        missing entries. Each entry is distributed around what `transform` fills in as held-out entries
        were in `fit`, and the entries of a row depend on each other as the linear member says. Without
        members beside the relay model they are draws from that: latents from their posterior, entries
        from the likelihood around them, under `scale_factor_` both.

        Args:
            X: array, masked array or DataFrame [N, D], N as you like.
            n_draws: S.
            random_state: of the draws; None draws others at each call.

        Returns:
            [S, N, D] in X's units, observed entries as they are; a list of S DataFrames for one that is
            not all numbers.
        """
        n_draws = _checks.check_positive_int("n_draws", n_draws)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return self._filled(X, n_draws, lambda rows: self._draws(rows, n_draws, seed))

    def _filled(self, X: Any, count: int, values: Callable[[np.ndarray], np.ndarray]) -> Any:
        """X [`count`, N, D], so many values for each missing entry, from rows in the model's units."""
        check_is_fitted(self)
        x, missing = self._table(X, reset=False)
        self._check(self.model_.law, x, missing)
        incomplete = self._incomplete(missing)
        shown = holed(x, missing)
        filled = np.repeat(shown[None], count, axis=0)
        rows = self._rows(x, missing)
        if len(incomplete):
            found = values(rows[incomplete]).clip(self._low, self._high)
            filled[:, incomplete] = np.where(missing[incomplete], found, shown[incomplete])
        if self.encoder_ is not None:
            return [framed(self.encoder_, X, own, self._kept) for own in filled]
        return filled if self._kept.all() else filled[..., self._kept]

    def _incomplete(self, missing: np.ndarray) -> np.ndarray:
        """Numbers of the rows that miss something which is to be filled in."""
        return np.flatnonzero(missing[:, self._kept & ~self._text].any(axis=1))

    def _values(self, rows: np.ndarray) -> np.ndarray:
        """What is filled in, [N, D] in X's units, for rows in the model's."""
        if self.blend_ is None:
            values = self._decode(self._means(rows), rows, self.estimate)
        else:
            codes = self._blended(rows, self.blend_)
            values = self._in_data(
                self.blend_.codes.estimate(self.model_.law, codes, self.estimate)
            )
        return values.clip(self._low, self._high)

    def _blended(self, rows: np.ndarray, blend: Blend) -> np.ndarray:
        relays = "relay" in blend.names
        relayed = self._relayed(rows, blend.codes, self.scale_factor_) if relays else None
        return blend.complete(rows, relayed)

    def _draws(self, rows: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
        """Draws [S, N, D] in X's units."""
        if (blend := self.blend_) is not None:
            generator = torch.Generator().manual_seed(seed)
            drawn = blend.draws(rows, self._blended(rows, blend), num_draws, generator)
            return self._in_data(drawn)
        return self._around(rows, num_draws=num_draws, seed=seed)

    def _around(self, rows: np.ndarray, **wanted: Any) -> np.ndarray:
        """What `rvi_fast.impute` says of rows in the model's units by the relay model, in X's units."""
        with full_precision():
            posterior = self._infer(rows, self.scale_factor_)
            found = impute(self.model_, torch.from_numpy(rows), posterior=posterior, **wanted)
        return self._in_data(found.cpu().numpy())
