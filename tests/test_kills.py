"""bench/kills.py with three kills: what it calls lost it finds, and nothing is."""

import sys
from pathlib import Path

import distributed_worker  # noqa: F401 - processes are forked from its server

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import kills


def test_processes_killed_at_random_moments_lose_nothing(tmp_path, capfd):
    """Tables in files with bfloat16 moments, begun by two."""
    results = tmp_path / "table.md"
    kills.main(["--kills", "3", "--epochs", "3", "--cases", "8", "--results", str(results)])
    cells = [cell.strip() for cell in results.read_text().splitlines()[-1].split("|")[1:-1]]
    assert cells[:4] == ["2", "files", "bfloat16", "3"]
    assert cells[4] == cells[5] >= "1"
    # another rounding of a moment, by other sums in float32, moves a row by less
    assert float(cells[6]) < 1e-3
    assert capfd.readouterr().out.count("half done") == 3
