"""Rows per second that a trained imputer fills in, rows that it has not seen, beside scikit-learn's.

    OMP_NUM_THREADS=1 python bench/serving.py --write-results

Each imputer learns from the first rows of a table and completes the others, one thread of a CPU, best
of three; the time is that of `transform`, or of `infer` and `impute`. "at once" are all new rows in one
call; "64 at a time" is `RowImputer.in_batches`, where what a row gets does not depend on the others.
Beside it the root mean square error of the entries that were missing, in units of the table (pixels
of 0 to 16). With `--write-results` the table goes to the other results.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

import rvi_fast
from rvi_fast.testing import low_rank_table
from rvi_fast.training import RowImputer, export, recipe

OWN = Path(__file__)
RESULTS = OWN.parent / "results" / f"{OWN.stem}.md"
COMMAND = "OMP_NUM_THREADS=1 python bench/serving.py --write-results"
REPEATS = 3


def tables():
    """Name, training rows and new rows with NaN, and the new rows without."""
    whole, mask = low_rank_table(5000, 50, rank=8, noise=0.2, missing=0.3)
    yield "rank 8, 4,000 x 50, 30 % missing", *parted(whole, mask, 4000)
    pixels = torch.from_numpy(load_digits().data).float()
    # what never differs is not imputed
    pixels = pixels[:, pixels[:1297].std(0) > 0]
    mask = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(100)) > 0.5
    yield f"digits, 1,297 x {pixels.shape[1]}, 50 % missing", *parted(pixels, mask, 1297)


def parted(whole, mask, count):
    x = torch.where(mask, whole, torch.nan)
    return x[:count], x[count:], whole[count:]


def relay(x):
    """A model that has learned from x, without its rows, and the bytes of its file."""
    options = recipe(len(x))._asdict()
    model = rvi_fast.models.rvi(*x.shape, generator=torch.Generator().manual_seed(0))
    rvi_fast.fit(model, x, **options, eval_every=0, progress=False)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        export(model, path, rows=False)
        return rvi_fast.load(path), path.stat().st_size


def rows_per_second(fill, new):
    """Rows per second of the best of three, and what was filled in."""
    fill(new[:64])
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        filled = fill(new)
        times.append(time.perf_counter() - began)
    return len(new) / min(times), np.asarray(filled)


def measured(name, x, new, truth):
    """Lines of the table."""
    gaps = new.isnan().numpy()
    model, size = relay(x)
    fills = {}
    for steps in (100, 25):
        serve = RowImputer(model, steps=steps, lr=0.01 if steps == 100 else 0.04)

        def at_once(rows, steps=steps, lr=serve.rate):
            posterior = rvi_fast.infer(model, rows, steps=steps, lr=lr)
            return rvi_fast.impute(model, rows, posterior=posterior)

        fills[f"rvi, {steps} steps, at once"] = at_once
        fills[f"rvi, {steps} steps, 64 at a time"] = serve.in_batches
    for kind in (KNNImputer(), IterativeImputer(random_state=0)):
        fills[f"scikit-learn, {type(kind).__name__}"] = kind.fit(x.numpy()).transform
    for imputer, fill in fills.items():
        rate, filled = rows_per_second(fill, new)
        error = np.sqrt(np.mean((filled - truth.numpy())[gaps] ** 2))
        held = f"{size / 1e3:.0f} KB" if imputer.startswith("rvi") else ""
        yield f"| {name} | {imputer} | {rate:,.0f} | {error:.3f} | {held} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write-results", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}"
    lines = [
        f"`{COMMAND}`, {machine}: new rows completed by a trained imputer.",
        "",
        "| table | imputer | rows per second | RMSE | file |",
        "|---|---|---|---|---|",
    ]
    for table in tables():
        for line in measured(*table):
            print(line, flush=True)
            lines.append(line)
    if options.write_results:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
