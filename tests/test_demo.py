"""The demo, short: what `make demo` leaves behind."""

import json

import pytest

from rvi_fast.experiments import demo


def test_the_demo_leaves_checkpoint_metrics_and_pictures(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for _ in range(2):  # a second demo starts anew in the same place
        scores = demo.run(tmp_path, epochs=3, progress=False)
        assert set(scores) == {"column mean", "KNN (k = 5)", "RVI"}
        assert all(0 < score < 1 for score in scores.values())
        assert scores["KNN (k = 5)"] < scores["column mean"]
        for picture in ("loss.png", "imputations.png"):
            assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
        assert (tmp_path / "checkpoints" / "epoch-000003" / "model.safetensors").exists()
