"""bench/parquet.py at small size: trained, imputed, killed twice, and compared cell by cell."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import parquet as command  # noqa: E402

SIZE = ("--rows", "20000", "--columns", "10", "--files", "4", "--rank", "3")
MODEL = ("--epochs", "10", "--latent-dim", "4", "--groups", "8", "--hidden", "16")


def test_a_directory_killed_twice_is_complete_and_its_observed_cells_are_unchanged(tmp_path, capfd):
    results = tmp_path / "table.md"
    # steps enough that files are under way when the moment comes
    where = ("--directory", str(tmp_path), "--jobs", "1", "--impute", "--steps 200")
    command.main([*SIZE, *MODEL, *where, "--results", str(results)])
    cells = [cell.strip() for cell in results.read_text().split("|")[-10:-1]]
    assert cells[:2] == ["20,000 x 10", "4"]
    kills, error, floor = int(cells[6]), float(cells[7]), float(cells[8])
    assert kills == 2
    assert floor < error < 1.1 * floor
    # the check finds one cell of 50,000 that was changed, and one that was left empty
    table = command.Table(20_000, 10, 4, 3, 0)
    file = tmp_path / "out" / "part-002.parquet"
    right, source = (pq.ParquetFile(tmp_path / name / file.name).read() for name in ("out", "in"))
    known = source.column("x3").is_valid().to_pylist()
    for row, value, said in (
        (known.index(True, 777), 1.5, "x3: an observed cell"),
        (known.index(False, 777), None, "x3: a gap"),
    ):
        values = right.column("x3").to_pylist()
        values[row] = value
        changed = right.set_column(4, right.schema.field(4), pa.array(values, pa.float32()))
        pq.write_table(changed, file)
        with pytest.raises(AssertionError, match=said):
            command.errors(table, tmp_path / "in", tmp_path / "out", 2)
    assert np.isfinite(command.errors(table, tmp_path / "in", tmp_path / "out", 1)).all()
