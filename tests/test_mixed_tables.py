"""bench/mixed_tables.py at tiny size: what is scored, what peers are, which columns are named."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import mixed_tables as command
import torch
from imputation.mixed_tables import MixedTable, adult, classes_of, shop

from rvi_fast import likelihoods


@pytest.mark.parametrize("made", [adult, shop])
def test_columns_hold_what_their_laws_give(made):
    table = made(3)
    assert table.x.shape[1] == len(table.names) == len(table.laws)
    law = likelihoods.Mixed(table.laws)
    law.check(torch.from_numpy(table.x))
    for column, own in zip(table.x.T, table.laws, strict=True):
        if k := classes_of(own):
            assert len(np.unique(column)) == k
    np.testing.assert_array_equal(made(3).x, table.x)
    assert (made(4).x != table.x).any()


def test_numbers_are_scored_in_standard_deviations_and_classes_by_the_wrong_ones():
    x = np.array([[0.0, 1.0], [2.0, 0.0], [4.0, 1.0], [6.0, 2.0]])
    table = MixedTable(x, ["a", "b"], ["gaussian", ("categorical", 3)])
    hidden = np.array([[True, True], [False, True], [True, False], [False, True]])
    filled = x + np.array([[3.0, 0.0], [0.0, 1.0], [4.0, 0.0], [0.0, -1.0]])
    found = command.errors(table, filled, hidden)
    assert found == pytest.approx([np.sqrt(12.5) / x[:, 0].std(), 2 / 3])


@pytest.mark.parametrize("name", ["mean_mode", "iterative", "boosting"])
def test_peers_fill_every_gap_with_what_a_column_can_hold(name):
    table = shop(0, rows=150)
    hidden = command.mcar(table.x, 0.3, 0)
    given = np.where(hidden, np.nan, table.x)
    filled = command.IMPUTERS[name](given, table.laws, 0)
    np.testing.assert_array_equal(filled[~hidden], table.x[~hidden])
    for column, law in zip(filled.T, table.laws, strict=True):
        assert np.isfinite(column).all()
        if k := classes_of(law):
            assert set(column) <= set(range(k))


def test_columns_that_are_missed_are_named():
    rows = [
        dict(zip(command.FIELDS, (imputer, "t", seed, column, error, "1"), strict=True))
        for seed in ("0", "1")
        for imputer, errors in (("iterative", "0.5 0.2"), ("relay", "0.4 0.3"))
        for column, error in zip("ab", errors.split(), strict=True)
    ]
    page = command.page(rows)
    assert "- t b: 0.3000, iterative 0.2000" in page
    assert "- t a" not in page
    assert "| t | a | 2 | 0.5000 | **0.4000** |" in page
