"""An estimator with members beside its relay model: how they are trained, on which entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import _checks
from ..likelihoods import Likelihood
from ..models import LatentModel, LinearGaussian, ppca
from ..posteriors.relay import RelayPosterior
from ..training.collapse import warn_of_collapse
from ..training.held_out import FACTORS
from ..training.start_linear import start_linear
from .boosting import BoostedColumns
from .codes import Codes
from .entries import HeldOutEntries
from .estimator import RelayEstimator, full_precision
from .forest import ColumnForest
from .members import MEMBERS, Blend
from .stopping import HeldOutStopping

# steps and visits of each row that the relay model is given at most
_STEPS, _VISITS = 600, 10
# what is so much better than the linear model, in squared error, does not start from it
_BETTER = 0.8
# entries of each column that a part of the rows shows, if all of them do
_SHOWN = 1000
# looks at held-out entries in a training that is not stopped
_LOOKS = 24


class BlendedEstimator(RelayEstimator):
    """Table in, members trained and weighted: a linear-Gaussian model, the relay model, and trees."""

    members: Any
    subsample: Any
    # pickles of versions without it have the relay model alone
    blend_: Blend | None = None

    def _learn(self, rows: np.ndarray, law: Likelihood, seed: int) -> RelayPosterior:
        """Trains the members, on all but the held-out entries first and then on all."""
        self.blend_ = None
        most = self._options()["subsample"]
        if most is not None and _checks.check_positive_int("subsample", most) < len(rows):
            rows = rows[_some_of(rows, most, seed)]
        names = self._members_of(law, rows)
        drawn = HeldOutEntries.drawn(rows, seed) if len(names) > 1 else None
        if drawn is None:
            return super()._learn(rows, law, seed)
        shown = drawn.without(rows)
        codes = Codes(law, shown)
        entries = codes.entries(drawn)
        blend = self._blend_of(shown, codes, names, seed)
        from_linear, epochs = self._stopped(blend, shown, law, seed, entries)
        judged = shown[entries.rows]
        relayed = self._with_factor(codes, entries, judged)
        blend.weigh_latents(entries, judged, relayed)
        if blend.forest is not None:
            blend.grow(shown, self._relayed(shown, codes, self.scale_factor_))
        error = blend.weigh(entries, judged, relayed, _means_of(codes.of_rows(shown)))
        self.held_out_error_, self.held_out_errors_ = error, blend.errors
        chosen = self._recipe(len(rows))._replace(epochs=epochs)
        warn_of_collapse(error, chosen.lr, epochs * -(-len(rows) // chosen.batch_size))
        # fewer factors than a whole covariance has: their number need not be looked for again
        linear = blend.linear
        rank = linear.latent_dim if linear.latent_dim < linear.num_features - 1 else None
        whole = self._blend_of(rows, codes, names, seed, rank or None)
        start = whole.linear if from_linear and len(self._starts(whole.linear, law)) > 1 else None
        model = self._started(start, rows, law, seed)
        posterior = self._trained(model, rows, seed, chosen)
        whole.base, whole.weights = blend.base, blend.weights
        whole.residuals, whole.errors = blend.residuals, blend.errors
        if whole.forest is not None:
            whole.grow(rows, self._relayed(rows, codes, self.scale_factor_))
        self.blend_ = whole
        return posterior

    def _check_members(self) -> None:
        given = self._options()["members"]
        if isinstance(given, str):
            known = given == "auto"
        else:
            sets = [set(MEMBERS[1:2]), *(set(MEMBERS[:size]) for size in (2, 3, 4))]
            known = isinstance(given, Sequence) and all(isinstance(name, str) for name in given)
            known = known and set(given) in sets
        if not known:
            raise ValueError(
                "members: expected 'auto', ('relay',), ('linear', 'relay'), ('linear', 'relay', "
                f"'forest') or ('linear', 'relay', 'forest', 'boosting'), got {given!r}"
            )

    def _members_of(self, law: Likelihood, rows: np.ndarray) -> tuple[str, ...]:
        """The members that are asked for and that this table can have."""
        wanted = self._options()["members"]
        suits = Codes.suits(law)
        if wanted != "auto":
            if len(wanted) > 1 and not suits:
                raise ValueError(
                    "members: expected 'auto' or ('relay',) for a likelihood that has no "
                    f"outputs_of(expected), got {wanted!r}"
                )
            return tuple(name for name in MEMBERS if name in wanted)
        if not suits or self._pixels:
            return ("relay",)
        size = rows.shape[1]
        plain = all(law.standardizable)
        codes = size if plain else sum(law.widths)
        if not ColumnForest.suits(len(rows), size, codes):
            return MEMBERS[:2]
        # of numbers alone boosted trees find little that the forest does not
        return MEMBERS[:3] if plain else MEMBERS

    def _blend_of(
        self,
        rows: np.ndarray,
        codes: Codes,
        names: Sequence[str],
        seed: int,
        rank: int | None = None,
    ) -> Blend:
        features, groups = codes.features(rows), codes.owner_of_features
        linear = ppca(features.shape[1], latent_dim=rank)
        linear.fit(features, groups=None if codes.plain else groups.tolist(), seed=seed)
        forest = ColumnForest(seed) if "forest" in names else None
        return Blend(
            linear, forest, codes, BoostedColumns(codes, seed) if "boosting" in names else None
        )

    def _starts(self, linear: LinearGaussian, law: Likelihood) -> tuple[LinearGaussian | None, ...]:
        """Where the relay model may start: at values of its own, and at the linear model's solution."""
        room = linear.latent_dim <= self._options()["latent_dim"]
        learned = isinstance(getattr(law, "log_scale", None), torch.Tensor)
        return (None, linear) if room and learned else (None,)

    def _started(
        self, linear: LinearGaussian | None, rows: np.ndarray, law: Likelihood, seed: int
    ) -> LatentModel:
        """The relay model as training finds it."""
        if linear is None:
            return self._model_of(rows.shape, law, seed)
        skip = bool(self._options()["hidden"])
        model = self._model_of(rows.shape, law, seed, skip=skip)
        start_linear(model, linear, rows, standardize=False)
        return model

    def _stopped(
        self,
        blend: Blend,
        shown: np.ndarray,
        law: Likelihood,
        seed: int,
        entries: HeldOutEntries,
    ) -> tuple[bool, int]:
        """Trains the relay model from each start until held-out entries are found no better.

        It does not start from the linear model's solution where it is far better without.

        `model_` is then the best. Returns whether it has started at the linear model's solution, and how
        many epochs it was trained for.
        """
        chosen, given = self._recipe(len(shown)), self._options()["epochs"]
        # laws of classes and counts take the relay model's own number of steps to be learned
        if given is None and blend.codes.plain:
            steps = -(-len(shown) // chosen.batch_size)
            chosen = chosen._replace(epochs=max(_VISITS, -(-_STEPS // steps)))
        judged = shown[entries.rows]
        predicted = blend.predicted(judged)[0]
        of_linear = float(np.mean((entries.of(predicted) - entries.truth) ** 2))
        given_rows = torch.from_numpy(judged)

        def read(law: Likelihood, outputs: torch.Tensor) -> torch.Tensor:
            return blend.codes.of_outputs(law.of_rows(given_rows.to(outputs.device)), outputs)

        found = []
        for start in self._starts(blend.linear, law):
            every = chosen.epochs if given is not None else max(1, chosen.epochs // _LOOKS)
            stopping = HeldOutStopping(entries, every, read)
            model = self._started(start, shown, law, seed)
            self._trained(model, shown, seed, chosen, callbacks=[stopping])
            found.append((stopping, start is not None))
            if stopping.error < _BETTER * of_linear:
                break
        best, from_linear = min(found, key=lambda pair: pair[0].error)
        self.model_ = best.model
        return from_linear, best.epochs

    def _with_factor(self, codes: Codes, entries: HeldOutEntries, judged: np.ndarray) -> np.ndarray:
        """Codes that the relay model expects under the best factor, which is then `scale_factor_`."""
        given, best = self._options()["scale_factor"], math.inf
        factors = FACTORS if isinstance(given, str) else (float(given),)
        for factor in (1.0,) if self._without_scale(self.model_.law) else factors:
            relayed = self._relayed(judged, codes, factor)
            error = float(np.mean((entries.of(relayed) - entries.truth) ** 2))
            # they are tried in rising order, and what one loses the next does not win back
            if error >= best:
                break
            best, found, self.scale_factor_ = error, relayed, factor
        return found

    def _relayed(self, rows: np.ndarray, codes: Codes, factor: float) -> np.ndarray:
        """Codes [N, K] that the relay model expects of rows [N, D]."""
        with full_precision():
            means = self._infer(rows, factor).mean().detach()
            return self._read(means, rows, codes.of_outputs)


def _some_of(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Numbers of `most` rows drawn at random, and of those that show what these show too little of."""
    order = np.random.default_rng(seed).permutation(len(rows))
    chosen, others = order[:most], order[most:]
    more = [chosen]
    for column in np.flatnonzero((~np.isnan(rows[chosen])).sum(0) < _SHOWN):
        more.append(others[~np.isnan(rows[others, column])][:_SHOWN])
    return np.unique(np.concatenate(more))


def _means_of(rows: np.ndarray) -> np.ndarray:
    """Means [D] of what columns show, 0 of those that show nothing."""
    seen = ~np.isnan(rows)
    return np.where(seen, rows, 0.0).sum(0, dtype=np.float64) / np.maximum(seen.sum(0), 1)
