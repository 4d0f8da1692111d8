"""Trains on a table that is never in memory as a whole: data, rows and moments lie in files.

    python examples/large_table.py --rows 1000000

A run that was killed goes on from where it was when it is started again.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import rvi_fast
from rvi_fast.training import recipe


def make(path, rows, columns):
    """Writes a table of rank 4 and noise, three tenths missing, piece by piece."""
    generator = np.random.default_rng(0)
    factors = generator.normal(size=(4, columns))
    table = np.lib.format.open_memmap(path, "w+", np.float32, (rows, columns))
    for start in range(0, rows, 10_000):
        part = table[start : start + 10_000]
        part[:] = generator.normal(size=(len(part), 4)) @ factors
        part += generator.normal(scale=0.3, size=part.shape)
        part[generator.random(part.shape) < 0.3] = np.nan
    table.flush()


def main(directory, rows, columns, epochs):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "table.npy"
    if not path.exists():
        make(path, rows, columns)
    print(rvi_fast.estimate_memory(rows, columns, latent_dim=16, storage=directory))

    x = np.load(path, mmap_mode="r")
    generator = torch.Generator().manual_seed(0)
    model = rvi_fast.models.rvi(
        *x.shape, latent_dim=16, storage=directory / "tables", generator=generator
    )
    found = recipe(rows, epochs=epochs)
    rvi_fast.fit(
        model,
        x,
        **found._asdict(),
        run_dir=directory / "run",
        resume=True,
        eval_every=0,  # an evaluation reads and writes all rows once more
        progress=False,
    )
    print(
        f"held-out error {rvi_fast.training.held_out_error(model, x):.2f} of that of column means"
    )

    new = np.array(x[:1000])  # as rows of another table would come
    posterior = rvi_fast.infer(model, new)
    filled = rvi_fast.impute(model, new, posterior=posterior)
    print(f"filled {np.isnan(new).sum()} entries of {len(filled)} new rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=Path("large"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="20,000 rows and 20 columns")
    options = parser.parse_args()
    if options.small:
        options.rows, options.columns, options.epochs = 20_000, 20, 3
    main(options.directory, options.rows, options.columns, options.epochs)
