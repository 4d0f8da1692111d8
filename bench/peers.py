"""What one would write in plain torch: the peers of every duel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding


class EagerPosterior(nn.Module):
    """The relay posterior with tables of its own, as the paper is written.

    Args:
        form: "gather" gathers the kept relay vectors of every row; "masked" multiplies the masked
            coefficients with all relay vectors.
        sparse: sparse gradients of the tables.
    """

    def __init__(
        self,
        num_data: int,
        latent_dim: int,
        groups: Sequence[int],
        top: float,
        form: str,
        *,
        sparse: bool,
    ) -> None:
        super().__init__()
        self.groups, self.form, self.sparse = tuple(groups), form, sparse
        self.kept = [max(1, math.floor(top * size + 0.5)) for size in groups]
        self.coefficients = nn.Parameter(0.01 * torch.randn(num_data, sum(groups)))
        self.deviation = nn.Parameter(0.01 * torch.randn(num_data, latent_dim))
        self.log_std = nn.Parameter(torch.full((num_data, latent_dim), -2.0))
        self.relays = nn.Parameter(torch.randn(sum(groups), latent_dim))

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        coefficients = embedding(index, self.coefficients, sparse=self.sparse)
        mean = embedding(index, self.deviation, sparse=self.sparse)
        log_std = embedding(index, self.log_std, sparse=self.sparse)
        parts = zip(
            coefficients.split(self.groups, 1),
            self.relays.split(self.groups),
            self.kept,
            strict=True,
        )
        for part, relays, kept in parts:
            chosen = part.detach().abs().topk(kept, dim=1, sorted=False).indices
            if self.form == "gather":
                mean = mean + torch.einsum("bm,bmt->bt", part.gather(1, chosen), relays[chosen])
            else:
                mask = torch.zeros_like(part).scatter(1, chosen, 1.0)
                mean = mean + (part * mask) @ relays
        std = log_std.exp()
        z = mean + std * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + std.square() - 1.0 - 2.0 * log_std).sum(1)
        return z, kl

    @torch.no_grad()
    def copy_from(self, posterior: nn.Module) -> None:
        """Takes over the parameters of a `RelayPosterior`."""
        layout = posterior.layout
        self.coefficients.copy_(posterior.coefficients())
        self.deviation.copy_(posterior.rows[:, layout.deviation_slice])
        self.log_std.copy_(posterior.rows[:, layout.log_std_slice])
        self.relays.copy_(posterior.relays)


def eager_log_likelihood(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """NaN in x is missing."""
    observed = ~torch.isnan(x)
    residual = torch.where(observed, x - mean, 0.0) / scale
    terms = -0.5 * residual.square() - scale.log() - 0.5 * math.log(2.0 * math.pi)
    return torch.where(observed, terms, 0.0).sum(1)


def decoder(latent_dim: int, num_features: int) -> nn.Module:
    """64-[64, 64]-D with ReLU."""
    return nn.Sequential(
        nn.Linear(latent_dim, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, num_features),
    )


def pyro_step(
    num_data: int, latent_dim: int, num_features: int
) -> Callable[[Tensor, Tensor], None]:
    """A step of Pyro's SVI: a mean and a standard deviation of its own for each row, no relays."""
    import pyro
    from pyro import distributions

    pyro.clear_param_store()
    net, scale = decoder(latent_dim, num_features), nn.Parameter(torch.ones(()))
    shape = (num_data, latent_dim)
    device = torch.get_default_device()

    def model(index: Tensor, x: Tensor) -> None:
        pyro.module("decoder", net)
        sigma = pyro.param("scale", scale, constraint=distributions.constraints.positive)
        with pyro.plate("rows", num_data, subsample=index):
            zeros = torch.zeros(len(index), latent_dim, device=device)
            z = pyro.sample("z", distributions.Normal(zeros, 1.0).to_event(1))
            observed = ~torch.isnan(x)
            likelihood = distributions.Normal(net(z), sigma).mask(observed).to_event(1)
            pyro.sample("x", likelihood, obs=torch.where(observed, x, 0.0))

    def guide(index: Tensor, x: Tensor) -> None:
        mean = pyro.param("mean", lambda: 0.01 * torch.randn(shape, device=device))
        log_std = pyro.param("log_std", lambda: torch.full(shape, -2.0, device=device))
        with pyro.plate("rows", num_data, subsample=index):
            posterior = distributions.Normal(mean[index], log_std[index].exp())
            pyro.sample("z", posterior.to_event(1))

    optimizer = pyro.optim.Adam({"lr": 1e-3})
    inference = pyro.infer.SVI(model, guide, optimizer, pyro.infer.Trace_ELBO())
    return lambda index, x: inference.step(index, x)
