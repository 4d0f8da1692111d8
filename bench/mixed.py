"""One table of numbers, yes/no, classes and counts: a law for each column beside Gaussians for all.

    python bench/mixed.py --seeds 5

The table has 2,000 rows, 4 numbers, 2 columns of 0 and 1, 2 of classes (3 and 7) and 2 of counts, which
three hidden factors of each row bring forth; 30 % of the entries are hidden and score. `Mixed` and the
Gaussians (a learned scale for each column, standardised columns, codes and counts as numbers) have the
same networks, seeds and training, those that `RelayImputer` has if not told otherwise; nothing is chosen
by the entries that score.

A density and a probability cannot be compared. A Gaussian's probability of a whole number is that of all
that is rounded to it: of the unit interval around it, and of all beyond for the least and the largest
that the column can hold, so that its probabilities of what is possible sum to 1. Densities of numbers
are those of the column in units of its standard deviation. Both are of the posterior predictive: the
mean over 50 draws of the latents, given what was observed of the row. Errors are those of what `impute`
fills in, for the Gaussians rounded to the nearest possible yes/no or class, and not below 0 for counts.

Prints a table: nats per hidden entry (more is better), of all and by kind of column, and errors: root
mean square (numbers, in standard deviations; counts), share of wrong ones (yes/no, classes); each is a
mean over seeds, with the seeds of which `Mixed` wins.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rvi_fast
from rvi_fast import likelihoods

LAWS = [
    *["gaussian"] * 4,
    *["bernoulli"] * 2,
    ("categorical", 3),
    ("categorical", 7),
    *["poisson"] * 2,
]
KINDS = {"numbers": range(4), "yes/no": range(4, 6), "classes": range(6, 8), "counts": range(8, 10)}
# the largest that a column of whole numbers can hold
MOST = {4: 1, 5: 1, 6: 2, 7: 6, 8: np.inf, 9: np.inf}
ROWS, FACTORS, MISSING, DRAWS = 2000, 3, 0.3, 50


def table(seed: int, rows: int = ROWS) -> np.ndarray:
    """[N, 10] float64, brought forth by hidden factors of each row."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rows, FACTORS))

    def drivers(count: int) -> np.ndarray:
        """[N, count] standard normal, each a direction of its own in the space of factors."""
        loadings = rng.normal(size=(FACTORS, count))
        return factors @ (loadings / np.linalg.norm(loadings, axis=0))

    numbers = drivers(4) + 0.4 * rng.normal(size=(rows, 4))
    numbers = numbers * [1.0, 30.0, 0.01, 1000.0] + [0.0, 170.0, 5.0, -2e4]
    logits = 3 * drivers(2) + [0.5, -1.0]
    yes = rng.random((rows, 2)) < 1 / (1 + np.exp(-logits))
    classes = [(3 * drivers(k) + rng.gumbel(size=(rows, k))).argmax(1) for k in (3, 7)]
    rates = np.exp(0.7 * drivers(2) + [0.5, 2.5])
    return np.column_stack((numbers, yes, *classes, rng.poisson(rates)))


def trained(law: Any, given: np.ndarray, seed: int, **options: Any) -> rvi_fast.models.LatentModel:
    """A model of what was observed."""
    generator = torch.Generator().manual_seed(seed)
    model = rvi_fast.models.rvi(*given.shape, latent_dim=16, likelihood=law, generator=generator)
    options = {"epochs": 250, "batch_size": 256, "lr": 0.01, "eval_every": 0} | options
    rvi_fast.fit(model, given, seed=seed, progress=False, **options)
    return model


@torch.no_grad()
def nats(model: rvi_fast.models.LatentModel, x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Log-probability of each hidden entry, 0 for the others, [N, D]; see the module."""
    z = model.posterior(torch.arange(len(x)), num_samples=DRAWS, seed=0).z
    outputs, values = model.decode(z), torch.from_numpy(x)
    law, gaussian = model.law, isinstance(model.law, likelihoods.Gaussian)
    found = np.zeros(x.shape)
    scale = model.scaler.standardizer()
    for column in range(x.shape[1]):
        alone = torch.zeros(x.shape, dtype=torch.bool)
        alone[:, column] = torch.from_numpy(hidden[:, column])
        if column in MOST and gaussian:
            mean = outputs[..., column].double() * scale.std[column] + scale.mean[column]
            std = law.scale[column].double() * scale.std[column]
            entries = _of_interval(values[:, column], mean, std, MOST[column])
            entries = torch.where(alone[:, column], entries, 0.0)
        else:
            with model.own_units():
                entries = law(
                    model.scaler.to_model(values, outputs.dtype, cut=False), outputs, alone
                )
        found[:, column] = torch.logsumexp(entries.double(), 0) - np.log(DRAWS)
    return found


def _of_interval(x: Tensor, mean: Tensor, std: Tensor, most: float) -> Tensor:
    """log P(x - 1/2 < a Gaussian < x + 1/2), to the ends of the line for 0 and the most, [S, N]."""
    low = torch.where(x == 0, -torch.inf, (x - 0.5 - mean) / std)
    high = torch.where(x == most, torch.inf, (x + 0.5 - mean) / std)
    # the upper tail is the lower one of the mirrored line: differences of small numbers, not of ones
    turned = low + high > 0
    low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return upper + torch.log1p(-(lower - upper).exp())


def errors(filled: np.ndarray, x: np.ndarray, hidden: np.ndarray) -> dict[str, float]:
    """By kind of column, see the module."""
    found = {}
    for kind, columns in KINDS.items():
        each = []
        for column in columns:
            own, truth = (values[hidden[:, column], column] for values in (filled, x))
            if kind in ("yes/no", "classes"):
                each.append(np.mean(np.rint(own).clip(0, MOST[column]) != truth))
            else:
                own = own.clip(0) if kind == "counts" else own
                unit = x[:, column].std() if kind == "numbers" else 1.0
                each.append(np.sqrt(np.mean((own - truth) ** 2)) / unit)
        found[f"error, {kind}"] = float(np.mean(each))
    return found


def scores(seed: int, rows: int = ROWS, **options: Any) -> dict[str, dict[str, float]]:
    """Of both models on one table."""
    x = table(seed, rows)
    hidden = np.random.default_rng(seed + 1000).random(x.shape) < MISSING
    given, found = np.where(hidden, np.nan, x), {}
    laws = {"Mixed": LAWS, "Gaussian": likelihoods.Gaussian(x.shape[1], scale="feature")}
    for name, law in laws.items():
        model = trained(law, given, seed, **options)
        entries = nats(model, x, hidden)
        filled = rvi_fast.impute(model, given).numpy()
        each = {
            f"nats, {kind}": entries[:, own].sum() / hidden[:, own].sum()
            for kind, own in KINDS.items()
        }
        found[name] = {"nats": entries.sum() / hidden.sum(), **each, **errors(filled, x, hidden)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=250)
    arguments = parser.parse_args()
    found = [scores(seed, epochs=arguments.epochs) for seed in range(arguments.seeds)]
    print("| | `Mixed` | Gaussians | `Mixed` wins |\n|---|---|---|---|")
    for name in found[0]["Mixed"]:
        mixed, gaussian = (np.array([own[law][name] for own in found]) for law in found[0])
        wins = np.sum(mixed > gaussian if name.startswith("nats") else mixed < gaussian)
        print(f"| {name} | {mixed.mean():.3f} | {gaussian.mean():.3f} | {wins} of {len(found)} |")


if __name__ == "__main__":
    main()
