"""Fills missing pixels, draws a picture of it, and fills images that come after training.

python examples/impute_images.py                      # scikit-learn's digits
python examples/impute_images.py --data mnist         # in --data-dir or $RVI_FAST_DATA
"""

import argparse

import matplotlib
import numpy as np
import torch

import rvi_fast
from rvi_fast import data

matplotlib.use("agg")  # pictures go to files
from matplotlib import pyplot as plt


def draw(path, rows, shape):
    """A line of images for each of `rows`, name -> [n, D] in [0, 1], NaN where nothing was seen."""
    count = len(next(iter(rows.values())))
    figure, grid = plt.subplots(len(rows), count, figsize=(0.7 * count + 1, 0.75 * len(rows)))
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.set_facecolor("#DCCCB0")
            axes.imshow(image.reshape(shape), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    print(f"drew {path}")


def main(options):
    images = data.load_data(options.data, data_dir=options.data_dir)
    x, shape = images.train[: options.rows], images.image_shape
    mask = data.mcar(x.shape, options.missing, seed=0)  # true = seen
    generator = torch.Generator().manual_seed(0)
    model = rvi_fast.models.rvi(*x.shape, generator=generator)
    # checkpoints: run it again after Ctrl-C, and it goes on
    run = {"run_dir": f"runs/{options.data}", "resume": True}
    rvi_fast.fit(model, x, mask=mask, epochs=options.epochs, lr=0.003, progress=False, **run)

    truth = x / 255.0
    seen = np.where(mask, truth, np.nan).astype(np.float32)
    filled = rvi_fast.impute(model, x, mask=mask).numpy()
    for name, guess in (("column mean", data.column_mean(seen)), ("RVI", filled)):
        print(f"{name}: elastic error {data.elastic(truth, guess, ~mask):.4f}")
    few = slice(10)
    draw("images.png", {"": truth[few], "seen": seen[few], "filled": filled[few]}, shape)

    new = images.train[options.rows : options.rows + 100]
    if len(new):
        mask = data.mcar(new.shape, options.missing, seed=1)
        posterior = rvi_fast.infer(model, new, mask=mask)
        filled = rvi_fast.impute(model, new, mask=mask, posterior=posterior).numpy()
        print(f"new images: elastic error {data.elastic(new / 255.0, filled, ~mask):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", choices=("digits", "mnist", "fashion-mnist"))
    parser.add_argument("--data-dir", help="where the files of MNIST lie")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--missing", type=float, default=0.5)
    parser.add_argument("--small", action="store_true", help="few rows and epochs")
    options = parser.parse_args()
    if options.small:
        options.rows, options.epochs = 500, 30
    main(options)
