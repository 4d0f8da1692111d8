"""The posterior of a variational auto-encoder: a network computes it from the datapoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .. import _checks, reference
from ..functional import RelaySample, relay_sample
from ..layout import RowLayout
from .base import Posterior
from .relay import RelayPosterior
from .rows import check_shard

# rows encoded at once when a whole table is asked for
_CHUNK = 8192


class EncoderPosterior(Posterior):
    """q(z | x) = N(mean(x), exp(log_std(x))^2), both the output of one network (VAE).

    Missing entries enter the network as zeros. Nothing is owned by a datapoint: the posterior of new
    data is one pass, see `of`.

    Args:
        encoder: a module from [B, D], or [B, 2 D] with `mask_input`, to [B, 2 T]: means, then log
            standard deviations.
        num_data: N, rows of the training data.
        num_features: D.
        latent_dim: T.
        mask_input: the network sees the mask too, as D more inputs, 1 = observed.
        refine_steps: the semi-amortised VAE: what the encoder gives is where each row starts, and so
            many steps of its own follow, under a decoder that stays as it is, in `fit` and `infer`.
            `forward` and `of` give the start. See `models.vae`.
        refine_lr: learning rate of those steps.
        shard: the rows [start, stop) of the `num_data` that this process trains, where others train the
            rest, see `training.distributed`; all if not given.

    Attributes:
        num_data: rows of this process.
        first_row: number of the first one; row i draws the noise of row `first_row + i`.

    Example:
        >>> import torch, rvi_fast
        >>> posterior = rvi_fast.EncoderPosterior(torch.nn.Linear(5, 6), 100, 5, 3)
        >>> x = torch.tensor([[0.5, torch.nan, 1.0, 0.0, torch.nan]])
        >>> z, kl = posterior(torch.tensor([7]), x)
        >>> z.shape, kl.shape
        (torch.Size([1, 3]), torch.Size([1]))
        >>> posterior.of(x).mean().shape
        torch.Size([1, 3])

    Source:
        Kingma and Welling 2014; the baseline of paper section 5. Refined: Kim, Wiseman, Miller, Sontag
        and Rush 2018, "Semi-Amortized Variational Autoencoders".
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_data: int,
        num_features: int,
        latent_dim: int,
        *,
        mask_input: bool = False,
        refine_steps: int = 0,
        refine_lr: float = Posterior.refine_lr,
        shard: range | None = None,
    ) -> None:
        super().__init__()
        if _checks.check_count("refine_steps", refine_steps):
            # set where they are not as usual: a resume compares the attributes of modules, and
            # checkpoints of models without them know none
            self.refine_steps = refine_steps
            self.refine_lr = _checks.check_positive_float("refine_lr", refine_lr)
        self.encoder = encoder
        own = check_shard(shard, _checks.check_positive_int("num_data", num_data))
        self.num_data = len(own)
        if shard is not None:
            self.sharded, self.first_row, self.table_size = True, own.start, num_data
        self.num_features = _checks.check_positive_int("num_features", num_features)
        self.layout = RowLayout.resolve(latent_dim, (), (), "linear")
        self.mask_input = mask_input

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions T."""
        return self.layout.latent_dim

    if TYPE_CHECKING:  # nn.Module says of a call that it gives anything

        def __call__(
            self,
            index: Tensor,
            x: Tensor,
            mask: Tensor | None = None,
            *,
            num_samples: int | None = None,
            noise: Tensor | None = None,
            seed: Tensor | int | None = None,
            generator: torch.Generator | None = None,
        ) -> RelaySample: ...

    def forward(
        self,
        index: Tensor,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        noise: Tensor | None = None,
        seed: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> RelaySample:
        """Samples z and computes the KL divergence for a batch.

        Args:
            index: row numbers [B] from `first_row` on, of the noise alone.
            x: data [B, D], floating point with NaN = missing, or uint8 pixels (x / 255).
            mask: bool [B, D], true = observed.
            num_samples, noise, seed, generator: as in `RelayPosterior.forward`.

        Returns:
            `RelaySample`: z [B, T] or [S, B, T], kl [B] in nats.
        """
        return self.sample(
            self.encode(x, mask),
            index,
            num_samples=num_samples,
            noise=noise,
            seed=seed,
            generator=generator,
        )

    def sample(
        self,
        rows: Tensor,
        index: Tensor,
        *,
        num_samples: int | None = None,
        noise: Tensor | None = None,
        seed: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> RelaySample:
        """`forward` from what `encode` gives, or from rows like it.

        Args:
            rows: packed [B, W].
            index: row numbers [B] from `first_row` on, of the noise alone.
            num_samples, noise, seed, generator: as in `RelayPosterior.forward`.
        """
        _checks.check_index(index, rows.device)
        _checks.check_shape("index", index, (len(rows),))
        samples = (
            1 if num_samples is None else _checks.check_positive_int("num_samples", num_samples)
        )
        if noise is None:
            if seed is None:
                seed = torch.randint(
                    2**63 - 1, (1,), dtype=torch.int64, device=rows.device, generator=generator
                )
            seed = torch.as_tensor(seed, dtype=torch.int64, device=rows.device)
            keys = self.noise_index(index)
            noise = reference.normal_noise(seed, keys, samples, self.latent_dim, rows.dtype)
            noise = noise[0] if num_samples is None else noise
        return relay_sample(
            rows,
            rows.new_empty((0, self.latent_dim)),
            torch.arange(len(rows), device=rows.device),
            layout=self.layout,
            num_samples=num_samples,
            noise=noise,
        )

    def noise_index(self, index: Tensor) -> Tensor:
        """The numbers in the whole table of rows `index` [B], which key their noise."""
        return index.to(torch.int64) + self.first_row if self.first_row else index

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The packed rows [B, W] that a `RelayPosterior` without groups would own."""
        _checks.check_tensor("x", x)
        if x.dim() != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"x: expected shape [B, {self.num_features}], got {_checks.shape_of(x)}"
            )
        if mask is None:
            observed = ~torch.isnan(x) if x.is_floating_point() else torch.ones_like(x).bool()
        else:
            _checks.check_shape("mask", mask, tuple(x.shape))
            observed = mask
        dtype = next((p.dtype for p in self.encoder.parameters()), torch.get_default_dtype())
        values = x.to(dtype) * reference.PIXEL_SCALE if x.dtype == torch.uint8 else x.to(dtype)
        values = torch.where(observed, values, 0.0)
        if self.mask_input:
            values = torch.cat((values, observed.to(dtype)), dim=-1)
        encoded = self.encoder(values)
        _checks.check_shape("encoder(x)", encoded, (len(x), 2 * self.latent_dim))
        mean, log_std = encoded.split(self.latent_dim, dim=-1)
        layout = self.layout
        return torch.cat(
            (
                pad(mean, (0, layout.log_std_offset - self.latent_dim)),
                pad(log_std, (0, layout.width - layout.log_std_slice.stop)),
            ),
            dim=-1,
        )

    @torch.no_grad()
    def of(self, x: Tensor, mask: Tensor | None = None) -> RelayPosterior:
        """The posteriors of these rows, as a `RelayPosterior` without groups that nothing ties to x.

        Args:
            x: data [N, D].
            mask: bool [N, D], true = observed.
        """
        parts = [slice(start, start + _CHUNK) for start in range(0, len(x), _CHUNK)]
        rows = torch.cat([self.encode(x[p], None if mask is None else mask[p]) for p in parts])
        return RelayPosterior.from_rows(rows, rows.new_empty((0, self.latent_dim)), self.layout)

    def extend(self, num_data: int) -> None:
        """Counts more rows of training data: none is kept here, and `fit` compares their number.

        Raises:
            ValueError: other processes train a part of them.
        """
        if self.sharded:
            raise ValueError(
                f"posterior: expected all {self.table_size} rows for extend, got a shard of "
                f"{self.num_data}"
            )
        self.num_data += _checks.check_positive_int("num_data", num_data)

    def rows_of(
        self, index: Tensor, x: Tensor, mask: Tensor | None
    ) -> tuple[RelayPosterior, Tensor | None]:
        """The rows of a batch, encoded from its data: all of the posterior that is returned."""
        return self.of(x, mask), None

    def extra_repr(self) -> str:
        # the same in every process: a resume compares it
        num_data = self.table_size if self.sharded else self.num_data
        return f"num_data={num_data}, latent_dim={self.latent_dim}" + (
            ", mask_input=True" if self.mask_input else ""
        )
