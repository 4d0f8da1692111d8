"""scikit-learn estimators: an imputer and an embedder of incomplete tables.

    from rvi_fast.sklearn import RelayEmbedder, RelayImputer

Needs the extra: `pip install "rvi-fast[sklearn]"`.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from . import _checks
from .data.metrics import Standardizer
from .models import rvi
from .posterior import RelayPosterior
from .training.fit import fit
from .training.held_out import FACTORS, TooFewEntries, check_scale_factor, held_out_factor
from .training.infer import infer
from .training.inputs import prepare

try:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        OneToOneFeatureMixin,
        TransformerMixin,
    )
    from sklearn.impute import MissingIndicator
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('needs scikit-learn: pip install "rvi-fast[sklearn]"') from error

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn 1.4 and 1.5

    def validate_data(
        estimator: Any, X: Any, *, ensure_all_finite: bool | str, **options: Any
    ) -> Any:
        """As the function of 1.6."""
        return estimator._validate_data(X, force_all_finite=ensure_all_finite, **options)


# what epochs=None asks for: steps in all, and visits of each row
_STEPS, _VISITS = 2000, 50
_BATCH = 256


class _RelayEstimator(TransformerMixin, BaseEstimator):
    """Table in, `LatentModel` trained; what both estimators do."""

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
        lr: float = 0.01,
        steps: int = 100,
        infer_lr: float = 0.01,
        scale_factor: float | str = 1.0,
        standardize: bool = True,
        random_state: Any = None,
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.missing_values = missing_values
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.groups = groups
        self.top = top
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.steps = steps
        self.infer_lr = infer_lr
        self.scale_factor = scale_factor
        self.standardize = standardize
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains a model on the rows of X.

        Args:
            X: array or DataFrame [N, D] of numbers, some of them missing.
            y: ignored.

        Returns:
            The estimator.

        Raises:
            ValueError, TypeError: X holds infinities, is sparse or not numeric, or a parameter is out
                of its range.
        """
        self._fit(X)
        return self

    def _fit(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """See `fit`; returns what `_table` does."""
        x, missing = self._table(X, reset=True)
        options = self._options()
        for name in ("hidden", "groups"):
            if not isinstance(options[name], Sequence):
                raise TypeError(f"{name}: expected a sequence of integers, got {options[name]!r}")
        _checks.check_positive_int("steps", options["steps"])
        _checks.check_positive_float("infer_lr", options["infer_lr"])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._empty = missing.all(axis=0)
        self.standardizer_ = self._scale_of(x, missing)
        rows = self._rows(x, missing)
        names = ("latent_dim", "hidden", "groups", "top")
        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        model = rvi(*x.shape, **{name: options[name] for name in names}, generator=generator)
        check_scale_factor(model, options["scale_factor"])
        batch_size, epochs = options["batch_size"], options["epochs"]
        if batch_size is None:
            # a table of a few hundred rows still has some steps in an epoch
            batch_size = min(_BATCH, max(16, len(x) // 4))
        if epochs is None:
            steps = -(-len(x) // _checks.check_positive_int("batch_size", batch_size))
            epochs = max(_VISITS, -(-_STEPS // steps))
        self.history_ = fit(
            model,
            rows,
            standardize=False,
            epochs=epochs,
            batch_size=batch_size,
            lr=options["lr"],
            seed=seed,
            device=self.device,
            eval_every=0,
            progress=bool(self.verbose),
        )
        self.model_ = model.eval()
        self.scale_factor_ = self._found_factor(rows, seed)
        return x, missing

    def _options(self) -> dict[str, Any]:
        """The parameters; searches draw NumPy's numbers, these are Python's."""
        parameters = self.get_params(deep=False).items()
        plain = (np.generic, np.ndarray)
        return {k: v.tolist() if isinstance(v, plain) else v for k, v in parameters}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = _is_nan(self.missing_values)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _more_tags(self) -> dict[str, Any]:
        # the same for scikit-learn 1.4 and 1.5
        return {
            "allow_nan": _is_nan(self.missing_values),
            "preserves_dtype": [np.float64, np.float32],
        }

    def _table(self, X: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        """X as checked numbers [N, D], and which of them are missing."""
        value = self.missing_values
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise ValueError(f"missing_values: expected a number or NaN, got {value!r}")
        nan = _is_nan(value)
        if isinstance(X, list | tuple):
            X = np.asarray(X)  # None in a list is NaN only if it is an array's
        x = validate_data(
            self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan" if nan else True
        )
        return x, np.isnan(x) if nan else x == value

    def _scale_of(self, x: np.ndarray, missing: np.ndarray) -> Standardizer:
        """From the units of X to those of the model."""
        size = x.shape[1]
        if x.dtype == np.uint8:
            return Standardizer(np.zeros(size), np.full(size, 255.0))
        if self.standardize:
            try:
                with np.errstate(over="ignore", invalid="ignore"):
                    return Standardizer.fit(x, ~missing)
            except ValueError as error:
                raise ValueError(
                    f"X: expected numbers that can be standardised: {error}"
                ) from error
        return Standardizer(np.zeros(size), np.ones(size))

    def _rows(self, x: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """What the model sees: float32 with NaN for missing.

        Features that were never observed in `fit` count as missing: the decoder has not learned them.
        """
        with np.errstate(over="ignore"):
            rows = self.standardizer_.transform(np.where(missing | self._empty, np.nan, x))
        wrong = np.isinf(rows)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"X: expected numbers that float32 can hold in the model's units, got "
                f"{x[row, column]} at row {row}, column {column}"
            )
        return rows

    def _infer(self, rows: np.ndarray | torch.Tensor, factor: float) -> RelayPosterior:
        options = self._options()
        return infer(
            self.model_,
            rows,
            steps=options["steps"],
            lr=options["infer_lr"],
            scale_factor=factor,
            shared_noise=True,  # a row must not depend on its place
            progress=bool(self.verbose),
        )

    def _found_factor(self, rows: np.ndarray, seed: int) -> float:
        """The number that `scale_factor` stands for.

        It is found once, on the training rows: were it found in `transform`, what a row is given would
        depend on the rows beside it. It is 1 where there are too few entries to hide some.
        """
        factor = self._options()["scale_factor"]
        if not isinstance(factor, str):
            return float(factor)
        inputs = prepare(self.model_, rows)
        try:
            return held_out_factor(
                self.model_,
                inputs,
                seed,
                lambda shown: self.model_.reconstruct(posterior=self._infer(shown.x, 1.0)),
            )
        except TooFewEntries:
            return FACTORS[0]

    def _decode(self, means: torch.Tensor) -> np.ndarray:
        """Posterior means [N, T] -> [N, D] float64 in the units of X."""
        with torch.no_grad():
            parts = [self.model_.decoder(part) for part in means.split(8192)]
        scale = self.standardizer_
        values = torch.cat(parts).cpu().numpy().astype(np.float64) * scale.std + scale.mean
        values[:, self._empty] = 0.0
        return values


class RelayImputer(OneToOneFeatureMixin, _RelayEstimator):
    """Fills in missing entries with a relay model's reconstruction.

    `transform` finds the posterior of each row that misses something, with everything that the rows
    share as `fit` left it, and decodes its mean. Observed entries come back unchanged, and what a row
    gets does not depend on the rows beside it. `fit_transform(X)` is `fit(X).transform(X)`.

    A feature that was never observed in `fit` is kept and filled with 0; a row that misses everything is
    filled with what the model takes for the average row. uint8 are pixels: they share one scale, 255,
    instead of being standardised.

    Args:
        missing_values: what marks a missing entry, a number or NaN.
        latent_dim: T.
        hidden: widths of the decoder's hidden layers.
        groups: relay vectors in each group, see `rvi_fast.RelayPosterior`.
        top: coefficients kept in each group: a share, a count, or one of either per group.
        epochs: visits of each row in `fit`. None: at least 50, and so many that 2,000 steps are made.
        batch_size: rows in a training step. None: a quarter of the rows, between 16 and 256.
        lr: learning rate of `fit`.
        steps: Adam steps for each row in `transform`.
        infer_lr: learning rate of `transform`.
        scale_factor: in `transform` the likelihood's scale is taken so many times as large as training
            left it. "held-out": `fit` hides a tenth of the entries of up to 1,024 training rows and
            takes the factor with which they are best found again; the decoder has learned from them,
            so that where much is missing a larger number can be better.
        standardize: train on (x - mean) / std of each feature's observed entries; False leaves the
            numbers as they are.
        add_indicator: append a column of zeros and ones for each feature with missing entries in `fit`,
            as `sklearn.impute.MissingIndicator` makes them.
        random_state: of first values, order and noise.
        device: where to train and infer, for instance "cuda"; the CPU if not given.
        verbose: show progress bars.

    Attributes:
        model_: the trained `rvi_fast.models.LatentModel`, in standardised units.
        history_: `rvi_fast.History` of the training.
        standardizer_: `rvi_fast.data.Standardizer`, from X's units to the model's.
        scale_factor_: the factor that `transform` uses.
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
        lr: float = 0.01,
        steps: int = 100,
        infer_lr: float = 0.01,
        scale_factor: float | str = "held-out",
        standardize: bool = True,
        add_indicator: bool = False,
        random_state: Any = None,
        device: Any = None,
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
            steps=steps,
            infer_lr=infer_lr,
            scale_factor=scale_factor,
            standardize=standardize,
            random_state=random_state,
            device=device,
            verbose=verbose,
        )
        self.add_indicator = add_indicator

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains a model on the rows of X; see `RelayEmbedder.fit`."""
        holed = _holed(*self._fit(X))
        self.indicator_ = None
        if self.add_indicator:
            self.indicator_ = MissingIndicator(error_on_new=False).fit(holed)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Fills in the missing entries of X.

        Args:
            X: array or DataFrame [N, D], N as you like.

        Returns:
            [N, D] in X's units, float32 if X is and float64 if not; the indicator's columns follow.
        """
        check_is_fitted(self)
        x, missing = self._table(X, reset=False)
        filled = _holed(x, missing)
        holes = None if self.indicator_ is None else self.indicator_.transform(filled)
        rows = self._rows(x, missing)
        incomplete = np.flatnonzero(missing.any(axis=1))
        if len(incomplete):
            values = self._decode(self._infer(rows[incomplete], self.scale_factor_).mean())
            filled[incomplete] = np.where(missing[incomplete], values, filled[incomplete])
        return filled if holes is None else np.hstack([filled, holes.astype(filled.dtype)])

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns of `transform`'s result: those of X, then those of the indicator."""
        names = super().get_feature_names_out(input_features)
        if self.indicator_ is None:
            return names
        return np.concatenate([names, self.indicator_.get_feature_names_out(names)])


class RelayEmbedder(ClassNamePrefixFeaturesOutMixin, _RelayEstimator):
    """Embeds rows, complete or not, as the means of their posteriors under a relay model.

    `transform` finds the posterior of each row, with everything that the rows share as `fit` left it.
    What a row gets does not depend on the rows beside it. `fit_transform` gives the means that training
    itself found; `transform` finds others for the same rows, above all in dimensions that the model
    hardly uses. `fit(X).transform(X)` treats the training rows as it will treat new ones.

    Features that were never observed in `fit` and uint8 are treated as in `RelayImputer`.

    Args:
        missing_values, hidden, groups, top, epochs, batch_size, lr, steps, infer_lr, standardize,
            random_state, device, verbose: as in `RelayImputer`.
        latent_dim: T, the number of columns of the result.
        scale_factor: as in `RelayImputer`; 1 gives the posterior under the trained model itself.

    Attributes:
        model_, history_, standardizer_, scale_factor_, n_features_in_, feature_names_in_: as in
            `RelayImputer`.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 6))
        >>> embedder = RelayEmbedder(latent_dim=2, epochs=20, random_state=0)
        >>> embedder.fit_transform(x).shape, embedder.get_feature_names_out()[0]
        ((50, 2), 'relayembedder0')
    """

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Trains a model on the rows of X and returns their posterior means [N, latent_dim]."""
        x, _ = self._fit(X)
        return _array(self.model_.posterior.mean(), x.dtype)

    def transform(self, X: Any) -> np.ndarray:
        """Posterior means [N, latent_dim] of the rows of X, float32 if X is and float64 if not."""
        check_is_fitted(self)
        x, missing = self._table(X, reset=False)
        posterior = self._infer(self._rows(x, missing), self.scale_factor_)
        return _array(posterior.mean(), x.dtype)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Decodes embeddings [N, latent_dim] to rows [N, D] in the units of the data."""
        check_is_fitted(self)
        means = check_array(X, dtype=[np.float64, np.float32])
        latent_dim = self._n_features_out
        if means.shape[1] != latent_dim:
            raise ValueError(f"X: expected {latent_dim} columns, latent_dim, got {means.shape[1]}")
        parameter = next(self.model_.decoder.parameters())
        values = self._decode(torch.tensor(means, dtype=parameter.dtype, device=parameter.device))
        return values.astype(means.dtype)

    @property
    def _n_features_out(self) -> int:
        return self.model_.posterior.latent_dim


def _is_nan(value: Any) -> bool:
    return isinstance(value, numbers.Real) and bool(np.isnan(float(value)))


def _holed(x: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """A copy of x with NaN for missing, float32 if x is and float64 if not."""
    holed = x.astype(np.float32 if x.dtype == np.float32 else np.float64)
    holed[missing] = np.nan
    return holed


def _array(means: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """float32 if that is the data's dtype and float64 if not."""
    kept = np.float32 if dtype == np.float32 else np.float64
    return means.detach().cpu().numpy().astype(kept)
