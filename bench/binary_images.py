"""Binarised images with half of the pixels missing: Bernoulli models, scored on the missing pixels.

    RVI_FAST_DATA=DIR python bench/binary_images.py --data mnist --rows 10000 --epochs 50

Pixels above half of white are 1, the others 0; half of them are hidden at random from training and from
inference, and score. RVI, VAD and VAE (with and without the mask as inputs) have the same likelihood,
decoder 64-[64, 64]-D, batch 256, learning rate 0.001, epochs, rows and mask; all are trained on these
images, and RVI's and VAD's posteriors are those of the training.

Prints a table: nats of the missing pixels of an image (more is better) from the posterior predictive,
the logarithm of the mean over 50 draws of the latents of the probability of all of them; and the share
of missing pixels that `impute` fills in wrongly. The first row knows each pixel's frequency alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rvi_fast
from rvi_fast import data, likelihoods

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "RVI": ("rvi", {}),
    "VAD": ("vad", {}),
    "VAE": ("vae", {}),
    "VAE, mask_input": ("vae", {"mask_input": True}),
}
DRAWS, CHUNK = 50, 500


def images(name: str, rows: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 0 and 255 [N, D], and which of them are shown."""
    full = data.load_data(name).train
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(full))[:rows])
    x = np.where(full[chosen] > 127, np.uint8(255), np.uint8(0))
    return x, data.mcar(x.shape, 0.5, seed=seed)


@torch.no_grad()
def nats(model: rvi_fast.models.LatentModel, posterior: Any, x: Tensor, hidden: Tensor) -> float:
    """Of the hidden pixels of an image, mean over images."""
    total = 0.0
    for rows in torch.arange(len(x)).split(CHUNK):
        z = posterior(rows, num_samples=DRAWS, seed=0).z
        entries = model.log_prob(x[rows], z, hidden[rows])
        total += float((torch.logsumexp(entries.double(), 0) - np.log(DRAWS)).sum())
    return total / len(x)


def scores(
    x: np.ndarray,
    mask: np.ndarray,
    *,
    epochs: int,
    seed: int = 0,
    names: Any = tuple(MODELS),
    **sizes: Any,
) -> dict[str, tuple[float, float]]:
    """Nats and share of wrong pixels, by model."""
    pixels, shown = torch.from_numpy(x), torch.from_numpy(mask)
    law = likelihoods.Bernoulli(x.shape[1])
    outputs = law.initial_outputs(law.totals(pixels, shown)).float().expand(x.shape)
    wrong = (law.mode(outputs) != pixels / 255)[~shown].double().mean()
    found = {"frequencies": (float(law(pixels, outputs, ~shown).mean()), float(wrong))}
    for name in names:
        builder, own = MODELS[name]
        generator = torch.Generator().manual_seed(seed)
        model = rvi_fast.models.BUILDERS[builder](
            *x.shape, likelihood="bernoulli", generator=generator, **own, **sizes
        )
        rvi_fast.fit(model, x, mask=mask, epochs=epochs, seed=seed, eval_every=0, progress=False)
        posterior = rvi_fast.infer(model, x, mask=mask) if model.amortized else model.posterior
        filled = rvi_fast.impute(model, x, mask=mask, posterior=posterior)
        wrong = (filled != pixels / 255)[~shown].double().mean()
        found[name] = nats(model.eval(), posterior, pixels, ~shown), float(wrong)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    x, mask = images(arguments.data, arguments.rows, arguments.seed)
    print("| | nats of the missing pixels | wrong |\n|---|---|---|")
    for name, (value, wrong) in scores(
        x, mask, epochs=arguments.epochs, seed=arguments.seed
    ).items():
        print(f"| {name} | {value:.1f} | {wrong:.2%} |", flush=True)


if __name__ == "__main__":
    main()
