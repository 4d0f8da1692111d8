"""`rvi-fast impute FILE --time-limit`: what there is time for, and a filled file in any case."""

import numpy as np
import pytest

pandas = pytest.importorskip("pandas", reason="pandas is missing: the extra tabular")
pytest.importorskip("sklearn", reason="scikit-learn is missing: the extra sklearn")

from rvi_fast.cli import main  # noqa: E402
from rvi_fast.cli.table import filling  # noqa: E402
from rvi_fast.sklearn import RelayImputer  # noqa: E402

SMALL = {"epochs": 2, "steps": 3, "latent_dim": 2, "hidden": (8,), "groups": (4,)}


@pytest.fixture(autouse=True)
def fitted(monkeypatch):
    """Imputers of a small model, in the order in which they were made."""
    made = []

    def imputer(device, seed, progress):
        made.append(RelayImputer(device=device, random_state=seed, **SMALL))
        return made[-1]

    monkeypatch.setattr(filling, "_imputer", imputer)
    return made


def numbers(rows=120):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 1)) + 0.3 * random.normal(size=(rows, 3))
    return np.where(random.random(x.shape) < 0.1, np.nan, x)


def ran(tmp_path, *words):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    pandas.DataFrame(numbers(), columns=list("abc")).to_csv(path, index=False)
    code = main(["impute", str(path), "--out", str(out), "--quiet", "--overwrite", *words])
    return code, out


def test_in_no_time_the_linear_model_fills_in_alone_and_it_is_said(tmp_path, capsys, fitted):
    code, out = ran(tmp_path, "--time-limit", "0.000001")
    assert code == 0
    assert not pandas.read_csv(out).isna().any(axis=None)
    assert fitted[0].blend_.names == ("linear",)
    assert "--time-limit: " in (said := capsys.readouterr().out)
    assert "--time-limit: left out: relay, forest" in said


def test_a_limit_that_is_not_reached_changes_no_byte(tmp_path, capsys, fitted):
    files = []
    for words in ((), ("--time-limit", "100000")):
        assert ran(tmp_path, *words)[0] == 0
        files.append((tmp_path / "out.csv").read_bytes())
    assert files[0] == files[1]
    assert fitted[1].max_time > 10_000
    assert "--time-limit" not in capsys.readouterr().out


def test_where_all_rows_would_take_too_long_the_linear_model_fills_them_in(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(filling, "now", lambda: seconds[0])
    frame = pandas.DataFrame(numbers(1000), columns=list("abc"))
    for taken, names in ((20.0, ("linear", "relay", "forest")), (30.0, ("linear",))):
        seconds[0] = 0.0
        imputer = filling._imputer("cpu", 0, False)

        def fill(some, taken=taken):
            assert len(some) == 500
            seconds[0] += taken

        notes = filling._fit(imputer, frame, fill, 10_000.0 if names[1:] else 50.0)
        assert imputer.blend_.names == names
        assert bool(notes) == (len(names) == 1)
        assert imputer.transform(frame).shape == (1000, 3)


@pytest.mark.parametrize("seconds", ["0", "-3", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(tmp_path, capsys, seconds):
    code, out = ran(tmp_path, "--time-limit", seconds)
    assert code == 2
    assert "--time-limit: expected" in capsys.readouterr().err
    assert not out.exists()


def test_a_limit_is_of_a_file_alone(tmp_path, capsys):
    words = ["--run-dir", "r", "--out", str(tmp_path / "out.csv"), "--time-limit", "3"]
    assert main(["impute", *words]) == 2
    assert "--time-limit: expected of a FILE" in capsys.readouterr().err
