"""Missing entries, filled in with what a relay model and its members say."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import OneToOneFeatureMixin
from sklearn.impute import MissingIndicator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ..data import ColumnTransform
from ..likelihoods import Likelihood
from .bends import bends_help
from .draws import DrawingEstimator
from .framed import framed, holes_of, text_of
from .members import MEMBERS
from .tables import holed


class RelayImputer(OneToOneFeatureMixin, DrawingEstimator):
    """Fills in missing entries with a relay model, a linear-Gaussian model and trees, weighted.

    `fit` first holds out a tenth of the observed entries (of small tables up to a fifth) from everything
    that is trained. Then it trains, on what is left, the members:

        linear: a linear-Gaussian model, see `rvi_fast.models.LinearGaussian`;
        relay: the relay model, from values of its own and, where that is not far better than the linear
            model and `latent_dim` has room for it, from the linear model's solution; each training ends
            when the held-out entries are found no better, and the better one stays;
        forest: trees that predict each column from the row as the first two complete it, for what a
            smooth function of few latents misses. Of tables for which they would take long there are
            none (more than 2,000,000 = rows, at most 4,096, x columns^2);
        boosting: gradient boosted trees from what a row shows, beside a forest where there are yes/no,
            classes or counts.

    The held-out entries tell how each column's estimates are weighted (at least 0, with the sum 1),
    which `scale_factor` suits, how wide intervals are, and the error. Where columns miss entries at
    rates that differ by more than chance (a chi-squared test at .001), they are drawn and weighted as
    missing ones are: most of the columns that miss most. Then all members are trained again, on all
    entries. Up to the noise of few entries the result is therefore not worse than that of the linear
    model. Pixels, laws without `outputs_of` (see `rvi_fast.likelihoods.Likelihood`), and tables of less
    than about 100 observed entries have the relay model alone, and `members=("relay",)` asks for that.

    With yes/no, classes and counts among the columns all members say probabilities and means. The linear
    model sees yes/no as 0 and 1, k classes as k - 1 codes of 0 and 1, and of counts x 2 sqrt(x + 3/8);
    its probabilities are cut to [0, 1] and have the sum 1. Weights minimise the squared error: of
    probabilities that is the Brier score, which, unlike the log loss, one sure mistake of a linear model
    on few held-out entries cannot decide. Each column counts as its means' error does.

    `transform` finds the posterior of each row that misses something, with everything that the rows
    share as `fit` left it. Observed entries come back unchanged, and what a row gets does not depend on
    the rows beside it. `fit_transform(X)` is `fit(X).transform(X)`.

    A feature that was never observed in `fit` is dropped, with a warning, as scikit-learn's imputers
    do, or kept and filled with 0 (`keep_empty_features`). A feature of which `fit` has seen one value
    only is filled with that value, exactly. A row that misses everything is filled with what the model
    takes for the average row. uint8 are pixels: they share one scale, 255, instead of being
    standardised.

    A DataFrame with columns that are no numbers (yes/no, classes, dates, durations, integers, text; see
    `rvi_fast.frames.recognise`) has a law for each column, and `transform` gives a DataFrame with the
    same dtypes: integers whole, dates in their unit, classes among those seen. Free text, and integers
    that number the rows, are passed through as they are. Such a DataFrame needs no other settings;
    `likelihood` stays "gaussian".

    Args:
        missing_values: what marks a missing entry, a number or NaN; with NaN also None and pandas' NA.
            What a NumPy masked array masks is missing whatever this is.
        latent_dim: T.
        hidden: widths of the decoder's hidden layers.
        groups: relay vectors in each group, see `rvi_fast.RelayPosterior`.
        top: coefficients kept in each group: a share, a count, or one of either per group.
        epochs: visits of each row in a training of the relay model. None: as many as held-out entries
            ask for, up to 600 steps and at least 10 visits; of the relay model alone at least 50, and so
            many that 2,000 steps are made.
        batch_size: rows in a training step. None: a quarter of the rows, between 16 and 256; more for
            tables of 32,768 rows and more, see `rvi_fast.training.recipe`.
        lr: learning rate of `fit`. None: 0.01 for small tables and less for larger ones, as
            `rvi_fast.training.recipe` has it.
        kl_weight: factor of the KL divergence in `fit`, or a function from the epoch to it.
        decoder_weight_decay: decoupled decay of the decoder's weight matrices, see `rvi_fast.fit`.
        initial_log_std: where the log standard deviations of rows start, see `RelayPosterior`.
        steps: Adam steps for each row in `transform`.
        infer_lr: learning rate of `transform`.
        scale_factor: in `transform` the likelihood's scale is taken so many times as large as training
            left it. "held-out": the factor with which the held-out entries are best found. Of the relay
            model alone, which has no entries that are held out of training, a tenth of the entries of up
            to 1,024 training rows is hidden from inference; the decoder has learned from them, so that
            where much is missing a larger number can be better. 1 for laws without a scale.
        standardize: train on (x - mean) / std of each feature's observed entries; False leaves the
            numbers as they are.
        column_transform: what bends each feature before it is standardised: "none", "log" (positive
            numbers) or "quantile" (normal scores of ranks), or "auto", which leaves a feature as it is
            unless it has heavy tails, see `rvi_fast.data.ColumnTransform`; where columns miss entries at
            rates that differ by more than chance it also leaves all as they are, unless a linear model
            finds held-out entries clearly better with bent columns. What is filled in is then nearer to
            the median than to the mean. "auto" is "none" for pixels and where `standardize` is False.
            Only features whose law is one of location and scale are bent or standardised.
        likelihood: the law of the features: a name that help(rvi_fast.likelihoods) lists, "gaussian",
            "bernoulli" (0 and 1) or "poisson" (counts) for instance, or ("categorical", k) (codes 0 to
            k - 1); a list with one of these for each feature; or a `rvi_fast.likelihoods.Likelihood`,
            which is copied. X may hold nothing else, in `fit` and in `transform`.
        categorical_features: which columns of a DataFrame are classes: "from_dtype", those that
            `rvi_fast.frames.recognise` calls so; names, places or a mask of them; None, a DataFrame must
            hold numbers. See below.
        members: "auto", all that the table can have, as above; or ("relay",), ("linear", "relay") or
            ("linear", "relay", "forest"), with "boosting" last or without.
        subsample: rows that `fit` learns from at most, drawn at random; None for all. A column that they
            show less than 1,000 entries of has up to 1,000 more rows that show it. Scales and the column
            transforms are those of all rows.
        estimate: what is filled in: "mean" or "mode"; None takes the mean of numbers and counts, and the
            mode of yes/no and classes, so that 0, 1 or a code comes back. With "mode" counts are whole
            numbers too.
        sample_posterior: fill in a draw of `sample`, as scikit-learn's `IterativeImputer` does, for
            multiple imputation in pipelines: one estimator for each `random_state`. A number there gives
            the same draws at each call, None others. `score` is of what is filled in without it.
        min_value: the least that is filled in, a number or one for each feature [D]; of a DataFrame that
            is not all numbers it holds for numbers and integers.
        max_value: the most that is filled in, likewise.
        keep_empty_features: keep features that were never observed in `fit`, filled with 0, instead of
            dropping them.
        add_indicator: append a column of zeros and ones for each feature with missing entries in `fit`,
            as `sklearn.impute.MissingIndicator` makes them.
        random_state: of first values, order and noise.
        device: where to train and infer, for instance "cuda"; the CPU if not given.
        max_time: seconds after which `fit` begins nothing new; None for as long as it takes. The linear
            model is fitted in any case. Then comes the relay model, an epoch at least if the time is not
            over: its training ends with the epoch in which its share of the time is, and what found
            held-out entries best stays. Trees come last. Where there is no time to train again on all
            entries, the members stay that have not seen the held-out ones. A
            `sklearn.exceptions.ConvergenceWarning` says what was cut short and names the members that
            were left out; `blend_.names` has the others. The result then depends on the machine.
        verbose: show progress of each training, with the time that is left to its last epoch.

    Attributes:
        model_: the trained relay model, a `rvi_fast.models.LatentModel`, in standardised units. It holds
            one row, the mean of the training rows, from which `transform` starts. Where `max_time` has
            left it out it is as it was before the training.
        blend_: the members and their weights; None where the relay model stands alone. Trees take memory
            in proportion to the rows that they have learned from.
        history_: `rvi_fast.History` of the relay model's last training.
        column_transform_: `rvi_fast.data.ColumnTransform`, which bends X's columns.
        standardizer_: `rvi_fast.data.Standardizer`, from bent columns to the model's units.
        scale_factor_: the factor that `transform` uses.
        held_out_error_: root mean square error over the held-out entries in the model's units, relative
            to that of column means, with weights that have not seen the entry; NaN for less than 100 of
            them. Of the relay model alone as `rvi_fast.training.held_out_error` gives it for a tenth of
            the entries of up to 1,024 training rows. Where it is not below 1 `fit` warns, with a
            `rvi_fast.training.CollapseWarning`.
        held_out_errors_: the same for each column [D], of probabilities for yes/no and classes: a dict
            with the names of the members and "blend"; NaN for columns of which nothing was held out.
            Only where there is a `blend_`.
        held_out_predictions_: what was predicted there, see its help.
        column_errors_: of each column how far off what `transform` fills in is, in its units: the root
            mean square error on held-out entries; of yes/no and classes the share that is wrong, of
            dates and durations days. An array [D], of a DataFrame a dict by the names of its columns.
            With weights that have not seen the entry, and members that have learned from fewer entries
            than those that `transform` asks: an honest error to report. NaN for columns of which nothing
            was held out, and for all of them where the relay model is alone.
        indicator_: the fitted `MissingIndicator`, or None.
        n_features_in_: D.
        feature_names_in_: names of the features, where X was a DataFrame.

    Example:
        >>> import numpy as np
        >>> x = np.outer(np.linspace(-1, 1, 100), [1.0, 2.0, -1.0])
        >>> x[::5, 1] = np.nan
        >>> filled = RelayImputer(random_state=0).fit_transform(x)
        >>> filled.shape, bool(abs(filled[::5, 1] - np.linspace(-2, 2, 100)[::5]).max() < 0.5)
        ((100, 3), True)
    """

    def __init__(
        self,
        *,
        missing_values: Any = np.nan,
        latent_dim: int = 16,
        hidden: Sequence[int] = (64, 64),
        groups: Sequence[int] = (25, 50, 100),
        top: float | int | Sequence[float | int] = 0.5,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        kl_weight: Any = 1.0,
        decoder_weight_decay: float = 0.0,
        initial_log_std: float = -2.0,
        steps: int = 100,
        infer_lr: float = 0.01,
        scale_factor: float | str = "held-out",
        standardize: bool = True,
        column_transform: str = "auto",
        likelihood: Any = "gaussian",
        categorical_features: Any = "from_dtype",
        members: Any = "auto",
        subsample: int | None = 131_072,
        estimate: str | None = None,
        sample_posterior: bool = False,
        min_value: Any = -np.inf,
        max_value: Any = np.inf,
        keep_empty_features: bool = False,
        add_indicator: bool = False,
        random_state: Any = None,
        device: Any = None,
        max_time: float | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            missing_values=missing_values,
            latent_dim=latent_dim,
            hidden=hidden,
            groups=groups,
            top=top,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            kl_weight=kl_weight,
            decoder_weight_decay=decoder_weight_decay,
            initial_log_std=initial_log_std,
            steps=steps,
            infer_lr=infer_lr,
            scale_factor=scale_factor,
            standardize=standardize,
            column_transform=column_transform,
            likelihood=likelihood,
            categorical_features=categorical_features,
            random_state=random_state,
            device=device,
            max_time=max_time,
            verbose=verbose,
        )
        self.members = members
        self.subsample = subsample
        self.estimate = estimate
        self.sample_posterior = sample_posterior
        self.min_value = min_value
        self.max_value = max_value
        self.keep_empty_features = keep_empty_features
        self.add_indicator = add_indicator

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains a model on the rows of X; see `RelayEmbedder.fit`."""
        if self.estimate not in (None, "mean", "mode"):
            raise ValueError(f"estimate: expected 'mean', 'mode' or None, got {self.estimate!r}")
        self._check_members()
        x, missing, _ = self._fit(X)
        self._low, self._high = self._bounds(x.shape[1])
        # text is kept as it is, and nothing is sought of it
        self._text = text_of(self.encoder_, x.shape[1])
        self._kept = ~self._empty | bool(self.keep_empty_features) | self._text
        if not self._kept.all():
            dropped = super().get_feature_names_out()[~self._kept].tolist()
            warnings.warn(
                f"features without any observed entry are dropped: {dropped}; "
                "keep_empty_features=True keeps them, filled with 0",
                stacklevel=2,
            )
        self.indicator_ = None
        if self.add_indicator:
            shown = holes_of(self.encoder_, X, holed(x, missing))
            self.indicator_ = MissingIndicator(error_on_new=False).fit(shown)
        return self

    def _shape_of(
        self, x: np.ndarray, missing: np.ndarray, law: Likelihood, seed: int
    ) -> ColumnTransform:
        shape = super()._shape_of(x, missing, law, seed)
        wanted = self._options()["members"]
        if self.column_transform != "auto" or set(shape.kinds) == {"none"}:
            return shape
        if "linear" not in (MEMBERS if wanted == "auto" else wanted):
            return shape
        columns = np.array(law.standardizable)
        if bends_help(x, missing, columns, seed):
            return shape
        return ColumnTransform.fit(x, ~missing, kind="none", columns=columns)

    def transform(self, X: Any) -> Any:
        """Fills in the missing entries of X, observed ones unchanged.

        Args:
            X: array, masked array or DataFrame [N, D], N as you like.

        Returns:
            [N, D] in X's units, float32 if X is and float64 if not, without features that `fit` has
            dropped; the indicator's columns follow. For a DataFrame that is not all numbers one with its
            index and dtypes.
        """
        check_is_fitted(self)
        x, missing = self._table(X, reset=False)
        filled = holed(x, missing)
        holes = self.indicator_ and self.indicator_.transform(holes_of(self.encoder_, X, filled))
        self._check(self.model_.law, x, missing)
        rows = self._rows(x, missing)
        incomplete = self._incomplete(missing)
        if len(incomplete):
            values = self._said(rows[incomplete])
            filled[incomplete] = np.where(missing[incomplete], values, filled[incomplete])
        if self.encoder_ is not None:
            return framed(self.encoder_, X, filled, self._kept, holes, self.get_feature_names_out())
        filled = filled if self._kept.all() else filled[:, self._kept]
        return filled if holes is None else np.hstack([filled, holes.astype(filled.dtype)])

    def _said(self, rows: np.ndarray) -> np.ndarray:
        """What `transform` fills in, [N, D] in X's units, for rows in the model's."""
        if not self.sample_posterior:
            return self._values(rows)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return self._draws(rows, 1, seed)[0].clip(self._low, self._high)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of `transform`'s result: those kept of X, then those of the indicator."""
        names = super().get_feature_names_out(input_features)
        if self.indicator_ is None:
            return names[self._kept]
        return np.concatenate([names[self._kept], self.indicator_.get_feature_names_out(names)])
