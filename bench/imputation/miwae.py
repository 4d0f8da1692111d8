"""MIWAE (Mattei and Frellsen 2019): a deep latent variable model, importance weighted."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from .held_out import Standard, hold_out

HIDDEN, SAMPLES, BATCH, STEPS, EVERY = 128, 20, 64, 3000, 200


class Miwae:
    """Encoder D-128-128, decoder 128-128-D with a Student t law, as in the paper's experiments on UCI.

    Columns are standardised and missing entries zero for the encoder. min(10, max(1, D // 2)) latent
    dimensions, 20 importance samples in training, batches of 64, Adam with learning rate .001, 3,000
    steps at most: the networks with the least error over a tenth of the observed entries, held out of
    the likelihood and looked at every 200 steps with 50 samples, are kept, and training stops after
    five looks without a better one. What is filled in is the self-normalised mean of `samples` draws
    of the decoder's mean.

    Args:
        seed: of first values, batches, noise and held-out entries.
        samples: importance samples in `transform`.
    """

    def __init__(self, seed: int = 0, samples: int = 500) -> None:
        import torch  # noqa: F401  (its time is no part of the training's)

        self.seed, self.samples = seed, samples

    def fit(self, x: np.ndarray) -> Self:
        """Trains on x [N, D] with NaN where an entry is missing."""
        import torch

        torch.manual_seed(self.seed)
        self.units = Standard(x)
        z = self.units.to(x)
        holed, held = hold_out(z, self.seed)
        self.encoder, self.decoder = _networks(x.shape[1])
        parts = torch.nn.ModuleList([self.encoder, self.decoder])
        optimizer = torch.optim.Adam(parts.parameters(), lr=1e-3)
        data = torch.from_numpy(holed).float()
        least, waited, kept = np.inf, 0, None
        for step in range(1, STEPS + 1):
            rows = torch.randint(len(data), (min(BATCH, len(data)),))
            weight, _ = self._weights(data[rows], SAMPLES)
            loss = -(weight.logsumexp(0) - np.log(SAMPLES)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % EVERY == 0:
                made = self._means(holed, 50)
                error = float(np.square(made - z)[held].mean())
                waited += 1
                if error < least:
                    least, waited = error, 0
                    kept = {k: v.clone() for k, v in parts.state_dict().items()}
                if waited == 5:
                    break
        if kept is None:
            raise FloatingPointError("miwae: expected a finite error, got none")
        parts.load_state_dict(kept)
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """x [N, D] with its NaN filled in, float64."""
        filled = self.units.back(self._means(self.units.to(x), self.samples))
        return np.where(np.isnan(x), filled, x)

    def draws(self, x: np.ndarray, count: int, seed: int) -> np.ndarray:
        """So many draws of x's missing entries, [count, N, D]: sampling importance resampling."""
        import torch

        torch.manual_seed(seed)
        drawn = np.empty((count, *x.shape))
        with torch.no_grad():
            for start in range(0, len(x), BATCH):
                part = torch.from_numpy(self.units.to(x[start : start + BATCH])).float()
                weight, law = self._weights(part, self.samples)
                chosen = torch.multinomial(weight.softmax(0).T, count, replacement=True).T
                of = [p[chosen, torch.arange(len(part))] for p in (law.df, law.loc, law.scale)]
                values = torch.distributions.StudentT(*of).sample()
                drawn[:, start : start + BATCH] = values.double().numpy()
        return np.where(np.isnan(x), self.units.back(drawn), x)

    def _weights(self, x: Any, samples: int) -> tuple[Any, Any]:
        """Log weights [S, B] of draws of the latents, and the law of all entries [S, B, D]."""
        import torch
        from torch.distributions import Normal, StudentT

        known = ~x.isnan()
        x = x.nan_to_num(0.0)
        mean, spread = self.encoder(x).chunk(2, -1)
        posterior = Normal(mean, torch.nn.functional.softplus(spread) + 1e-4)
        z = posterior.rsample((samples,))
        centre, scale, freedom = self.decoder(z).chunk(3, -1)
        softplus = torch.nn.functional.softplus
        law = StudentT(softplus(freedom) + 3, centre, softplus(scale) + 1e-3)
        likelihood = (law.log_prob(x) * known).sum(-1)
        prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
        return likelihood + prior - posterior.log_prob(z).sum(-1), law

    def _means(self, z: np.ndarray, samples: int) -> np.ndarray:
        import torch

        parts = []
        with torch.no_grad():
            for start in range(0, len(z), BATCH):
                part = torch.from_numpy(z[start : start + BATCH]).float()
                weight, law = self._weights(part, samples)
                parts.append((weight.softmax(0)[..., None] * law.loc).sum(0).double().numpy())
        return np.concatenate(parts)


def _networks(columns: int) -> tuple[Any, Any]:
    """The encoder, D -> mean and spread of the latents, and the decoder, -> three numbers an entry."""
    from torch import nn

    latent = min(10, max(1, columns // 2))

    def dense(width: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, outputs),
        )

    return dense(columns, 2 * latent), dense(latent, 3 * columns)
