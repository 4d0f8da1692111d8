"""bench/ at tiny size: what is timed there runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.parametrize("by_hand", [True, False], ids=["fit", "own-loop"])
def test_the_training_steps_that_are_timed_run(monkeypatch, by_hand):
    monkeypatch.syspath_prepend(str(BENCH))
    import bench_training_step

    torch.manual_seed(0)
    run = bench_training_step.ours(40, 8, by_hand=by_hand)
    index, x = bench_training_step.batches(40, 8)()
    assert x.isnan().any()
    for _ in range(3):
        run(index, x)


def test_what_limits_the_cpu_figures_is_told_for_each_of_them(monkeypatch, capsys):
    pytest.importorskip("rvi_fast._C", reason="the C++ part is not built")
    monkeypatch.syspath_prepend(str(BENCH))
    import limits

    from rvi_fast import _C

    for name in dir(_C):  # limits.py wraps them
        monkeypatch.setattr(_C, name, getattr(_C, name))
    monkeypatch.setattr(limits, "ROUNDS", 2)
    monkeypatch.setattr(limits, "N", 300)
    monkeypatch.setattr(limits, "SWEPT", 1024)
    threads = torch.get_num_threads()
    try:
        limits.main()
    finally:
        torch.set_num_threads(threads)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    figures = {row[0].strip(): [float(cell) for cell in row[1:]] for row in rows[2:]}
    assert len(figures) == 7
    ours = [name for name, (_, native, *_) in figures.items() if native > 0]
    assert len(ours) == 4
    assert all(cells[0] > cells[1] and cells[4] > 0 for cells in figures.values())
