"""What both estimators do: a table in, a trained model kept."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state

from .. import _checks
from ..data.recipe import Units
from ..data.scaling import Standardizer
from ..data.transforms import TRANSFORMS, ColumnTransform
from ..frames import FrameEncoder
from ..likelihoods import Likelihood, make
from ..models import LatentModel, rvi
from ..posteriors.relay import RelayPosterior
from ..training.collapse import warn_of_collapse
from ..training.fit import fit
from ..training.held_out import FACTORS, HeldOut, TooFewEntries, check_scale_factor, find_held_out
from ..training.infer import infer
from ..training.inputs.prepare import Inputs, prepare
from ..training.recipes import Recipe, recipe
from .deadline import Deadline, warn_of_time
from .errors import HeldOutScore, spreads_of
from .framed import encoded, encoder_of
from .precision import full_precision
from .tables import checked_table, constants_of, is_nan

# of the time that there is, the share that training may take; looking for the scale has the rest
_TRAINING = 0.8
# rows decoded at once
_DECODED = 8192


class RelayEstimator(HeldOutScore, TransformerMixin, BaseEstimator):
    """Table in, `LatentModel` trained; what both estimators do."""

    # of DataFrames that are no numbers; pickles of versions without it took none
    encoder_: FrameEncoder | None = None

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
        scale_factor: float | str = 1.0,
        standardize: bool = True,
        column_transform: str = "auto",
        likelihood: Any = "gaussian",
        categorical_features: Any = "from_dtype",
        random_state: Any = None,
        device: Any = None,
        max_time: float | None = None,
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
        self.kl_weight = kl_weight
        self.decoder_weight_decay = decoder_weight_decay
        self.initial_log_std = initial_log_std
        self.steps = steps
        self.infer_lr = infer_lr
        self.scale_factor = scale_factor
        self.standardize = standardize
        self.column_transform = column_transform
        self.likelihood = likelihood
        self.categorical_features = categorical_features
        self.random_state = random_state
        self.device = device
        self.max_time = max_time
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

    def _fit(self, X: Any) -> tuple[np.ndarray, np.ndarray, RelayPosterior]:
        """See `fit`; returns what `_table` does and what `_learn` does."""
        options = self._options()
        if options["max_time"] is not None:
            _checks.check_positive_float("max_time", options["max_time"])
        deadline = Deadline(options["max_time"])
        x, missing = self._table(X, reset=True)
        for name in ("hidden", "groups"):
            if not isinstance(options[name], Sequence):
                raise TypeError(f"{name}: expected a sequence of integers, got {options[name]!r}")
        _checks.check_positive_int("steps", options["steps"])
        _checks.check_positive_float("infer_lr", options["infer_lr"])
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        law = self._law_of(x.shape[1])
        self._check(law, x, missing)
        self._empty = missing.all(axis=0)
        self._constants = constants_of(x, missing)
        self._pixels, self._spreads = x.dtype == np.uint8, spreads_of(x, missing, law)
        self.column_transform_ = self._shape_of(x, missing, law, seed)
        self.standardizer_ = self._scale_of(self.column_transform_.transform(x), missing, law)
        return x, missing, self._learn(self._rows(x, missing), law, seed, deadline)

    def _learn(
        self, rows: np.ndarray, law: Likelihood, seed: int, deadline: Deadline
    ) -> RelayPosterior:
        """Trains a model on what `_rows` gives; returns the posteriors of the rows."""
        model, chosen = self._model_of(rows.shape, law, seed), self._recipe(len(rows))
        posterior = self._trained(
            model, rows, seed, chosen, callbacks=[deadline.part(_TRAINING)] if self.max_time else []
        )
        with full_precision():
            self.scale_factor_, self.held_out_error_ = self._held_out(rows, seed, deadline)
        epochs = self.history_.epochs
        if epochs < chosen.epochs:
            warn_of_time(
                self.max_time, [f"the relay model has had {epochs} of {chosen.epochs} epochs"]
            )
        steps = epochs * -(-len(rows) // chosen.batch_size)
        warn_of_collapse(self.held_out_error_, chosen.lr, steps)
        return posterior

    def _model_of(
        self, shape: tuple[int, ...], law: Likelihood, seed: int, **others: Any
    ) -> LatentModel:
        """A model of rows [N, D] with its first values."""
        options = self._options()
        names = ("latent_dim", "hidden", "groups", "top", "initial_log_std")
        generator = torch.Generator().manual_seed(seed)
        chosen = {name: options[name] for name in names} | others
        with torch.device("cpu"):
            model = rvi(*shape, **chosen, likelihood=law, generator=generator)
        if not self._without_scale(law):
            check_scale_factor(model, options["scale_factor"], options["steps"])
        return model

    def _recipe(self, num_rows: int) -> Recipe:
        """What `fit` is asked for a table of so many rows."""
        options = self._options()
        return recipe(num_rows, **{name: options[name] for name in ("batch_size", "epochs", "lr")})

    def _trained(
        self, model: LatentModel, rows: np.ndarray, seed: int, chosen: Recipe, **settings: Any
    ) -> RelayPosterior:
        """Trains a model, which is then `model_`; returns the posteriors of the rows."""
        options = self._options()
        with full_precision():
            self.history_ = fit(
                model,
                rows,
                standardize=False,
                **chosen._asdict(),
                kl_weight=options["kl_weight"],
                decoder_weight_decay=options["decoder_weight_decay"],
                seed=seed,
                device=self.device,
                eval_every=0,
                progress=bool(self.verbose),
                **settings,
            )
            posterior = model.posterior
            self.model_ = without_rows(model.eval())
        return posterior

    def _options(self) -> dict[str, Any]:
        """The parameters; searches draw NumPy's numbers, these are Python's."""
        parameters = self.get_params(deep=False).items()
        plain = (np.generic, np.ndarray)
        return {k: v.tolist() if isinstance(v, plain) else v for k, v in parameters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # pickles of earlier versions lack the parameters that have come since
        given = inspect.signature(type(self).__init__).parameters.values()
        defaults = {own.name: own.default for own in given if own.name != "self"}
        super().__setstate__({**defaults, **state})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = is_nan(self.missing_values)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _more_tags(self) -> dict[str, Any]:
        # the same for scikit-learn 1.4 and 1.5
        return {
            "allow_nan": is_nan(self.missing_values),
            "preserves_dtype": [np.float64, np.float32],
        }

    def _table(self, X: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        """X as checked numbers [N, D], and which of them are missing; text is, throughout."""
        if reset:
            self.encoder_ = encoder_of(self, X)
        if self.encoder_ is not None:
            X = encoded(self.encoder_, X)
        return checked_table(self, X, self.missing_values, reset=reset)

    def _law_of(self, num_features: int) -> Likelihood:
        """What `likelihood` stands for; a module learns in the model, and the user's stays as it is."""
        given = self._options()["likelihood"] if self.encoder_ is None else self.encoder_.laws
        with torch.device("cpu"):
            law = make(copy.deepcopy(given), num_features)
        if not isinstance(law, Likelihood):
            raise TypeError(
                f"likelihood: expected a name, a Likelihood, or one for each column, got {given!r}"
            )
        return law.cpu()

    def _check(self, law: Likelihood, x: np.ndarray, missing: np.ndarray) -> None:
        """Refuses what the law of a column cannot give, with row, column and value of X."""
        if not law.restricted:
            return
        names = getattr(self, "feature_names_in_", None)
        values = x if x.dtype == np.uint8 else x.astype(np.float64)
        law.check(
            torch.from_numpy(np.ascontiguousarray(values)),
            torch.from_numpy(~missing),
            columns=None if names is None else [repr(str(name)) for name in names],
        )

    def _without_scale(self, law: Likelihood) -> bool:
        """Whether there is no scale to look for, although `scale_factor` asks for it."""
        if self._options()["scale_factor"] != "held-out":
            return False
        try:
            law.widened(2.0)
        except ValueError:
            return True
        return False

    def _shape_of(
        self, x: np.ndarray, missing: np.ndarray, law: Likelihood, seed: int
    ) -> ColumnTransform:
        """What bends the columns of X before they are standardised."""
        kind = self.column_transform
        if kind not in TRANSFORMS:
            raise ValueError(
                f"column_transform: expected one of {', '.join(TRANSFORMS)}, got {kind!r}"
            )
        if x.dtype == np.uint8 and kind not in ("auto", "none"):
            raise ValueError(
                f"column_transform: expected 'auto' or 'none' for pixels (uint8), got {kind!r}"
            )
        if kind == "auto" and (x.dtype == np.uint8 or not self.standardize):
            kind = "none"
        return ColumnTransform.fit(x, ~missing, kind=kind, columns=np.array(law.standardizable))

    def _scale_of(self, bent: np.ndarray, missing: np.ndarray, law: Likelihood) -> Standardizer:
        """From bent columns to the units of the model."""
        size = bent.shape[1]
        if bent.dtype == np.uint8:
            return Standardizer(np.zeros(size), np.full(size, 255.0))
        if self.standardize:
            try:
                with np.errstate(over="ignore", invalid="ignore"):
                    columns = np.array(law.standardizable)
                    return Standardizer.fit(bent, ~missing, columns=columns)
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
            rows = self._units().to_model(x)
        rows[missing | self._empty] = np.nan
        wrong = np.isinf(rows)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"X: expected numbers that float32 can hold in the model's units, got "
                f"{x[row, column]} at row {row}, column {column}"
            )
        return rows

    def _units(self) -> Units:
        """Between X's units and those of the model."""
        return Units(self.standardizer_, self.column_transform_)

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

    def _means(self, rows: np.ndarray) -> torch.Tensor:
        """Posterior means [N, T] of what `_rows` gives."""
        with full_precision():
            return self._infer(rows, self.scale_factor_).mean().detach()

    def _held_out(self, rows: np.ndarray, seed: int, deadline: Deadline) -> HeldOut:
        """The number that `scale_factor` stands for, and how well it finds held-out entries.

        Both are found once, on the training rows: were the factor found in `transform`, what a row is
        given would depend on the rows beside it. It is 1 where there are too few entries to hide some,
        or no time to look.
        """
        factor = self._options()["scale_factor"]
        factors = FACTORS if isinstance(factor, str) else (float(factor),)
        if self._without_scale(self.model_.law):
            factors = (1.0,)
        if deadline.over:
            return HeldOut(factors[0], math.nan)

        def inferred(shown: Inputs, factor: float) -> RelayPosterior:
            return self._infer(shown.x, factor)

        try:
            return find_held_out(self.model_, prepare(self.model_, rows), seed, inferred, factors)
        except TooFewEntries:
            return HeldOut(factors[0], math.nan)

    def _decode(
        self, means: torch.Tensor, rows: np.ndarray | None = None, kind: str | None = None
    ) -> np.ndarray:
        """Posterior means [N, T] -> [N, D] float64 in the units of X.

        Args:
            means: of rows of X.
            rows: those as the model sees them, where the sizes of rows of counts are to be theirs.
            kind: "mean" or "mode"; None for what each law takes for the better estimate.
        """
        estimates = self._read(means, rows, lambda law, outputs: law.estimate(outputs, kind))
        return self._in_data(estimates)

    def _values(self, rows: np.ndarray) -> np.ndarray:
        """What is said of all entries [N, D], in X's units, for rows in the model's."""
        return self._decode(self._means(rows), rows)

    def _in_data(self, values: np.ndarray) -> np.ndarray:
        """[..., D] in the units of the model -> X's."""
        values = self._units().to_data(values)
        return np.where(np.isnan(self._constants), values, self._constants)

    def _read(
        self,
        means: torch.Tensor,
        rows: np.ndarray | None,
        read: Callable[[Likelihood, torch.Tensor], torch.Tensor],
    ) -> np.ndarray:
        """What is read from a law and outputs, of posterior means; see `_decode`."""
        shown = None if rows is None else torch.from_numpy(rows).to(means.device)
        parts = []
        with torch.no_grad(), full_precision():
            for own in torch.arange(len(means), device=means.device).split(_DECODED):
                law = self.model_.law if shown is None else self.model_.law.of_rows(shown[own])
                parts.append(read(law, self.model_.decode(means[own])))
        return torch.cat(parts).cpu().numpy()


def without_rows(model: LatentModel) -> LatentModel:
    """The model over one row, the mean of its rows: where those of new data start."""
    posterior = model.posterior
    model.posterior = posterior.over(posterior.mean_row()[None])
    if model.config is not None:
        model.config = {**model.config, "num_data": 1}
    return model
