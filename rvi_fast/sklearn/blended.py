"""An estimator with members beside its relay model: how they are trained, on which entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _checks
from ..likelihoods import Likelihood
from ..models import LatentModel, LinearGaussian, ppca
from ..posteriors.relay import RelayPosterior
from ..training.collapse import warn_of_collapse
from ..training.held_out import FACTORS
from ..training.loop.history import History
from ..training.start_linear import start_linear
from .boosting import BoostedColumns
from .codes import Codes
from .deadline import Deadline, OutOfTime, now, warn_of_time
from .entries import HeldOutEntries, column_means, some_rows
from .errors import classes_of, column_errors
from .estimator import RelayEstimator, without_rows
from .forest import ColumnForest
from .framed import days_of, numbers_of, whole_of
from .members import MEMBERS, Blend
from .precision import full_precision
from .stopping import HeldOutStopping
from .tables import bounds_of

# steps and visits of each row that the relay model is given at most
_STEPS, _VISITS = 600, 10
# what is so much better than the linear model, in squared error, does not start from it
_BETTER = 0.8
# looks at held-out entries in a training that is not stopped
_LOOKS = 24
# of the time that is left, the share that the relay model may take until it is weighted: as much is
# then there to train it on all entries, and some for the trees
_RELAY = 0.4


class _Judged(NamedTuple):
    """How the relay model was trained without the held-out entries, and what came of it.

    Args:
        epochs: that it is trained for; 0 where it was not.
        from_linear: whether it starts at the linear model's solution.
        seconds: that all members have taken, and will take again.
        notes: what there was no time for.
        error: of all members together on the held-out entries.
        predicted: their codes [m, K] of the rows that hold these.
    """

    epochs: int = 0
    from_linear: bool = False
    seconds: float = 0.0
    notes: Sequence[str] = ()
    error: float = math.nan
    predicted: Any = None


class BlendedEstimator(RelayEstimator):
    """Table in, members trained and weighted: a linear-Gaussian model, the relay model, and trees."""

    members: Any
    subsample: Any
    estimate: Any
    min_value: Any
    max_value: Any
    # pickles of versions without it have the relay model alone
    blend_: Blend | None = None

    def _learn(
        self, rows: np.ndarray, law: Likelihood, seed: int, deadline: Deadline
    ) -> RelayPosterior:
        """Trains the members, on all but the held-out entries first and then on all.

        Where there is no time for the second, what the first has given stays. Returns the posterior of
        the mean of the rows.
        """
        self.blend_ = None
        # of a table before
        self.__dict__.pop("held_out_errors_", None)
        self.column_errors_ = self._named(np.full(rows.shape[1], np.nan))
        most = self._options()["subsample"]
        numbers = np.arange(len(rows))
        if most is not None and _checks.check_positive_int("subsample", most) < len(rows):
            numbers = some_rows(rows, most, seed)
            rows = rows[numbers]
        names = self._members_of(law, rows)
        drawn = HeldOutEntries.drawn(rows, seed) if len(names) > 1 else None
        if drawn is None:
            return super()._learn(rows, law, seed, deadline)
        shown = drawn.without(rows)
        codes, begun = Codes(law, shown), now()
        blend = self._blend_of(shown, codes, names, seed)
        found = _Judged(seconds=now() - begun)
        found = self._judged(blend, shown, law, seed, codes.entries(drawn), found, deadline)
        blend.judged = blend.judged and blend.judged.among(numbers)
        self.held_out_error_, self.held_out_errors_ = found.error, blend.errors
        self.column_errors_ = self._named(self._in_units(rows, drawn, codes, found.predicted))
        chosen = self._recipe(len(rows))._replace(epochs=found.epochs)
        if found.epochs:
            steps = found.epochs * -(-len(rows) // chosen.batch_size)
            warn_of_collapse(found.error, chosen.lr, steps)
        self.blend_, kept, notes = blend, (self.model_, self.history_), list(found.notes)
        if lost := [name for name in names if name not in blend.names]:
            notes.insert(0, f"left out: {', '.join(lost)}")
        try:
            # it takes what it has taken without the held-out entries
            deadline.check(found.seconds)
            self.blend_ = self._again(blend, rows, law, seed, found, deadline)
        except OutOfTime:
            self.model_, self.history_ = kept
            notes.append("the members have not learned from the entries that were held out")
        if notes:
            warn_of_time(self.max_time, notes)
        return self.model_.posterior

    def _judged(
        self,
        blend: Blend,
        shown: np.ndarray,
        law: Likelihood,
        seed: int,
        entries: HeldOutEntries,
        found: _Judged,
        deadline: Deadline,
    ) -> _Judged:
        """Trains relay model and trees on what is shown, and weights the members by the entries.

        What there is no time for is left out of `blend`.
        """
        codes, judged, relayed = blend.codes, shown[entries.rows], None
        if deadline.over:
            blend.leave_out(*MEMBERS[1:])
            self._untrained(shown, law, seed)
        else:
            trained = self._stopped(blend, shown, law, seed, entries, deadline.part(_RELAY))
            found = trained._replace(seconds=found.seconds + trained.seconds)
            relayed, seconds = self._with_factor(codes, entries, judged, deadline)
            blend.weigh_latents(entries, judged, relayed)
            # what all rows would take, or more
            inferring = seconds * len(shown) / len(judged)
        if blend.forest is not None:
            # twice, beside what the others take once more
            begun, own = now(), deadline.part(0.5, found.seconds)
            try:
                own.check(inferring)
                blend.grow(shown, self._relayed(shown, codes, self.scale_factor_), own)
                found = found._replace(seconds=found.seconds + now() - begun)
            except OutOfTime:
                blend.leave_out(*MEMBERS[2:])
        means = column_means(codes.of_rows(shown))
        error, predicted = blend.weigh(entries, judged, relayed, means)
        estimated = np.tile(means, (len(judged), 1))
        estimated[np.searchsorted(entries.rows, entries.row), entries.column] = predicted
        return found._replace(error=error, predicted=estimated)

    def _in_units(
        self, rows: np.ndarray, drawn: HeldOutEntries, codes: Codes, predicted: np.ndarray
    ) -> np.ndarray:
        """Errors [D] on held-out entries, in the units of X, of what would have been filled in.

        Args:
            rows: in the model's units.
            drawn: the entries.
            codes: of the columns.
            predicted: codes of the rows that hold them, with weights that have not seen the entry.
        """
        size = rows.shape[1]
        found = self._in_data(codes.estimate(self.model_.law, predicted, self.estimate))
        found = found.clip(*self._bounds(size))
        truth = self._in_data(rows[drawn.rows])
        whole = whole_of(self.encoder_, size)
        found[:, whole] = np.rint(found[:, whole])
        pairs = (drawn.of(found), drawn.of(truth))
        classes = classes_of(self.model_.law)
        return column_errors(*pairs, drawn.column, classes) * days_of(self.encoder_, size)

    def _bounds(self, num_features: int) -> tuple[np.ndarray, np.ndarray]:
        """The least and the most that is filled in, [D] each."""
        low, high = bounds_of(self.min_value, self.max_value, num_features)
        # of a DataFrame dates and classes are numbers for the model alone
        bounded = numbers_of(self.encoder_, num_features)
        return np.where(bounded, low, -np.inf), np.where(bounded, high, np.inf)

    def _named(self, errors: np.ndarray) -> Any:
        """Errors [D], of a DataFrame by the names of its columns."""
        names = getattr(self, "feature_names_in_", None)
        return errors if names is None else dict(zip(names, errors.tolist(), strict=True))

    def _untrained(self, rows: np.ndarray, law: Likelihood, seed: int) -> None:
        """A relay model that no time was left to train, and that says nothing."""
        self.model_ = without_rows(self._model_of(rows.shape, law, seed).eval())
        self.history_, given = History(), self._options()["scale_factor"]
        self.scale_factor_ = 1.0 if isinstance(given, str) else float(given)

    def _again(
        self,
        blend: Blend,
        rows: np.ndarray,
        law: Likelihood,
        seed: int,
        found: _Judged,
        deadline: Deadline,
    ) -> Blend:
        """The members of `blend`, with its weights, trained on all entries.

        Raises:
            OutOfTime: the deadline passed before they were.
        """
        # fewer factors than a whole covariance has: their number need not be looked for again
        linear = blend.linear
        rank = linear.latent_dim if linear.latent_dim < linear.num_features - 1 else None
        whole = self._blend_of(rows, blend.codes, blend.names, seed, rank or None)
        if "relay" in blend.names:
            starts = self._starts(whole.linear, law)
            start = whole.linear if found.from_linear and len(starts) > 1 else None
            model = self._started(start, rows, law, seed)
            chosen = self._recipe(len(rows))._replace(epochs=found.epochs)
            callbacks = [deadline] if self.max_time else []
            self._trained(model, rows, seed, chosen, callbacks=callbacks)
            if self.history_.epochs < found.epochs:
                raise OutOfTime
            whole.base = blend.base
        whole.weights = blend.weights
        whole.residuals, whole.errors, whole.looks = blend.residuals, blend.errors, blend.looks
        whole.judged = blend.judged
        if whole.forest is not None:
            whole.grow(rows, self._relayed(rows, blend.codes, self.scale_factor_), deadline)
        return whole

    @property
    def held_out_predictions_(self) -> dict[str, np.ndarray] | None:
        """What `fit` predicted of entries that it had held out from everything that was trained.

        "row" and "column" say where the entries are in the table that `fit` was given, "truth" what was
        observed there, the names of the members and "blend" what each predicted, [n] all of them. Those
        of the blend are with weights that have not seen the entry; when the relay model stops, and its
        `scale_factor_`, were chosen by these entries. Numbers are in the units of X, of a DataFrame that
        is not all numbers as `encoder_.encode` makes them, yes/no and classes as codes. None without
        members beside the relay model, and in what was pickled: that holds no entry of the table.
        """
        blend = self.blend_
        if blend is None or blend.judged is None:
            return None
        codes, law = blend.codes, self.model_.law
        return blend.judged.by_entry(
            codes, lambda own: self._in_data(codes.estimate(law, own, self.estimate))
        )

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
        with torch.device("cpu"):
            linear = ppca(features.shape[1], latent_dim=rank)
        linear.fit(features, groups=None if codes.plain else groups.tolist(), seed=seed)
        forest = ColumnForest(seed) if "forest" in names else None
        boosting = BoostedColumns(codes, seed) if "boosting" in names else None
        blend = Blend(linear, forest, codes, boosting)
        blend.leave_out(*set(MEMBERS).difference(names))
        return blend

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
        deadline: Deadline,
    ) -> _Judged:
        """Trains the relay model from each start until held-out entries are found no better.

        It does not start from the linear model's solution where it is far better without, or where there
        is no time left to. `model_` is then the best.
        """
        chosen, given = self._recipe(len(shown)), self._options()["epochs"]
        # laws of classes and counts take the relay model's own number of steps to be learned
        if given is None and blend.codes.plain:
            steps = -(-len(shown) // chosen.batch_size)
            chosen = chosen._replace(epochs=max(_VISITS, -(-_STEPS // steps)))
        judged = shown[entries.rows]
        predicted = blend.predicted(judged)[0]
        of_linear = entries.mean((entries.of(predicted) - entries.truth) ** 2)
        given_rows = torch.from_numpy(judged)

        def read(law: Likelihood, outputs: torch.Tensor) -> torch.Tensor:
            return blend.codes.of_outputs(law.of_rows(given_rows.to(outputs.device)), outputs)

        found: list[tuple[HeldOutStopping, bool]] = []
        starts = self._starts(blend.linear, law)
        for start in starts:
            every = chosen.epochs if given is not None else max(1, chosen.epochs // _LOOKS)
            own = deadline.part(1.0 / (len(starts) - len(found)))
            stopping = HeldOutStopping(entries, every, read, own)
            model = self._started(start, shown, law, seed)
            self._trained(model, shown, seed, chosen, callbacks=[stopping])
            found.append((stopping, start is not None))
            if stopping.error < _BETTER * of_linear or deadline.over:
                break
        blend.looks = {
            "linear" if of_start else "own": [(at, error**0.5) for at, error in own.looks]
            for own, of_start in found
        }
        best, from_linear = min(found, key=lambda pair: pair[0].error)
        self.model_ = best.model
        notes = []
        if any(stopping.cut for stopping, _ in found):
            notes = [f"the relay model has had {best.epochs} epochs, {chosen.epochs} at most"]
        return _Judged(best.epochs, from_linear, best.seconds, notes)

    def _with_factor(
        self, codes: Codes, entries: HeldOutEntries, judged: np.ndarray, deadline: Deadline
    ) -> tuple[np.ndarray, float]:
        """Codes that the relay model expects under the best factor, which is then `scale_factor_`.

        Beside them the seconds that they have taken.
        """
        given, best = self._options()["scale_factor"], math.inf
        factors = FACTORS if isinstance(given, str) else (float(given),)
        for factor in (1.0,) if self._without_scale(self.model_.law) else factors:
            begun = now()
            relayed = self._relayed(judged, codes, factor)
            seconds = now() - begun
            error = entries.mean((entries.of(relayed) - entries.truth) ** 2)
            # they are tried in rising order, and what one loses the next does not win back
            if error >= best:
                break
            best, found, self.scale_factor_ = error, relayed, factor
            if deadline.over:
                break
        return found, seconds

    def _relayed(self, rows: np.ndarray, codes: Codes, factor: float) -> np.ndarray:
        """Codes [N, K] that the relay model expects of rows [N, D]."""
        with full_precision():
            means = self._infer(rows, factor).mean().detach()
            return self._read(means, rows, codes.of_outputs)
