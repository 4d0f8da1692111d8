"""What a model, a training step and inference ask of a posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Drawn(NamedTuple):
    """Latents of a batch, and the way back from them.

    Attributes:
        z: [B, T], out of autograd's sight.
        kl: [B], in nats.
        pullback: from the gradients of z [B, T] and kl [B] to that of the rows of the batch [B, W], None
            where the posterior owns no rows. What is shared has its gradient in `.grad` afterwards.
    """

    z: Tensor
    kl: Tensor
    pullback: Callable[[Tensor, Tensor], Any]


class Posterior(nn.Module):
    """q(z | x) of every datapoint of a table: the base of all posteriors, and of one of your own.

    A posterior of your own computes q from the data: its `forward(index, x, mask, *, seed)` returns z
    [B, T] and kl [B], which autograd differentiates, and `rows_of` gives a `RelayPosterior` of a batch.
    A module that is no `Posterior` will do as well, if it says `amortized = True` and has `num_data`,
    `forward` and `of(x, mask)`.

    Attributes:
        owns_rows: whether each datapoint owns a row, which a `RowAdam` drives; if not, `forward` takes
            the data.
        num_data: rows held here.
        first_row: number of the first row in the whole table. `forward` counts rows from here; noise is
            to be that of row `first_row + index`, so that it does not depend on who holds the row.
        sharded: whether other processes hold other rows of the table.
        table_size: rows of the whole table, where it is sharded.
        refine_steps, refine_lr: `fit`, its evaluations and `infer` move the rows that are computed so
            many steps of that rate further, see `EncoderPosterior`.
    """

    owns_rows: bool = False
    refine_steps: int = 0
    refine_lr: float = 0.01
    num_data: int
    first_row: int = 0
    sharded: bool = False
    table_size: int

    @property
    def amortized(self) -> bool:
        """Whether the posterior of a row is computed from its data, which `forward` then takes."""
        return not self.owns_rows

    def check_rows(self) -> None:
        """Raises a ValueError where rows of training data were left out, see `RowlessPosterior`."""

    def shared_parameters(self) -> list[nn.Parameter]:
        """What all datapoints share, such as relays or an encoder's weights."""
        return list(self.parameters())

    def rows_of(self, index: Tensor, x: Tensor, mask: Tensor | None) -> tuple[Any, Tensor | None]:
        """The `RelayPosterior` of a batch, and which of its rows are the batch's; None is all.

        Args:
            index: rows [B].
            x: their data [B, D].
            mask: bool [B, D], true = observed.
        """
        raise NotImplementedError

    def draw(
        self,
        index: Tensor,
        seed: Tensor,
        keys: Tensor | None = None,
        *,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
        learn: bool = True,
    ) -> Drawn:
        """Samples z for a batch, with the way back to what it was computed from.

        Args:
            index: rows [B].
            seed: int64 [1], key of the noise.
            keys: row numbers [B] that key the noise; the rows' own if not given.
            x: data [B, D], where the posterior is computed from them.
            mask: bool [B, D], true = observed.
            noise: standard normal [1, B, T] instead of drawn noise.
            learn: whether what is shared gets a gradient.
        """
        given = {} if noise is None else {"noise": noise[0]}
        with torch.enable_grad():
            index = index if keys is None else keys - self.first_row
            z, kl = self(index, x, mask, seed=seed, **given)

        def pullback(grad_z: Tensor, grad_kl: Tensor) -> None:
            if learn:
                torch.autograd.backward((z, kl), (grad_z, grad_kl))

        return Drawn(z.detach(), kl.detach(), pullback)


class _Plain(Posterior):
    """A module of somebody's own that is no `Posterior`, asked as if it were one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module
        self.owns_rows = not getattr(module, "amortized", False)

    @property
    def num_data(self) -> int:  # type: ignore[override]
        return self.module.num_data

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def rows_of(self, index: Tensor, x: Tensor, mask: Tensor | None) -> tuple[Any, Tensor | None]:
        return self.module.of(x, mask), None


def as_posterior(module: nn.Module) -> Posterior:
    """A model's posterior as training asks it; a module that is none of the package's is wrapped."""
    return module if isinstance(module, Posterior) else _Plain(module)
