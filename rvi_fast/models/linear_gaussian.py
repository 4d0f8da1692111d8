"""A linear-Gaussian model of tables with missing entries: probabilistic PCA and factor analysis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..data.pixels import fractions
from ..data.tables import as_tensor, check_mask, row_chunks, unmasked
from .linear_em import Factors, Posterior, latents
from .linear_rows import Data, Rows, opened, parts
from .linear_search import fitted

NOISES = ("feature", "scalar")


class LinearGaussian(nn.Module):
    """x = W z + b + noise with z ~ N(0, I), fitted to the observed entries in closed form.

        p(x) = N(b, W W^T + diag(psi)),    psi = scale^2

    Probabilistic PCA where one scale holds for all features, factor analysis where each has its own.
    Missing entries are marginalised out, so that what a row is told by its observed entries is exact: no
    step size, no epochs, no approximation of the posterior. Everything is computed in float64, in the
    units that x comes in.

    `fit` maximises the likelihood by expectation maximisation under a weak prior (a pseudo-row whose
    weights are 0, and a pseudo-entry with a tenth of the feature's spread as noise). Where `latent_dim`
    is None it compares 0, 1, 2, 4, 8, ... factors, and for up to 128 features also a whole covariance
    that is shrunk towards independent features by .0001 to .3, by the squared error of a tenth of the
    observed entries which it holds out; a whole covariance is stored as D - 1 factors and one noise. It
    looks at up to 8,192 rows for that, converges on 20,000, and takes its last steps on all of them
    (a whole covariance: on as many as N D^3 = 2^37 allows).

    Args:
        num_features: D.
        latent_dim: R, number of factors; None for the number that predicts held-out entries best.
        noise: "feature": a standard deviation for each feature; "scalar": one for all.

    Attributes:
        weight: buffer [D, R], columns are factors, the strongest first; R is 0 until `fit` has found it.
        bias: buffer [D].
        log_scale: buffer [D] or [], logarithm of the noise's standard deviation.

    Example:
        >>> import torch, rvi_fast
        >>> line = torch.linspace(-1, 1, 50)[:, None] * torch.tensor([1.0, 2.0, -1.0])
        >>> x = torch.where(torch.arange(150).view(50, 3) % 7 == 0, torch.nan, line)
        >>> model = rvi_fast.models.ppca(3, latent_dim=1).fit(x)
        >>> bool((model.impute(x) - line).abs().max() < 0.1)
        True

    Source:
        Tipping and Bishop, Probabilistic principal component analysis, 1999; Rubin and Thayer, EM
        algorithms for ML factor analysis, 1982.
    """

    weight: Tensor
    bias: Tensor
    log_scale: Tensor

    def __init__(
        self, num_features: int, *, latent_dim: int | None = None, noise: str = "feature"
    ) -> None:
        super().__init__()
        self.num_features = _checks.check_positive_int("num_features", num_features)
        if latent_dim is not None:
            latent_dim = _checks.check_positive_int("latent_dim", latent_dim)
        if noise not in NOISES:
            raise ValueError(f"noise: expected one of {', '.join(NOISES)}, got {noise!r}")
        self.noise, self._rank = noise, latent_dim
        wide = torch.float64
        shape = (num_features,) if noise == "feature" else ()
        self.register_buffer("weight", torch.zeros(num_features, latent_dim or 0, dtype=wide))
        self.register_buffer("bias", torch.zeros(num_features, dtype=wide))
        self.register_buffer("log_scale", torch.zeros(shape, dtype=wide))

    @property
    def latent_dim(self) -> int:
        """Number of factors R."""
        return self.weight.shape[1]

    @torch.no_grad()
    def fit(
        self,
        x: Any,
        mask: Any = None,
        *,
        max_iter: int = 200,
        tol: float = 1e-5,
        groups: Sequence[int] | None = None,
        seed: int = 0,
    ) -> LinearGaussian:
        """Finds weight, bias and scale of a table.

        Args:
            x: [N, D] tensor or numpy array, NaN = missing, and what a masked array masks; uint8 are
                pixels and count as x / 255. Rows and columns may be missing as a whole: such a column
                gets bias 0, weight 0 and scale 1.
            mask: bool [N, D], true = observed; an entry that is NaN is missing all the same.
            max_iter: steps of expectation maximisation at most.
            tol: it ends after a step that has raised the likelihood by less, in nats for each entry.
            groups: for each feature [D] a number that features have in common of which all or none are
                held out, such as the codes of one class; None where each is for itself.
            seed: of the entries that are held out, and of the rows that stand for a large table.

        Returns:
            The model itself.

        Raises:
            ValueError, TypeError: shapes, dtypes or numbers that are none of the above.
        """
        max_iter = _checks.check_positive_int("max_iter", max_iter)
        tol = _checks.check_non_negative("tol", tol)
        seed = _checks.check_seed(seed)
        together = None if groups is None else self._grouped(groups)
        scalar, rank = self.noise == "scalar", self._rank
        data, seen = opened(*self._checked(x, mask), scalar=scalar)
        wide = ~torch.isfinite(data.spread)
        if bool(wide.any()):
            column = int(wide.to(torch.uint8).argmax())
            raise ValueError(
                "x: expected numbers whose squares float64 can hold, got larger ones in column "
                f"{column}"
            )
        if data.num_rows:
            found = fitted(
                data, rank, together, scalar=scalar, max_iter=max_iter, tol=tol, seed=seed
            )
        else:
            nothing = data.centre
            found = Factors(
                nothing, nothing.new_zeros(len(nothing), self._rank or 0), nothing + 1.0
            )
        # in the units of x
        weight = torch.where(seen[:, None], found.weight * data.spread[:, None], 0.0)
        self.weight = weight.contiguous()
        self.bias = torch.where(seen, data.centre + found.bias * data.spread, 0.0)
        log_scale = torch.where(seen, 0.5 * found.noise.log() + data.spread.log(), 0.0)
        # one scale is that of any feature that was seen
        alike = log_scale[seen.to(torch.uint8).argmax()]
        self.log_scale = log_scale if self.noise == "feature" else alike
        return self

    @torch.no_grad()
    def posterior(self, x: Any, mask: Any = None) -> tuple[Tensor, Tensor]:
        """The posterior of z given the observed entries of each row, which is a Gaussian.

        Args:
            x: rows [N, D], as in `fit`.
            mask: bool [N, D], true = observed.

        Returns:
            Means [N, R] and covariances [N, R, R], float64.
        """
        found = [posterior for _, _, posterior in self._blocks(x, mask)]
        return torch.cat([f.mean for f in found]), torch.cat([f.covariance for f in found])

    @torch.no_grad()
    def log_prob(self, x: Any, mask: Any = None) -> Tensor:
        """log p(observed entries) of each row, in nats: [N] float64; 0 for a row that shows nothing.

        Args:
            x: rows [N, D], as in `fit`.
            mask: bool [N, D], true = observed.
        """
        return torch.cat([posterior.log_prob for _, _, posterior in self._blocks(x, mask)])

    @torch.no_grad()
    def predictive(self, x: Any, mask: Any = None) -> tuple[Tensor, Tensor]:
        """What each entry would be if it were measured (again), given the observed entries of its row.

        For a missing entry that is its conditional distribution, noise included.

        Args:
            x: rows [N, D], as in `fit`.
            mask: bool [N, D], true = observed.

        Returns:
            Means [N, D] and standard deviations [N, D], float64.
        """
        model, mean, std = self.factors(), [], []
        for _, _, posterior in self._blocks(x, mask):
            mean.append(posterior.mean @ model.weight.T + model.bias)
            spread = (model.weight @ posterior.covariance * model.weight).sum(2)
            std.append((spread + model.noise).sqrt())
        return torch.cat(mean), torch.cat(std)

    @torch.no_grad()
    def impute(
        self,
        x: Any,
        mask: Any = None,
        *,
        draws: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Fills what is missing; observed entries stay as they are.

        Args:
            x: rows [N, D], as in `fit`.
            mask: bool [N, D], true = observed.
            draws: M; 0 for the conditional mean.
            generator: what draws are drawn from, torch's default generator if not given.

        Returns:
            [N, D], or [M, N, D] draws from the joint conditional distribution of what a row misses,
            noise included; in the dtype of x, float64 for pixels.
        """
        draws = _checks.check_count("draws", draws)
        values, known = self._checked(x, mask)
        dtype = values.dtype if values.is_floating_point() else torch.float64
        shape = (draws, *values.shape) if draws else values.shape
        filled = torch.empty(shape, dtype=dtype, device=values.device)
        model = self.factors()
        for part, rows, posterior in self._blocks(values, known):
            z = posterior.mean
            if draws:
                root = torch.linalg.cholesky(posterior.covariance)
                normal = _normal((draws, *z.shape), z, generator)
                z = z + (root @ normal[..., None])[..., 0]
            entries = z @ model.weight.T + model.bias
            if draws:
                entries = entries + model.noise.sqrt() * _normal(entries.shape, z, generator)
            own = fractions(values[part], dtype)
            filled[..., part, :] = torch.where(rows.known > 0, own, entries.to(dtype))
        return filled

    def factors(self) -> Factors:
        """The distribution in float64, with a noise for each feature."""
        bias, weight, log_scale = (
            tensor.to(torch.float64) for tensor in (self.bias, self.weight, self.log_scale)
        )
        return Factors(bias, weight, (2 * log_scale).exp().expand(self.num_features))

    def _blocks(self, x: Any, mask: Any) -> Iterator[tuple[slice, Rows, Posterior]]:
        """Some rows at a time: which, what they show, and the posterior."""
        values, known = self._checked(x, mask)
        model, plain = self.factors(), torch.zeros_like(self.bias, dtype=torch.float64)
        data, entries = Data(values, known, plain, plain + 1.0), self.latent_dim**2
        entries = max(entries, self.num_features)
        for part, rows in zip(parts(len(values), entries), data.blocks(entries), strict=True):
            yield part, rows, latents(model, rows)

    def _checked(self, x: Any, mask: Any) -> tuple[Tensor, Tensor | None]:
        """x and mask as tensors where the buffers are.

        Raises:
            ValueError, TypeError: they are no data of this model.
        """
        x, mask = unmasked(x, mask)
        values = as_tensor("x", x)
        if values.dtype not in _checks.DATA_DTYPES:
            raise TypeError(f"x: expected floating point or uint8, got {values.dtype}")
        if values.dim() != 2 or values.shape[1] != self.num_features or not len(values):
            raise ValueError(
                f"x: expected shape [N, {self.num_features}] with N >= 1, got {_checks.shape_of(values)}"
            )
        known = None if mask is None else as_tensor("mask", mask)
        check_mask(values, known)
        device = self.bias.device
        values, known = values.to(device), None if known is None else known.to(device)
        for rows in row_chunks(tuple(values.shape)):
            infinite = torch.isinf(values[rows])
            if known is not None:
                infinite &= known[rows]
            if bool(infinite.any()):
                row, column = _checks.first_entry(infinite)
                raise ValueError(f"x: infinite in row {rows.start + row}, column {column}")
        return values, known

    def _grouped(self, groups: Sequence[int]) -> Tensor:
        """`groups` [D], counted from 0."""
        found = torch.as_tensor(groups, device="cpu")
        if found.shape != (self.num_features,) or found.dtype.is_floating_point:
            raise ValueError(f"groups: expected {self.num_features} whole numbers, got {groups!r}")
        return found.unique(return_inverse=True)[1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # the number of factors is known by the numbers alone
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.dim() == 2 and weight.shape[0] == self.num_features:
            self.weight = self.weight.new_zeros(weight.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        return (
            f"num_features={self.num_features}, latent_dim={self.latent_dim}, noise={self.noise!r}"
        )


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)


def ppca(
    num_features: int, *, latent_dim: int | None = None, noise: str = "feature"
) -> LinearGaussian:
    """Probabilistic PCA (one noise for all features) or factor analysis (one for each), to be fitted.

    Args:
        num_features: D.
        latent_dim: R, number of factors; None for the number that predicts held-out entries best.
        noise: "feature" or "scalar", see `LinearGaussian`.

    Example:
        >>> import rvi_fast
        >>> rvi_fast.models.ppca(5, latent_dim=2)
        LinearGaussian(num_features=5, latent_dim=2, noise='feature')
    """
    return LinearGaussian(num_features, latent_dim=latent_dim, noise=noise)
