"""RVI, a masked U-Net and a conditional Gaussian that fill in MNIST and Fashion-MNIST.

    python bench/imputation/images.py --write-results

Rows and masks are those of `rvi-fast reproduce imputation --scale reduced`: 10,000 training images, half
or nine tenths of their pixels hidden at random, and 2,000 test images with as many hidden. Scored is the
elastic error, |e| + e^2, over the hidden pixels of the test images, filled in and clipped to [0, 1]; the
hidden pixels of the training images are not seen either. `--development` scores the last 2,000 training
images instead, with seed 100, and never opens the test images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import rvi_fast
from rvi_fast import data, models
from rvi_fast.data.pixels import fractions
from rvi_fast.experiments.experiment import Experiment, parts
from rvi_fast.files import write_text

RESULTS = Path(__file__).parent.parent / "results" / "images"
SETS, RATES = ("mnist", "fashion-mnist"), (0.5, 0.9)
TRAIN, TEST = 10_000, 2_000
# of the observed pixels of a training image: hidden from the network, and its loss
HELD_OUT = 0.25
BATCH, LR = 64, 4e-3
# of RVI, about 57 CPU seconds
EPOCHS = 60


class UNet(nn.Module):
    """Image and mask -> image, 12, 24 and 48 channels at 28, 14 and 7 pixels a side.

    Two 3 x 3 convolutions with ReLU at each size on the way down, two on the way up, which also see
    what the way down had at that size; the last one gives the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(2, 12), _block(12, 24)])
        self.middle = _block(24, 48)
        self.up = nn.ModuleList([_block(48 + 24, 24), _block(24 + 12, 12)])
        self.last = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, 784] pixels, zero where they are hidden, and what is shown -> [B, 784]."""
        hidden = torch.stack([x * mask, mask], 1).view(len(x), 2, 28, 28)
        kept = []
        for block in self.down:
            hidden = block(hidden)
            kept.append(hidden)
            hidden = functional.max_pool2d(hidden, 2)
        hidden = self.middle(hidden)
        for block in self.up:
            hidden = functional.interpolate(hidden, scale_factor=2)
            hidden = block(torch.cat([hidden, kept.pop()], 1))
        return self.last(hidden).flatten(1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


def u_net(holed: np.ndarray, rows: np.ndarray, seed: int, budget: float) -> np.ndarray:
    """Trains for `budget` CPU seconds on `holed` [N, 784] and fills in `rows` [M, 784], float32.

    Each step hides another quarter of the observed pixels of a batch; the loss is the elastic error
    over them. Adam; the learning rate falls to zero as half a cosine of the time that is spent.
    """
    torch.manual_seed(seed)
    network = UNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    x, known = torch.from_numpy(np.nan_to_num(holed)), torch.from_numpy(~np.isnan(holed))
    # the network starts at the mean pixel, not at black
    nn.init.constant_(network.last.bias, float(np.nanmean(holed)))  # type: ignore[arg-type]
    start, spent = time.process_time(), 0.0
    while spent < budget:
        optimizer.param_groups[0]["lr"] = LR * (1 + np.cos(np.pi * spent / budget)) / 2
        chosen = torch.randint(len(x), (BATCH,))
        of, shown = x[chosen], known[chosen]
        held = shown & (torch.rand(of.shape) < HELD_OUT)
        error = (network(of, (shown & ~held).float()) - of)[held].abs()
        optimizer.zero_grad()
        (error + error * error).mean().backward()
        optimizer.step()
        spent = time.process_time() - start
    x, known = torch.from_numpy(np.nan_to_num(rows)), torch.from_numpy(~np.isnan(rows)).float()
    with torch.no_grad():
        made = [network(*pair) for pair in zip(x.split(500), known.split(500), strict=True)]
    return torch.cat(made).numpy()


def column_mean(holed: np.ndarray, rows: np.ndarray, seed: int, budget: float) -> np.ndarray:
    """Fills in `rows` with the mean of each pixel."""
    return data.column_mean(rows, train=holed)


def conditional_gaussian(
    holed: np.ndarray, rows: np.ndarray, seed: int, budget: float
) -> np.ndarray:
    """Fills in `rows` with their mean given what they show: one Gaussian, pairwise covariances."""
    return data.conditional_gaussian(rows, train=holed)


def relay(holed: np.ndarray, rows: np.ndarray, seed: int, budget: float) -> np.ndarray:
    """Fills in `rows` by inference of RVI with a convolutional decoder, trained for `EPOCHS` visits."""
    latent_dim, initial_log_std, scale_factor = settings(holed)
    model = models.rvi(
        *holed.shape,
        latent_dim=latent_dim,
        decoder="conv",
        image_shape=(28, 28),
        initial_scale=0.2,
        initial_log_std=initial_log_std,
        generator=torch.Generator().manual_seed(seed),
    )
    training = {"epochs": EPOCHS, "lr": 1e-3, "standardize": False, "progress": False}
    rvi_fast.fit(model, holed, seed=seed, **training)
    found = rvi_fast.infer(model, rows, steps=50, scale_factor=scale_factor, seed=seed)
    return np.asarray(rvi_fast.impute(model, rows, posterior=found))


def settings(holed: np.ndarray) -> tuple[int, float, float]:
    """`latent_dim`, `initial_log_std` and `scale_factor`, by how many pixels of an image are shown.

    Settled on development rows of MNIST: where few are, latents that say less about each.
    """
    return (64, -2.0, 1.0) if np.mean(~np.isnan(holed)) > 0.25 else (32, -1.0, 1.5)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, int, float], np.ndarray]] = {
    "column mean": column_mean,
    "conditional Gaussian": conditional_gaussian,
    "U-Net": u_net,
    "RVI, convolutional decoder": relay,
}


def split(
    name: str, rate: float, seed: int, development: bool, sizes: tuple[int, int] = (TRAIN, TEST)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is learned from, what is filled in, both with NaN for hidden pixels, and the latter whole.

    Returns:
        [N, D], [M, D] and [M, D], float32 in [0, 1].
    """
    if not development:
        experiment = Experiment(
            data=name, rows=sizes[0], test_rows=sizes[1], missing=rate, seed=seed
        )
        train, test = parts(experiment, None)
        raw, masks = (train.x, test.x), (train.mask, test.mask)
    else:
        pool = data.load_data(name).train
        chosen = np.random.default_rng(seed).permutation(len(pool) - TEST)[: sizes[0]]
        raw = (pool[np.sort(chosen)], pool[-TEST:][: sizes[1]])
        masks = tuple(data.mcar(x.shape, rate, seed=2 * seed + k) for k, x in enumerate(raw))
    whole = [fractions(x, np.float32) for x in raw]
    holed = [np.where(m, x, np.float32("nan")) for x, m in zip(whole, masks, strict=True)]
    return holed[0], holed[1], whole[1]


