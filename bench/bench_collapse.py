"""Does a table of any size train? The error of missing entries over N, with `recipe` and without.

A row of `low_rank_table` is 100 numbers of rank 8 and noise, of which 30 % are missing: means of
columns are wrong by about 1, who knows the 8 dimensions by .21. Beside `recipe` stands what small tables
are trained with, lr = .01 in batches of 256, which collapses where N is large. With `--write-results`
the table is written as well.
"""

from __future__ import annotations

import time

import pytest
import torch

import rvi_fast
from rvi_fast.testing import low_rank_table
from rvi_fast.training import recipe

SIZES = (1_000, 10_000, 100_000)
# of the entries that are missing
BOUND = 0.30
HEAD = (
    "Root mean square error of missing entries, KL divergence of a row in nats, and CPU seconds, one "
    "thread.\n\n| N | recipe | | | lr = .01, B = 256 | | |\n|---|---|---|---|---|---|---|\n"
)


def error_of(num_data: int, device: str, **options) -> tuple[float, float, float]:
    """Root mean square error of missing entries, KL divergence at the end, and CPU seconds of `fit`."""
    x, mask = (part.to(device) for part in low_rank_table(num_data))
    generator = torch.Generator().manual_seed(0)
    model = rvi_fast.models.rvi(*x.shape, latent_dim=16, generator=generator).to(device)
    began = time.process_time()
    history = rvi_fast.fit(model, x, mask=mask, eval_every=0, progress=False, **options)
    seconds = time.process_time() - began
    with torch.no_grad():
        wrong = (rvi_fast.training.impute(model, x, mask=mask) - x)[~mask]
    return float(wrong.square().mean().sqrt()), history["kl"][-1], seconds


@pytest.mark.parametrize("num_data", SIZES)
def bench_tables_of_any_size_train(num_data, device, request):
    found = recipe(num_data)
    plain = {"batch_size": 256, "lr": 0.01, "epochs": found.epochs}
    rows = [error_of(num_data, device, **options) for options in (found._asdict(), plain)]
    cells = " | ".join(f"{error:.3f} | {kl:.1f} | {spent:.0f}" for error, kl, spent in rows)
    print(f"\n| {num_data:,} | {cells} |")
    if request.config.getoption("--write-results"):
        path = (request.config.getoption("--results") / "collapse").with_suffix(".md")
        before = path.read_text() if num_data != SIZES[0] and path.exists() else HEAD
        path.write_text(f"{before}| {num_data:,} | {cells} |\n")
    assert rows[0][0] < BOUND
