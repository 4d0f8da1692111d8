"""Rows as the means of their posteriors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from .estimator import RelayEstimator
from .precision import full_precision
from .tables import kept_dtype


class RelayEmbedder(ClassNamePrefixFeaturesOutMixin, RelayEstimator):
    """Embeds rows, complete or not, as the means of their posteriors under a relay model.

    `transform` finds the posterior of each row, with everything that the rows share as `fit` left it.
    What a row gets does not depend on the rows beside it. `fit_transform` gives the means that training
    itself found; `transform` finds others for the same rows, above all in dimensions that the model
    hardly uses. `fit(X).transform(X)` treats the training rows as it will treat new ones.

    Features that were never observed in `fit` say nothing here, and `inverse_transform` gives them 0;
    constant features get their value. uint8 are pixels, as in `RelayImputer`.

    The arguments that are not named below, and all attributes (`model_`, `history_`,
    `column_transform_`, `standardizer_`, `scale_factor_`, `held_out_error_`, `n_features_in_`,
    `feature_names_in_`), are those of `RelayImputer` with `members=("relay",)`.

    Args:
        latent_dim: T, the number of columns of the result.
        scale_factor: as in `RelayImputer` with `members=("relay",)`; 1 gives the posterior under the
            trained model itself.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(50, 6))
        >>> embedder = RelayEmbedder(latent_dim=2, epochs=20, random_state=0)
        >>> embedder.fit_transform(x).shape, embedder.get_feature_names_out()[0]
        ((50, 2), 'relayembedder0')
    """

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Trains a model on the rows of X and returns their posterior means [N, latent_dim]."""
        x, _, posterior = self._fit(X)
        with full_precision():
            return _array(posterior.mean(), x.dtype)

    def transform(self, X: Any) -> np.ndarray:
        """Posterior means [N, latent_dim] of the rows of X, float32 if X is and float64 if not."""
        check_is_fitted(self)
        x, missing = self._table(X, reset=False)
        self._check(self.model_.law, x, missing)
        return _array(self._means(self._rows(x, missing)), x.dtype)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Decodes embeddings [N, latent_dim] to rows [N, D] in the units of the data.

        Yes/no and classes come back as the most probable 0, 1 or code, numbers and counts as means.
        """
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


def _array(means: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """float32 if that is the data's dtype and float64 if not."""
    return means.detach().cpu().numpy().astype(kept_dtype(dtype))