def score(whole: np.ndarray, rows: np.ndarray, filled: np.ndarray) -> tuple[float, float]:
    """Elastic and root mean square error of the pixels that `rows` hides, clipped to [0, 1]."""
    hidden = np.isnan(rows)
    clipped = filled.clip(0.0, 1.0)
    rms = float(np.sqrt(np.mean((clipped - whole)[hidden].astype(np.float64) ** 2)))
    return data.elastic(whole, clipped, hidden), rms


def main() -> None:
    """Prints a table, and writes it where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--budget", type=float, default=50.0, help="CPU seconds of the U-Net")
    parser.add_argument("--seed", type=int, help="of rows, masks and network: 0, or 100")
    parser.add_argument("--development", action="store_true", help="score training images")
    parser.add_argument(
        "--write-results", action="store_true", help="write the table to bench/results"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    seed = given.seed if given.seed is not None else 100 if given.development else 0
    lines = [
        "# Images filled in",
        "",
        f"`python bench/imputation/images.py`, seed {seed}, {TRAIN:,} training and {TEST:,} test "
        f"images, one thread; the U-Net trains for {given.budget:g} CPU seconds. Error over hidden "
        "pixels, clipped to [0, 1].",
        "",
        "| data | missing | imputer | elastic | RMSE | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines[-2:]))
    for name in given.data:
        for rate in given.rates:
            holed, rows, whole = split(name, rate, seed, given.development)
            for method in given.methods:
                start = time.process_time()
                filled = METHODS[method](holed, rows, seed, given.budget)
                seconds = time.process_time() - start
                elastic, rms = score(whole, rows, filled)
                cells = f"{name} | {rate:g} | {method} | {elastic:.4f} | {rms:.4f} | {seconds:.0f}"
                lines.append(f"| {cells} |")
                print(lines[-1], flush=True)
                if given.write_results:
                    write_text(RESULTS.with_suffix(".md"), "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
