"""Runs side by side against the same ones in turn: four of RVI on 10,000 rows, 60 epochs each."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from rvi_fast.experiments.experiment import Experiment, run
from rvi_fast.experiments.sweep import sweep

N, D, EPOCHS, RUNS, JOBS = 10_000, 784, 60, 4, 2


def bench_sweep(duel, device, tmp_path):
    if device == "cuda":
        pytest.skip("runs of a sweep share processors, not a GPU")
    path = tmp_path / "x.npy"  # a quarter of it is the test part
    np.save(path, np.random.default_rng(0).integers(0, 256, (N * 3 // 2, D), dtype=np.uint8))
    options = {"data": str(path), "rows": N, "test_rows": 1000, "infer_steps": 50}
    runs = [Experiment(**options, epochs=EPOCHS, seed=seed) for seed in range(RUNS)]
    results = {}

    def swept(jobs: int) -> None:
        with tempfile.TemporaryDirectory() as out:
            results[jobs] = sweep(runs, run, Path(out), jobs=jobs, progress=False)

    duel(
        f"{RUNS} runs of a sweep, {EPOCHS} epochs each, N = {N}",
        lambda: (),
        lambda: swept(JOBS),
        {"one after another": lambda: swept(1)},
        goals={"one after another": 1 / 0.6},
        rounds=2,
        warmup=0,
        calls=1,
    )
    assert results[1] == results[JOBS]
